"""`brickreel doctor`: look at the cluster from the login node, compare the profile with it, propose what to change."""

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path

import click
import yaml

from brickreel import files
from brickreel.cluster import proposal, site_facts
from brickreel.cluster.checks import Check, verdict
from brickreel.cluster.proposal import DEFAULT, Profile
from brickreel.cluster.site_facts import Facts, Look, Partition

logger = logging.getLogger("brickreel")

PROFILE, SITE_ENV = Path("slurm/config.yaml"), Path("slurm/site.env")
NO_DEFAULT = "it names no partition, and this cluster has no default one"


@click.command("doctor")
@click.option("--write", is_flag=True, help="Write the proposed lines to slurm/config.yaml and slurm/site.env.")
@click.option("--no-jobs", is_flag=True, help="Do not submit the jobs that look at the file system from a node.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write what was found to this file.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(write: bool, no_jobs: bool, json_file: str | None, debug: bool) -> None:
    """Look at this Slurm cluster and propose the profile's lines; exit status 1 when the profile cannot work."""
    from brickreel import running

    running.set_up_logging()
    running.guarded("doctor", debug, lambda: examine(write, not no_jobs, json_file))


def examine(write: bool, jobs: bool, json_file: str | None) -> None:
    """Look, judge, propose, and write when asked. Raises ValueError when the profile cannot work on this cluster."""
    for path in (PROFILE, SITE_ENV):
        if not path.is_file():
            raise ValueError(f"there is no {path} here: start from the project's folder, which has slurm/ in it")
    facts = site_facts.gather()
    text = files_text(PROFILE)
    profile = _read(text)
    wanted = proposal.propose(facts, profile)
    edited = proposal.edit_profile(text, wanted)
    fitting = _read(edited)
    looks = _looks(facts, fitting) if jobs else []
    checks = judge(facts, profile, looks)
    for check in checks:
        logger.info("%-12s %-16s %-10s %s %s", check.result, check.name, check.node, check.value or "", check.reason)
    proposed = {
        PROFILE: edited,
        SITE_ENV: proposal.edit_site_env(files_text(SITE_ENV), proposal.site_lines(facts, fitting)),
    }
    for path, text in proposed.items():
        _show(path, text)
        if write:
            files.write_text(path, text)
    if json_file:
        listed = [check.to_json() for check in checks]
        partitions = [one._asdict() for one in facts.partitions]
        found = facts._asdict() | {"partitions": partitions}
        files.write_json(json_file, {"facts": found, "checks": listed, "proposed": wanted})
    after = judge(facts, fitting, looks)
    left = after if write else checks
    if verdict(left) == "fail":
        mends = not write and verdict(after) != "fail"
        advice = ": `brickreel doctor --write` writes the lines above" if mends else ""
        reasons = "; ".join(check.reason for check in left if check.result == "fail")
        raise ValueError(f"the profile does not fit this cluster: {reasons}{advice}")


def files_text(path: Path) -> str:
    """A text file's content."""
    return path.read_text(encoding="utf-8")


def _read(text: str) -> Profile:
    """The profile. Raises ValueError where its resources are not written as `key: value`."""
    profile = yaml.safe_load(text) or {}
    for name in (DEFAULT, "set-resources"):
        if not isinstance(profile.get(name) or {}, dict):
            raise ValueError(f"{PROFILE}: write `{name}` as lines of `key: value`, as in the shipped profile")
    return profile  # type: ignore[no-any-return]


def _sections(profile: Profile) -> tuple[str, ...]:
    return (DEFAULT, *(profile.get("set-resources") or {}))


def _looks(facts: Facts, profile: Profile) -> list[Look]:
    """One job in every partition that the profile names, under the account that is used there."""
    seen: dict[str, Look] = {}
    for name in _sections(profile):
        section = proposal.asked(profile, name)
        partition = proposal.partition_of(section, facts)
        if partition and partition.up and partition.name not in seen:
            account = str(section.get("slurm_account", ""))
            seen[partition.name] = site_facts.look_from(partition, account, Path.cwd())
    return list(seen.values())


def judge(facts: Facts, profile: Profile, looks: Sequence[Look]) -> list[Check]:
    """Compare the profile with the cluster, and say what was found there."""
    shown = [_described(partition) for partition in facts.partitions]
    checks = [
        Check("slurm", "all", "pass", facts.version),
        Check("partitions", "all", "pass", ", ".join(shown)),
        Check("software", "all", "pass", _software(facts)),
    ]
    checks.append(_requeue(facts))
    checks += _account(facts, profile)
    checks += [_section(name, facts, profile) for name in _sections(profile)]
    for look in looks:
        reason = f"partition {look.partition}: {look.problem}" if look.problem else ""
        result = "pass" if not look.problem else "warn" if "became free" in look.problem else "fail"
        checks.append(Check("file system", look.node or look.partition, result, "", "", "", reason))  # type: ignore[arg-type]
    return checks


def _described(partition: Partition) -> str:
    """`gpu (2/2 nodes, 8 GPUs each)`: usable nodes of all, and what GPUs they have."""
    kinds = [
        f", {kind.nodes} of them with {kind.gpus} {kind.gpu_type} GPUs".replace("  ", " ") for kind in partition.kinds
    ]
    if len(kinds) == 1 and partition.richest.nodes == partition.nodes:
        kinds = [f", {partition.richest.gpus} GPUs each"]
    return f"{partition.name} ({partition.usable}/{partition.nodes} nodes{''.join(kinds)})"


def _software(facts: Facts) -> str:
    parts = [f"modules {', '.join(facts.modules)}"] if facts.modules else []
    parts += [f"driver with CUDA {facts.driver_cuda}"] if facts.driver_cuda else []
    parts += [facts.container] if facts.container else []
    return "; ".join(parts) or "no modules, no GPU driver and no containers on this machine"


def _requeue(facts: Facts) -> Check:
    if facts.requeue:
        return Check("requeue", "all", "pass", "jobs may be put back into the queue")
    reason = "this cluster does not requeue by itself (JobRequeue=0); the scripts ask for it with --requeue"
    return Check("requeue", "all", "warn", reason=reason)


def _account(facts: Facts, profile: Profile) -> list[Check]:
    used = dict.fromkeys(str(proposal.asked(profile, name).get("slurm_account", "")) for name in _sections(profile))
    account = ", ".join(filter(None, used))
    strange = [name for name in used if name and facts.accounts and name not in facts.accounts]
    if strange:
        reason = f"slurm_account: {', '.join(strange)} is not yours, which are {', '.join(facts.accounts)}"
        return [Check("account", "all", "fail", account, reason=reason)]
    if facts.account_needed and not facts.accounts:
        return [
            Check("account", "all", "fail", reason="jobs need an account and you have none: ask the administrators")
        ]
    return [Check("account", "all", "pass", account or ", ".join(facts.accounts) or "none needed")]


def _section(name: str, facts: Facts, profile: Profile) -> Check:
    """What one stage asks for against what its partition has."""
    section = proposal.asked(profile, name)
    partition = proposal.partition_of(section, facts)
    wanted = str(section.get("slurm_partition", ""))
    if partition is None:
        names = ", ".join(one.name for one in facts.partitions)
        reason = f"there is no partition '{wanted}' here, which has {names}" if wanted else NO_DEFAULT
        return Check("profile", name, "fail", wanted, reason=f"{name}: {reason}")
    where = f"partition {partition.name}"
    problems = [
        f"{name}: `{limit.key}` asks for {limit.asked} {limit.unit}, {where} has {limit.has}"
        for limit in proposal.limits(name, section, partition)
        if limit.asked > limit.has
    ]
    problems += [] if partition.up else [f"{name}: {where} is closed"]
    gres = str(section.get("gres") or "")
    if "-" in gres and not proposal.launched(name, section):
        problems.append(f"{name}: Snakemake takes no hyphen in `gres: {gres}`; leave the type out")
    problems += [
        f"{name}: Snakemake reads `{key}: {value}` as Python; write {proposal.quoted(value)}"
        for key, value in proposal.misread(profile, name).items()
    ]
    if problems:
        return Check("profile", name, "fail", partition.name, reason="; ".join(problems))
    if proposal.mixes_gpus(name, section, partition):
        types = ", ".join(dict.fromkeys(kind.gpu_type for kind in partition.kinds))
        reason = f"{name}: {where} has GPUs of several types ({types}): `gres` should name one"
        return Check("profile", name, "warn", partition.name, reason=reason)
    return Check("profile", name, "pass", partition.name)


def _show(path: Path, text: str) -> None:
    before = files_text(path)
    changes = list(
        difflib.unified_diff(before.splitlines(), text.splitlines(), str(path), "proposed", lineterm="", n=0)
    )
    if changes:
        logger.info("%s", "\n".join(changes))
    else:
        logger.info("%s needs no change", path)
