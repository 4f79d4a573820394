"""What a profile asks for beside what the cluster has, and the lines that would fit: what fits is left as it is."""

import builtins
import keyword
import re
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from brickreel.cluster.site_facts import Facts, Partition, gpus_of
from brickreel.stages import LAUNCHED

DEFAULT = "default-resources"
ONE_GPU = ("encode", "sample", "evaluate")
MOST_NODES, MOST_CPUS = 4, 16
"""The origin's four nodes; more CPUs per GPU than loader threads are idle."""
INHERITED = ("slurm_partition", "slurm_account", "slurm_extra")
LAUNCH = {"nodes": 1, "tasks_per_node": 1, "cpus_per_task": 1, "mem_mb": 0, "runtime": 1440}
"""What launched stages take from the profile's default-resources, and what they ask for where it is silent."""
SNAKEMAKES = ("attempt", "branch", "collect", "evaluate", "exists", "flatten", "input", "lookup", "shutil", "threads")
"""Words that mean something where Snakemake evaluates a resource."""

Profile = Mapping[str, Any]
Values = dict[str, Any]


class Limit(NamedTuple):
    """One thing a stage asks for and what its partition has of it."""

    key: str
    asked: int
    has: int
    unit: str


def asked(profile: Profile, name: str) -> Values:
    """What one stage asks for: its section over default-resources, or over what launched stages have instead."""
    default = profile.get(DEFAULT) or {}
    section = (profile.get("set-resources") or {}).get(name) or {}
    if launched(name, section):
        default = LAUNCH | {key: default[key] for key in INHERITED if key in default}
    return {key: _evaluated(value) for key, value in {**default, **section}.items()}


def launched(name: str, section: Mapping[str, Any]) -> bool:
    """Whether a stage's job is started by the launcher, with one task per GPU or replica."""
    return name in LAUNCHED or section.get("launcher") == "slurm"


def _evaluated(value: Any) -> Any:
    """Snakemake reads resources as Python: quotes within a value are not part of it."""
    return value.strip().strip("'\"") if isinstance(value, str) else value


def quoted(name: str) -> str:
    """A partition's or account's name as the profile must write it, where Snakemake would take it for Python."""
    python = hasattr(builtins, name) or keyword.iskeyword(name) or name in SNAKEMAKES
    return f"\"'{name}'\"" if python else name


def misread(profile: Profile, name: str) -> dict[str, str]:
    """Names in one section that Snakemake would take for Python, by key."""
    section = profile.get(DEFAULT) if name == DEFAULT else (profile.get("set-resources") or {}).get(name)
    named = {key: str((section or {}).get(key, "")) for key in ("slurm_partition", "slurm_account")}
    return {key: value for key, value in named.items() if quoted(value) != value}


def number(value: Any) -> int | None:
    """A whole number; none for expressions and durations such as `4h`, which are not judged."""
    return int(value) if re.fullmatch(r"\d+", str(value)) else None


def partition_of(section: Mapping[str, Any], facts: Facts) -> Partition | None:
    """Where a stage's job goes: the partition it names, else Slurm's default; none where that is not there."""
    name = section.get("slurm_partition")
    return next((one for one in facts.partitions if (one.name == str(name) if name else one.default)), None)


def limits(name: str, section: Mapping[str, Any], partition: Partition) -> list[Limit]:
    """All that can be compared. `section` is what `asked` returns."""
    gres = str(section.get("gres") or "")
    gpu_type, gpus = gpus_of(gres)
    kinds = partition.with_gpus(gres)
    tasks = (number(section.get("tasks_per_node", 1)) or 1) if launched(name, section) else 1
    with_so_many = sum(kind.nodes for kind in kinds if kind.gpus >= gpus)
    compared = [
        ("nodes", section.get("nodes", 1), with_so_many if gpus and with_so_many else partition.nodes, "nodes"),
        ("gres", gpus, max((kind.gpus for kind in kinds), default=0), f"{gpu_type} GPUs per node".strip()),
        ("cpus_per_task", section.get("cpus_per_task", 1), partition.cpus, "CPUs per node in all"),
        ("mem_mb", section.get("mem_mb", 0), partition.memory_mb, "MB per node"),
        ("runtime", section.get("runtime", 0), partition.max_minutes, "minutes"),
    ]
    if gpus and launched(name, section):
        compared.append(("tasks_per_node", tasks, gpus, "tasks per node, of one GPU each"))
    return [
        Limit(key, value * (tasks if key == "cpus_per_task" else 1), has, unit)
        for key, text, has, unit in compared
        if (value := number(text)) is not None
    ]


def mixes_gpus(name: str, section: Mapping[str, Any], partition: Partition) -> bool:
    """Whether a job of many ranks may get GPUs of several types, of which the slowest sets the pace."""
    gpu_type, gpus = gpus_of(str(section.get("gres") or ""))
    return bool(launched(name, section) and gpus and not gpu_type) and len({kind[0] for kind in partition.kinds}) > 1


def propose(facts: Facts, profile: Profile) -> dict[str, Values]:
    """Section -> key -> value for all that is missing or does not fit."""
    found = {DEFAULT: _default(facts, profile)}
    fitting = {**profile, DEFAULT: {**(profile.get(DEFAULT) or {}), **found[DEFAULT]}}
    for name in dict.fromkeys((*(profile.get("set-resources") or {}), *ONE_GPU, *LAUNCHED)):
        found[name] = _section(name, facts, asked(fitting, name))
    for name, values in found.items():
        for key, value in misread(profile, name).items():
            values.setdefault(key, quoted(value))
    return {name: values for name, values in found.items() if values}


def _default(facts: Facts, profile: Profile) -> Values:
    now = asked(profile, DEFAULT)
    up = [one for one in facts.partitions if one.up]
    without = [one for one in up if not one.kinds]
    plain = next((one for one in without if one.default), None) or max(
        without or up, key=lambda one: (one.max_minutes, one.cpus * one.nodes), default=None
    )
    values = _fitted(DEFAULT, now, partition_of(now, facts), plain)
    account = now.get("slurm_account")
    if facts.accounts and (facts.account_needed if not account else str(account) not in facts.accounts):
        values["slurm_account"] = quoted(facts.accounts[0])
    return values


def _section(name: str, facts: Facts, now: Values) -> Values:
    here = partition_of(now, facts)
    _, gpus = gpus_of(str(now.get("gres") or ""))
    if name not in (*ONE_GPU, *LAUNCHED) and not gpus:
        return _fitted(name, now, here, None)
    with_gpus = [one for one in facts.partitions if one.kinds and one.up]
    best = max(with_gpus, key=_usefulness, default=None)
    return _fitted(name, now, here if here and here.kinds else None, best)


def _usefulness(partition: Partition) -> tuple[int, bool, int]:
    """The most GPUs; of equal ones the partition that holds no other nodes, then the one with more time."""
    kind = partition.richest
    return kind.gpus * kind.nodes, kind.nodes == partition.nodes, partition.max_minutes


def _fitted(name: str, now: Values, here: Partition | None, best: Partition | None) -> Values:
    """The values that change, for the partition named now, or for the best one where that is closed or not there."""
    values: Values = {}
    partition = here if here and here.up else best
    if partition is None:
        return values
    if partition is not here:
        values["slurm_partition"] = quoted(partition.name)
    now = {**now, "slurm_partition": partition.name}
    if partition.kinds and (name in (*ONE_GPU, *LAUNCHED) or now.get("gres")):
        values |= _gpus(name, now, partition)
    now |= values
    too_much = {limit.key for limit in limits(name, now, partition) if limit.asked > limit.has}
    tasks = (number(now.get("tasks_per_node", 1)) or 1) if launched(name, now) else 1
    kinds = partition.with_gpus(str(now.get("gres") or "")) or partition.kinds
    fits = {
        "nodes": min(MOST_NODES, kinds[0].nodes if kinds else partition.nodes),
        "cpus_per_task": max(1, min(MOST_CPUS, partition.cpus // tasks)),
        "mem_mb": partition.memory_mb,
        "runtime": partition.max_minutes,
    }
    return values | {key: value for key, value in fits.items() if key in too_much}


def _gpus(name: str, now: Values, partition: Partition) -> Values:
    """`gres` and tasks where those asked for are not there, with the type where a partition has several."""
    gres = str(now.get("gres") or "")
    many = launched(name, now)
    _, gpus = gpus_of(gres)
    there = 0 < gpus <= max((kind.gpus for kind in partition.with_gpus(gres)), default=0)
    refused = "-" in gres and not many  # by Snakemake's Slurm executor
    if not there or refused or mixes_gpus(name, now, partition):
        kind = partition.richest
        typed = f"{kind.gpu_type}:" if kind.gpu_type and many and len({one[0] for one in partition.kinds}) > 1 else ""
        gpus = kind.gpus if many else 1
        gres = f"gpu:{typed}{gpus}"
    tasks = number(now.get("tasks_per_node", 1)) or 1
    wanted = {"gres": gres} | ({"tasks_per_node": gpus} if many and (tasks > gpus or gres != now.get("gres")) else {})
    return {key: value for key, value in wanted.items() if value != now.get(key)}


def edit_profile(text: str, wanted: Mapping[str, Mapping[str, Any]]) -> str:
    """The profile with these values, everything else and all comments as they were."""
    lines = text.splitlines()
    for section, values in wanted.items():
        for key, value in values.items():
            _set(lines, section, key, value)
    return "\n".join(lines) + "\n"


def _set(lines: list[str], section: str, key: str, value: Any) -> None:
    """Set `key` in the block of `section`; a commented line of that key is used, else one is added."""
    start = _start(lines, section)
    if start is None and section != DEFAULT and (start := _start(lines, "set-resources")) is not None:
        lines.insert(start := start + 1, f"  {section}:")
    if start is None:
        lines += [f"{DEFAULT}:"] if section == DEFAULT else ["set-resources:", f"  {section}:"]
        start = len(lines) - 1
    indent = _indent(lines[start]) + 2
    follows = next((line for line in lines[start + 1 :] if line.strip()), "")
    indent = _indent(follows) if _indent(follows) > _indent(lines[start]) else indent
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


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _start(lines: list[str], section: str) -> int | None:
    found = (i for i, line in enumerate(lines) if re.match(rf" *{re.escape(section)}:\s*(#.*)?$", line))
    return next(found, None)


def site_lines(facts: Facts, profile: Profile) -> dict[str, str]:
    """Assignments for site.env; a name with a space is a whole line. `profile` is the one that fits."""
    train = asked(profile, "train")
    partition = partition_of(train, facts)
    gpu_type, gpus = gpus_of(str(train.get("gres") or ""))
    found = {}
    if partition and gpus:
        found["BRICKREEL_GPUS"] = str((number(train["nodes"]) or 1) * (number(train["tasks_per_node"]) or 1))
        gpu_type = gpu_type or partition.richest.gpu_type
        # A slice of a GPU (1g.10gb) is no model.
        if gpu_type and not re.match(r"\d+g\.", gpu_type):
            found["BRICKREEL_GPU"] = gpu_type.upper()
    if facts.modules:
        found["module load"] = shlex.quote(facts.modules[-1])
    return found


def edit_site_env(text: str, wanted: Mapping[str, str]) -> str:
    """site.env with these lines where it has none; the number of GPUs follows the profile."""
    lines = text.splitlines()
    for name, value in wanted.items():
        new = f"{name} {value}" if " " in name else f"{name}={value}"
        places = [i for i, line in enumerate(lines) if re.match(rf"#? ?{re.escape(name)}[= ]", line)]
        active = [place for place in places if not lines[place].startswith("#")]
        if active and name != "BRICKREEL_GPUS":
            continue
        for place in (active or places)[:1]:
            lines[place] = new
        if not places:
            lines.append(new)
    return "\n".join(lines) + "\n"
