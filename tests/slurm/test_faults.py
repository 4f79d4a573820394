"""Preflight on the cluster with faults that are injected from outside: each is named, and without one all is well.

The nodes get an HGX node's `/sys` and an NVML library that follows a script, so that checks of InfiniBand and GPUs
run; what they prove is that faults are recognised, not how fast a network is.
"""

import json
import os
import subprocess
import time
from importlib.metadata import distribution
from pathlib import Path

import pytest

from cluster import sysfs
from slurm.site import wait
from telemetry import nvml
from training import project

NODES = ("gpu1", "gpu2")
LIMIT_S = 120
# The job is given the first of each node's eight GPUs.
SOUND = [f"{gpu} {metric} 0 {value}" for gpu in range(8) for metric, value in (("mhz", 1980), ("links", 18))]


class Bench:
    """Two nodes in order, ready to be harmed."""

    def __init__(self, site, folder: Path) -> None:
        self.site, self.folder = site, folder
        self.undo = []
        self.roots = {node: sysfs.hgx(folder / node) for node in NODES}
        library = folder / "faults.so"
        source = Path(__file__).with_name("faults.c")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-o", library, source, "-ldl"], check=True)
        self.lines = [
            f"LD_PRELOAD={library}",
            "FAULT_NODE=gpu2",
            "BRICKREEL_MAX_REQUEUES=0",
            f"LD_LIBRARY_PATH={nvml.build(folder)}",
            f"NVML_MOCK={folder}/script",
        ]
        nvml.script(folder, *SOUND)
        project.make(site.folder)

    def gpus(self, *lines: str) -> None:
        """Another script for NVML; its lines are in the order of their times."""
        nvml.script(self.folder, *SOUND, *lines)

    def mount(self, node: str, *words: str) -> None:
        """Mount something in a node's own view of the files."""
        self.site.cluster.on_node(node, "mount", *words)
        self.undo.append((node, words[-1]))

    def preflight(self) -> tuple[dict, str]:
        """Run preflight on both nodes; health.json and what was printed."""
        for node, root in self.roots.items():
            self.mount(node, "--bind", str(root / "sys"), "/sys")
        with (self.site.folder / "slurm/site.env").open("a") as stream:
            stream.write("\n".join(self.lines) + "\n")
        started = time.monotonic()
        launcher = self.site.launch("preflight", 2, 1)
        output = launcher.communicate(timeout=LIMIT_S + 60)[0]
        assert time.monotonic() - started < LIMIT_S, output
        path = self.site.folder / "logs/preflight/small/health.json"
        return (json.loads(path.read_text()) if path.is_file() else {}), output

    def end(self) -> None:
        """Take the mounts away again."""
        wait("an end of the job", 60, lambda: not self.site.cluster.ask("squeue", "-h"))
        for node, place in reversed(self.undo):
            self.site.cluster.on_node(node, "umount", "-l", place)


@pytest.fixture
def bench(site, tmp_path):
    bench = Bench(site, tmp_path)
    yield bench
    bench.end()


def one_rail_down(bench):
    sysfs.set_port(bench.roots["gpu2"], "mlx5_3", up=False)
    return "mlx5_3:1 is DOWN / Polling"


def one_rail_at_half_rate(bench):
    sysfs.set_port(bench.roots["gpu2"], "mlx5_5", rate=200)
    return "mlx5_5:1 runs at 200 Gb/s, its peers at 400"


def a_prefix_instead_of_a_name(bench):
    bench.lines.append("NCCL_IB_HCA=mlx5_1")
    return "NCCL_IB_HCA=mlx5_1 matches prefixes and also takes mlx5_10"


def a_harmful_variable(bench):
    bench.lines.append("NCCL_P2P_DISABLE=1")
    return "NCCL_P2P_DISABLE=1 turns NVLink off between the GPUs of a node: remove it"


def an_interface_that_leads_nowhere(bench):
    bench.lines.append("GLOO_SOCKET_IFNAME=lo")
    return "GLOO_SOCKET_IFNAME=lo leads to no other node; the other nodes are reached over eth0"


def another_version_on_one_node(bench):
    metadata = next(path for path in distribution("diffusers").files if path.name == "METADATA").locate()
    other = bench.folder / "METADATA"
    other.write_text(Path(metadata).read_text().replace("\nVersion: 0.", "\nVersion: 9.", 1))
    bench.mount("gpu2", "--bind", str(other), str(Path(metadata).resolve()))
    return "gpu2 has diffusers 9."


def an_uncorrected_memory_error(bench):
    bench.gpus("0 ecc 0 1")
    return "gpu0 has uncorrected ECC errors (1)"


def a_gpu_that_is_too_hot(bench):
    bench.gpus("0 thermal 0 1")
    return "gpu0 is slowed down by heat"


def nvlinks_that_are_down(bench):
    bench.gpus("0 links 0 16")
    return "gpu0 has 16 of 18 NVLinks up"


def somebody_else_on_the_gpu(bench):
    pid = os.getpid()
    bench.gpus(f"0 pid 0 {pid}")
    return f"gpu0 is in use by process {pid}, "


def a_slow_disk(bench):
    bench.lines.append("FAULT_FSYNC_S=20")
    return "is slow from this node: checkpoints will hold up training"


def little_shared_memory(bench):
    bench.mount("gpu2", "-t", "tmpfs", "-o", "size=1m", "none", "/dev/shm")
    return "/dev/shm has 0.00098 GiB free"


def a_clock_that_is_off(bench):
    bench.lines.append("FAULT_CLOCK_S=30")
    return "the clock of gpu2 is +30000 ms off"


def a_missing_part_of_the_dataset(bench):
    empty = bench.folder / "empty.safetensors"
    empty.touch()
    part = next((bench.site.folder / "results/encode").glob("*.safetensors"))
    bench.mount("gpu2", "--bind", str(empty), str(part))
    return f"{part.relative_to(bench.site.folder)} of the dataset can not be read here"


FAULTS = [
    one_rail_down,
    one_rail_at_half_rate,
    a_prefix_instead_of_a_name,
    a_harmful_variable,
    an_interface_that_leads_nowhere,
    another_version_on_one_node,
    an_uncorrected_memory_error,
    a_gpu_that_is_too_hot,
    nvlinks_that_are_down,
    somebody_else_on_the_gpu,
    a_slow_disk,
    little_shared_memory,
    a_clock_that_is_off,
    a_missing_part_of_the_dataset,
]
ON_BOTH = (
    a_prefix_instead_of_a_name,
    a_harmful_variable,
    an_uncorrected_memory_error,
    a_gpu_that_is_too_hot,
    nvlinks_that_are_down,
    somebody_else_on_the_gpu,
)


def test_two_sound_nodes_pass_without_a_warning(bench):
    health, output = bench.preflight()
    unusual = [check for check in health["checks"] if check["result"] in ("warn", "fail")]
    assert unusual == [], output
    names = {check["name"] for check in health["checks"]}
    assert {"network adapters", "network traffic", "GPU health", "GPU slots", "GPU processes", "NVLinks"} <= names
    assert {"clock offset", "dataset", "dataset reading", "largest micro-batch"} <= names
    text = (bench.site.folder / "results/preflight/small/nccl.env").read_text()
    assert "NCCL_SOCKET_IFNAME==eth0" in text.replace("'", "")
    assert "NCCL_IB_HCA==mlx5_0:1,mlx5_1:1" in text.replace("'", "")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_named(bench, fault):
    sentence = fault(bench)
    health, output = bench.preflight()
    assert sentence in output
    if health:
        assert health["verdict"] == "fail"
        assert health["exclude"] == (["gpu1", "gpu2"] if fault in ON_BOTH else ["gpu2"])
        assert f"--exclude={','.join(health['exclude'])}" in output


def test_a_slow_cable_is_found_by_pairs_of_nodes(site):
    """Four nodes, one of them behind a cable of 100 Mbit/s: the long check names it."""
    config = project.make(site.folder)
    settings = json.loads(config.read_text()) | {"preflight": {"quick": False, "disk_mib": 4}}
    config.write_text(json.dumps(settings))
    slow = ("root", "tbf", "rate", "100mbit", "burst", "64k", "latency", "100ms")
    site.cluster.on_node("cpu2", "tc", "qdisc", "add", "dev", "eth0", *slow)
    try:
        launcher = site.launch("preflight", 4, 1, "--partition", "all", "--gres", "")
        output = launcher.communicate(timeout=280)[0]
    finally:
        site.cluster.on_node("cpu2", "tc", "qdisc", "del", "dev", "eth0", "root")
    health = json.loads((site.folder / "logs/preflight/small/health.json").read_text())
    found = {check["node"]: check["result"] for check in health["checks"] if check["name"] == "pairs of nodes"}
    assert found["cpu2"] == "fail", output
    assert health["exclude"] == ["cpu2"]
