"""Network variables that a job inherits, and files that set them behind everyone's back: printed, judged, refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from brickreel.cluster.checks import Check, Result

CONF_FILES = (Path("~/.nccl.conf"), Path("/etc/nccl.conf"))
PREFIXES = ("NCCL_", "TORCH_NCCL_", "GLOO_", "UCX_")

# Variables that harm whenever they are set by hand -> why. Source: NCCL's manual (its "Debugging" variables "should
# not be used in production nor retained in scripts") and NCCL 2.30's source for what each turns off.
HARMFUL = {
    "NCCL_P2P_DISABLE": "turns NVLink off between the GPUs of a node",
    "NCCL_SHM_DISABLE": "turns shared memory off between the GPUs of a node",
    "NCCL_IB_DISABLE": "turns InfiniBand off: everything goes through TCP",
    "NCCL_NET_GDR_READ": "changes how GPUs read from the network card, slower on most machines",
    "NCCL_LL_BUFFSIZE": "overrides a size that NCCL tunes together with others",
    "NCCL_CHECK_POINTERS": "checks every pointer of every call",
    "NCCL_ALGO": "overrides NCCL's cost model; it belongs into fabric benchmarks only",
    "NCCL_PROTO": "overrides NCCL's cost model; wrong values corrupt data on some fabrics",
    "TORCH_NCCL_BLOCKING_WAIT": "makes every collective wait on the host",
    "CUDA_LAUNCH_BLOCKING": "makes every kernel wait on the host",
}
# With these values the variable does nothing.
HARMLESS_VALUES = ("0", "", "false")
# Slow for small messages and correct everywhere; some vendors' recipes for networks of their own ask for it.
SLOW_AT_WORST = {("NCCL_PROTO", "simple")}


def gather(environment: Mapping[str, str], conf_files: Sequence[Path] = CONF_FILES) -> dict[str, str]:
    """What is in force: variables by name, lines of nccl.conf files as `FILE: NAME`."""
    found = {name: value for name, value in environment.items() if name.startswith(PREFIXES) or name in HARMFUL}
    for path in conf_files:
        path = path.expanduser()
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                name, equals, value = line.partition("=")
                if equals and not line.lstrip().startswith("#"):
                    found[f"{path}: {name.strip()}"] = value.strip()
    return found


def check(node: str, found: Mapping[str, str], written: Mapping[str, str], devices: Sequence[str] = ()) -> list[Check]:
    """Judge what is in force; `written` is what the run's own nccl.env sets, `devices` the node's InfiniBand ones."""
    checks = []
    for where, value in sorted(found.items()):
        name = where.rpartition(": ")[2]
        if name in HARMFUL and value.lower() not in HARMLESS_VALUES:
            reason = f"{where}={value} {HARMFUL[name]}: remove it"
            result: Result = "warn" if (name, value.lower()) in SLOW_AT_WORST else "fail"
            checks.append(Check("inherited variables", node, result, f"{name}={value}", "", "", reason))
        elif name == "NCCL_IB_HCA" and (problem := prefix_problem(value, devices)):
            checks.append(Check("inherited variables", node, "fail", f"{name}={value}", "", "", problem))
        elif ": " in where and written.get(name) != value:
            reason = f"{where}={value} is in force for every job of this node: check that it is meant"
            checks.append(Check("inherited variables", node, "warn", f"{name}={value}", "", "", reason))
    return checks or [Check("inherited variables", node, "pass", len(found), "variables", "none harmful")]


def prefix_problem(value: str, devices: Sequence[str] = ()) -> str | None:
    """Why a value of NCCL_IB_HCA takes more devices than it names; None when it is exact, excludes, or fits anyway.

    Without `=` NCCL matches prefixes: mlx5_1 also takes mlx5_10 and mlx5_11. A name that no device has, such as mlx5 or
    ibp, is meant as a prefix.
    """
    if not value or value.startswith(("=", "^")):
        return None
    names = tuple(item.partition(":")[0] for item in value.split(","))
    meant = tuple(name for name in names if name not in devices)
    extra = [device for device in devices if device not in names and device.startswith(names)]
    extra = [device for device in extra if not (meant and device.startswith(meant))]
    if extra:
        return f"NCCL_IB_HCA={value} matches prefixes and also takes {', '.join(extra)}: write NCCL_IB_HCA=={value}"
    return None
