"""`brickreel doctor`: look at the cluster from the login node, compare the profile with it, propose what to change."""

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from brickreel import files
from brickreel.cluster import site_facts
from brickreel.cluster.checks import Check, verdict
from brickreel.cluster.site_facts import Facts, Look, Partition
from brickreel.stages import LAUNCHED

logger = logging.getLogger("brickreel")

PROFILE, SITE_ENV = Path("slurm/config.yaml"), Path("slurm/site.env")
# What stages need where a node has it: limits.memory_gib and its process; T5-XXL on its way through the host's memory.
MEMORY_MB = {
    **dict.fromkeys(("analyze", "cut", "caption"), 8000),
    **dict.fromkeys(("encode", "sample", "evaluate", "export"), 32000),
}
ONE_GPU = ("encode", "sample", "evaluate")
MOST_NODES, MOST_CPUS = 4, 16
"""The origin's four nodes; more CPUs per GPU than loader threads are idle."""


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
    profile = files_text(PROFILE)
    wanted = propose(facts)
    looks = _looks(facts, wanted) if jobs else []
    checks = judge(facts, yaml.safe_load(profile) or {}, looks)
    for check in checks:
        logger.info("%-12s %-16s %-10s %s %s", check.result, check.name, check.node, check.value or "", check.reason)
    proposed = {
        PROFILE: edit_profile(profile, wanted),
        SITE_ENV: edit_site_env(files_text(SITE_ENV), site_lines(facts)),
    }
    for path, text in proposed.items():
        _show(path, text)
        if write:
            files.write_text(path, text)
    if json_file:
        listed = [check.to_json() for check in checks]
        files.write_json(json_file, {"facts": facts._asdict(), "checks": listed, "proposed": wanted})
    left = judge(facts, yaml.safe_load(proposed[PROFILE]), looks) if write else checks
    if verdict(left) == "fail":
        advice = "" if write else ": `brickreel doctor --write` writes the lines above"
        reasons = "; ".join(check.reason for check in left if check.result == "fail")
        raise ValueError(f"the profile does not fit this cluster: {reasons}{advice}")


def files_text(path: Path) -> str:
    """A text file's content."""
    return path.read_text(encoding="utf-8")


def _looks(facts: Facts, wanted: Mapping[str, Mapping[str, Any]]) -> list[Look]:
    account = str(wanted["default-resources"].get("slurm_account", ""))
    names = dict.fromkeys(section["slurm_partition"] for section in wanted.values() if "slurm_partition" in section)
    by_name = {partition.name: partition for partition in facts.partitions}
    return [site_facts.look_from(by_name[name], account, Path.cwd()) for name in names if name in by_name]


def judge(facts: Facts, profile: Mapping[str, Any], looks: Sequence[Look]) -> list[Check]:
    """Compare the profile with the cluster, and say what was found there."""
    shown = [_described(partition) for partition in facts.partitions]
    checks = [
        Check("slurm", "all", "pass", facts.version),
        Check("partitions", "all", "pass", ", ".join(shown)),
        Check("software", "all", "pass", _software(facts)),
    ]
    checks.append(_requeue(facts))
    checks += _account(facts, profile)
    sections = {"default-resources": profile.get("default-resources", {}), **profile.get("set-resources", {})}
    by_name = {partition.name: partition for partition in facts.partitions}
    for name, section in sections.items():
        if "slurm_partition" in section:
            checks += _section(name, section, by_name)
    for look in looks:
        reason = f"partition {look.partition}: {look.problem}" if look.problem else ""
        result = "pass" if not look.problem else "warn" if "became free" in look.problem else "fail"
        checks.append(Check("file system", look.node or look.partition, result, "", "", "", reason))  # type: ignore[arg-type]
    return checks


def _described(partition: Partition) -> str:
    """`gpu (2/2 nodes, 8 GPUs each)`: usable nodes of all, and what GPUs they have."""
    gpus = f", {partition.gpus} GPUs each" if partition.gpus else ""
    if gpus and partition.gpu_nodes < partition.nodes:
        gpus = f", {partition.gpu_nodes} of them with {partition.gpus} GPUs"
    return f"{partition.name} ({partition.usable}/{partition.nodes} nodes{gpus})"


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


def _account(facts: Facts, profile: Mapping[str, Any]) -> list[Check]:
    account = str(profile.get("default-resources", {}).get("slurm_account", ""))
    if account and facts.accounts and account not in facts.accounts:
        reason = f"slurm_account: {account} is not yours, which are {', '.join(facts.accounts)}"
        return [Check("account", "all", "fail", account, reason=reason)]
    if facts.account_needed and not facts.accounts:
        return [
            Check("account", "all", "fail", reason="jobs need an account and you have none: ask the administrators")
        ]
    return [Check("account", "all", "pass", account or ", ".join(facts.accounts) or "none needed")]


def _section(name: str, section: Mapping[str, Any], partitions: Mapping[str, Partition]) -> list[Check]:
    """What one stage asks for against what its partition has."""
    wanted = str(section["slurm_partition"])
    if wanted not in partitions:
        reason = f"{name}: there is no partition '{wanted}' here, which has {', '.join(partitions)}"
        return [Check("profile", name, "fail", wanted, reason=reason)]
    partition = partitions[wanted]
    _, gpus = site_facts.gpus_of(str(section.get("gres", "")))
    tasks = int(section.get("tasks_per_node", 1))
    limits = {
        "nodes": (
            int(section.get("nodes", 1)),
            partition.gpu_nodes if 0 < gpus <= partition.gpus else partition.nodes,
            "nodes",
        ),
        "gres": (gpus, partition.gpus, "GPUs per node"),
        "cpus_per_task": (tasks * int(section.get("cpus_per_task", 1)), partition.cpus, "CPUs per node in all"),
        "mem_mb": (int(section.get("mem_mb", 0)), partition.memory_mb, "MB per node"),
        "runtime": (int(section.get("runtime", 0)), partition.max_minutes, "minutes"),
    }
    problems = [
        f"{name}: `{key}` asks for {asked} {unit}, partition {wanted} has {has}"
        for key, (asked, has, unit) in limits.items()
        if asked > has
    ]
    problems += [] if partition.up else [f"{name}: partition {wanted} is closed"]
    return [Check("profile", name, "fail" if problems else "pass", wanted, reason="; ".join(problems))]


def propose(facts: Facts) -> dict[str, dict[str, Any]]:
    """Section -> key -> value for the profile."""
    with_gpus = [one for one in facts.partitions if one.gpus and one.up]
    without = [one for one in facts.partitions if not one.gpus and one.up]
    gpu = max(with_gpus, key=_usefulness, default=None)
    plain = next((one for one in without if one.default), None) or max(
        without, key=lambda one: (one.max_minutes, one.cpus * one.nodes), default=gpu
    )
    found: dict[str, dict[str, Any]] = {"default-resources": {}}
    if plain:
        found["default-resources"] = {"slurm_partition": plain.name, "runtime": min(60, plain.max_minutes)}
        for stage in ("analyze", "cut", "caption"):
            found[stage] = {"runtime": min(1440 if stage == "caption" else 240, plain.max_minutes)}
        for stage in ("analyze", "cut", "caption", "export"):
            found.setdefault(stage, {})["mem_mb"] = min(MEMORY_MB[stage], plain.memory_mb)
    if facts.account_needed and facts.accounts:
        found["default-resources"]["slurm_account"] = facts.accounts[0]
    if gpu:
        for stage in ONE_GPU:
            memory_mb = min(MEMORY_MB[stage], gpu.memory_mb)
            found[stage] = {"slurm_partition": gpu.name, "gres": "gpu:1", "mem_mb": memory_mb}
        for stage in LAUNCHED:
            found[stage] = {
                "nodes": min(MOST_NODES, gpu.gpu_nodes),
                "tasks_per_node": gpu.gpus,
                "cpus_per_task": max(1, min(MOST_CPUS, gpu.cpus // gpu.gpus)),
                "slurm_partition": gpu.name,
                "gres": f"gpu:{gpu.gpus}",
                "runtime": min(60 if stage == "preflight" else 1440, gpu.max_minutes),
            }
    return found


def _usefulness(partition: Partition) -> tuple[int, bool, int]:
    """The most GPUs; of equal ones the partition that holds no other nodes, then the one with more time."""
    return partition.gpus * partition.gpu_nodes, partition.gpu_nodes == partition.nodes, partition.max_minutes


def site_lines(facts: Facts) -> dict[str, str]:
    """Assignments for site.env; a name with a space is a whole line."""
    found = {}
    gpu = max((one for one in facts.partitions if one.gpus and one.up), key=_usefulness, default=None)
    if gpu:
        found["BRICKREEL_GPUS"] = str(min(MOST_NODES, gpu.gpu_nodes) * gpu.gpus)
        if gpu.gpu_type:
            found["BRICKREEL_GPU"] = gpu.gpu_type.upper()
    if facts.modules:
        found["module load"] = facts.modules[-1]
    return found


def edit_profile(text: str, wanted: Mapping[str, Mapping[str, Any]]) -> str:
    """The profile with these values, everything else and all comments as they were."""
    lines = text.splitlines()
    for section, values in wanted.items():
        for key, value in values.items():
            _set(lines, section, key, value)
    return "\n".join(lines) + "\n"


def _set(lines: list[str], section: str, key: str, value: Any) -> None:
    """Set `key` in the block of `section`; a commented line of that key is used, else one is added."""
    start = next((i for i, line in enumerate(lines) if re.match(rf"( *){re.escape(section)}:\s*(#.*)?$", line)), None)
    if start is None:
        return
    indent = len(lines[start]) - len(lines[start].lstrip()) + 2
    end = start + 1
    while end < len(lines) and (
        not lines[end].strip() or (lines[end].startswith(" " * indent) and not lines[end][indent:].startswith(" "))
    ):
        end += 1
    block = range(start + 1, end)
    for pattern in (rf" {{{indent}}}{re.escape(key)}:", rf" {{{indent}}}# *{re.escape(key)}:"):
        for place in block:
            if re.match(pattern, lines[place]):
                active = not lines[place].strip().startswith("#")
                comment = re.search(r"\s+#.*$", lines[place]) if active else None
                lines[place] = f"{' ' * indent}{key}: {value}{comment.group(0) if comment else ''}"
                return
    lines.insert(start + 1, f"{' ' * indent}{key}: {value}")


def edit_site_env(text: str, wanted: Mapping[str, str]) -> str:
    """site.env with these lines, everything else as it was."""
    lines = text.splitlines()
    for name, value in wanted.items():
        new = f"{name} {value}" if " " in name else f"{name}={value}"
        place = next((i for i, line in enumerate(lines) if re.match(rf"#? ?{re.escape(name)}[= ]", line)), None)
        if place is None:
            lines.append(new)
        else:
            lines[place] = new
    return "\n".join(lines) + "\n"


def _show(path: Path, text: str) -> None:
    before = files_text(path)
    changes = list(
        difflib.unified_diff(before.splitlines(), text.splitlines(), str(path), "proposed", lineterm="", n=0)
    )
    if changes:
        logger.info("%s", "\n".join(changes))
    else:
        logger.info("%s needs no change", path)
