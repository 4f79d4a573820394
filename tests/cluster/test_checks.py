import os
import subprocess
import time
from itertools import combinations

import psutil
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from brickreel.cluster import fabric
from brickreel.cluster.checks import (
    at_least,
    at_most,
    compute,
    gpus,
    inherited,
    links,
    pairs,
    software,
    storage,
    traffic,
    verdict,
)
from brickreel.cluster.checks.collective import Timing
from brickreel.telemetry.gpu import Event
from cluster import sysfs


@pytest.fixture
def root(tmp_path):
    return sysfs.hgx(tmp_path)


def reasons(checks):
    return " ".join(check.reason for check in checks)


def test_limits_decide():
    assert [at_least("x", "n", value, "", 10, 5, "r").result for value in (4, 5, 9, 10)] == [
        "fail",
        "warn",
        "warn",
        "pass",
    ]
    assert [at_most("x", "n", value, "", 10, 50, "r").result for value in (10, 11, 51)] == ["pass", "warn", "fail"]


def test_the_worst_result_is_the_verdict():
    checks = [at_least("x", "n", 10, "", 10, 5, ""), at_least("x", "n", 7, "", 10, 5, "")]
    assert verdict(checks) == "warn"
    assert verdict([]) == "pass"


def test_a_sound_node_passes(root):
    assert {check.result for check in links.check("n", fabric.read(root))} == {"pass"}


def test_a_link_that_is_down_is_named(root):
    sysfs.set_port(root, "mlx5_3", up=False)
    assert "mlx5_3:1 is DOWN / Polling" in reasons(links.check("n", fabric.read(root)))


def test_a_rail_at_half_its_rate_is_named(root):
    sysfs.set_port(root, "mlx5_5", rate=200)
    assert "mlx5_5:1 runs at 200 Gb/s, its peers at 400" in reasons(links.check("n", fabric.read(root)))


def test_a_gpu_with_half_its_lanes_is_named(root):
    (next((root / "sys/bus/pci/devices").iterdir()) / "current_link_width").write_text("8\n")
    assert "has 8 of 16 PCIe lanes" in reasons(links.check("n", fabric.read(root)))


def test_a_node_without_special_network_has_nothing_to_check(tmp_path):
    assert links.check("n", fabric.read(tmp_path)) == []


ROW = {"ecc_uncorrected": 0, "remap_pending": 0, "remap_failed": 0, "throttle_bits": 0, "gpu_mem_used_b": 2**29}


def test_sound_gpus_pass():
    (check,) = gpus.check("n", {"gpu0": ROW}, {"gpu0": ROW}, [])
    assert check.result == "pass"
    assert gpus.check("n", {}, {}, []) == []


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        ({"ecc_uncorrected": 2}, "gpu0 has uncorrected ECC errors (2)"),
        ({"remap_pending": 1}, "pending row remap"),
        ({"remap_failed": 1}, "failed row remaps"),
        ({"throttle_hw_s": 3.0}, "heat (hardware limit)"),
        ({"throttle_bits": 0x80}, "power brake"),
    ],
)
def test_an_unwell_gpu_is_named(after, sentence):
    (check,) = gpus.check("n", {"gpu0": ROW}, {"gpu0": ROW | after}, [])
    assert check.result == "fail"
    assert sentence in check.reason


def test_events_and_foreign_memory_are_named():
    before = {"gpu1": ROW | {"gpu_mem_used_b": 30 * 2**30}}
    (check,) = gpus.check("n", before, before, [Event("gpu1", "xid", "79")])
    assert "XID 79" in check.reason
    assert "30.0 GiB in use by others" in check.reason


def test_a_downed_nvlink_is_named():
    assert gpus.check_nvlinks("n", {}) == []
    (sound,) = gpus.check_nvlinks("n", {"gpu0": (18, 18)})
    assert sound.result == "pass"
    (check,) = gpus.check_nvlinks("n", {"gpu0": (18, 18), "gpu3": (16, 18)})
    assert check.result == "fail"
    assert "gpu3 has 16 of 18 NVLinks up" in check.reason


def test_who_else_computes_on_a_gpu_is_named():
    own = os.getpid()
    (mine,) = gpus.check_processes("n", {"gpu0": [own]}, {own})
    assert mine.result == "pass"
    (other,) = gpus.check_processes("n", {"gpu0": [], "gpu1": [own]}, set())
    assert other.result == "fail"
    assert f"gpu1 is in use by process {own}, " in other.reason
    unseen = 2**22 + 1  # above the highest number that Linux gives a process
    (strange,) = gpus.check_processes("n", {"gpu0": [unseen]}, {own})
    assert strange.result == "warn"


def test_a_process_that_died_and_was_not_collected_is_called_a_zombie():
    child = subprocess.Popen(["true"])
    try:
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        (check,) = gpus.check_processes("n", {"gpu0": [child.pid]}, set())
        assert "(a zombie)" in check.reason
    finally:
        child.wait()


def test_copies_are_judged_by_peers_and_by_the_slot():
    nodes = ["a", "a", "b", "b"]
    copies = [compute.Copies(2600, 55)] * 3 + [compute.Copies(2000, 30)]
    found = compute.check_copies(nodes, copies, 64.0)
    assert [check.result for check in found] == ["pass"] * 6 + ["fail"] * 2
    assert "rank 3 on b gets 30 GB/s from the host" in found[-1].reason
    # All are slow alike: the slot's rate tells.
    found = compute.check_copies(nodes, [compute.Copies(2600, 24)] * 4, 64.0)
    assert [check.result for check in found] == ["pass", "fail"] * 4
    assert compute.check_copies(["a"], [None], None)[0].result == "not measured"


TIMINGS = [Timing("all_reduce", 100.0, 1.0, 1.0, True, 6), Timing("all_gather", 100.0, 1.0, 1.0, True, 6)]


def test_expected_bytes_are_those_of_a_ring():
    assert traffic.expected_bytes(TIMINGS, 4) == pytest.approx(6 * 100 * 2**20 * (1.5 + 0.75))


def sent(**extra):
    return {"eth0": 0, "bond0": 0} | {f"mlx5_{index}:1": 0 for index in range(8)} | extra


def test_traffic_on_the_rails_is_the_proof(root):
    after = sent() | {f"mlx5_{index}:1": 2 * 10**9 for index in range(8)}
    check = traffic.check("n", sent(), after, 15e9, fabric.read(root), "bond0", cuda=True)
    assert check.result == "pass"
    assert check.value == 16.0


def test_traffic_that_went_elsewhere_is_named(root):
    check = traffic.check("n", sent(), sent(bond0=15 * 10**9), 15e9, fabric.read(root), "bond0", cuda=True)
    assert check.result == "fail"
    assert "most went over bond0 (15 GB)" in check.reason


def test_a_rail_that_is_not_used_is_named(root):
    after = sent() | {f"mlx5_{index}:1": 2 * 10**9 for index in range(7)}
    check = traffic.check("n", sent(), after, 15e9, fabric.read(root), "bond0", cuda=True)
    assert "mlx5_7:1 carried almost nothing" in check.reason


def test_adapters_that_count_nothing_prove_nothing(root):
    counted = {"eth0": 0, "bond0": 0}
    check = traffic.check("n", counted, counted, 15e9, fabric.read(root), "bond0", cuda=True)
    assert (check.result, check.reason) == ("not measured", "the drivers of the adapters count no bytes")


def test_without_gpus_the_interface_carries_it(root):
    check = traffic.check("n", sent(), sent(bond0=10**9), 1e9, fabric.read(root), "bond0", cuda=False)
    assert check.result == "pass"
    assert traffic.check("n", {}, {}, 1e9, fabric.read(root), None, cuda=False).result == "not measured"


def test_a_flapping_link_is_named(root):
    before = fabric.read(root)
    (root / "sys/class/infiniband/mlx5_2/ports/1/counters/link_downed").write_text("1\n")
    assert "mlx5_2:1 went down 1 times" in reasons(traffic.check_flaps("n", before, fabric.read(root)))
    assert traffic.check_flaps("n", before, before) == []


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8])
def test_in_a_round_robin_everybody_meets_everybody_once(count):
    nodes = [f"n{index}" for index in range(count)]
    plan = pairs.rounds(nodes)
    met = [tuple(sorted(pair)) for meeting in plan for pair in meeting]
    assert sorted(met) == sorted(combinations(nodes, 2))
    assert all(len({node for pair in meeting for node in pair}) == 2 * len(meeting) for meeting in plan)


def test_the_node_whose_pairs_are_all_slow_is_named():
    speeds = dict.fromkeys(combinations("abcd", 2), 40.0) | {("a", "c"): 20.0, ("b", "c"): 22.0, ("c", "d"): 21.0}
    found = {check.node: check.result for check in pairs.check(speeds, cuda=True)}
    assert found == {"a": "pass", "b": "pass", "c": "fail", "d": "pass"}


def test_two_nodes_have_nothing_to_compare_with():
    (check,) = pairs.check({("a", "b"): 5.0}, cuda=True)
    assert check.result == "pass"


def test_the_node_that_differs_is_named():
    alike = {"torch": "2.13", "plan": "abc"}
    checks = software.compare(["a", "b", "c"], [alike, alike | {"torch": "2.12"}, alike])
    assert [(check.node, check.result) for check in checks] == [("b", "fail")]
    assert "b has torch 2.12 and most nodes have 2.13" in checks[0].reason


def test_a_file_that_was_cut_short_is_not_a_whole_dataset(tmp_path):
    index = pa.table({"file": ["a.safetensors", "b.safetensors", "a.safetensors"]})
    for name in ("a", "b"):
        save_file({"x": torch.zeros(100), "y": torch.zeros(3)}, tmp_path / f"{name}.safetensors")
    assert storage.check_dataset("n", index, tmp_path).result == "pass"
    whole = (tmp_path / "b.safetensors").read_bytes()
    for damaged in (whole[:-4], b"", b"not one", whole[:4]):
        (tmp_path / "b.safetensors").write_bytes(damaged)
        check = storage.check_dataset("n", index, tmp_path)
        assert (check.result, check.value) == ("fail", 1)
        assert "b.safetensors of the dataset can not be read here" in check.reason


def test_room_for_checkpoints_is_what_the_plan_says_less_what_is_there(tmp_path):
    folder = tmp_path / "checkpoints"
    assert storage.check_space("n", folder, 0.001).result == "pass"
    check = storage.check_space("n", folder, 1e6)
    assert check.result == "fail"
    assert "the checkpoints that the run keeps need 1e+06 more" in check.reason
    (folder / "step-1").write_bytes(bytes(2**20))
    assert storage.check_space("n", folder, 1 / 1024).value is not None
    assert storage.check_space("n", folder, 1 / 1024).threshold == "warn below 0, fail below 0"
    assert storage.check_space("n", folder, None).result == "not measured"


def efa(root):
    """The node's adapters as AWS shows its own: active, with a link layer that the kernel has no name for."""
    for path in root.glob("sys/class/infiniband/*/ports/*/link_layer"):
        path.write_text("Unknown\n")
    return fabric.read(root)


def test_a_fabric_that_is_neither_infiniband_nor_roce_is_not_measured(root):
    found = efa(root)
    adapters = links.check("n", found)[0]
    assert (adapters.name, adapters.result) == ("network adapters", "not measured")
    assert "mlx5_0:1 (Unknown)" in adapters.reason
    check = traffic.check("n", sent(), sent(bond0=10**6), 15e9, found, "bond0", cuda=True)
    assert check.result == "not measured"
    assert "mlx5_0:1" in check.reason
    # gloo goes over the interface there too.
    assert traffic.check("n", sent(), sent(bond0=10**9), 1e9, found, "bond0", cuda=False).result == "pass"


def test_traffic_that_no_interface_counts_is_not_measured(tmp_path):
    check = traffic.check("n", {"hsn0": 0}, {"hsn0": 10**6}, 15e9, fabric.read(tmp_path), "hsn0", cuda=True)
    assert check.result == "not measured"
    assert "another network" in check.reason


def test_gpus_on_plain_ethernet_are_judged_by_what_their_interfaces_counted(tmp_path):
    plain = fabric.read(tmp_path)
    before = {"eth0": 0, "eth1": 0}
    sound = traffic.check("n", before, {"eth0": 15 * 10**9, "eth1": 0}, 15e9, plain, "eth0", cuda=True)
    assert sound.result == "pass"
    astray = traffic.check("n", before, {"eth0": 0, "eth1": 15 * 10**9}, 15e9, plain, "eth0", cuda=True)
    assert astray.result == "fail"
    assert "most went over eth1" in astray.reason


def test_adapters_of_which_none_is_active_are_a_fault(root):
    for path in (root / "sys/bus/pci/devices").iterdir():
        path.unlink()
    for name in [*(f"mlx5_{index}" for index in range(8)), "mlx5_10"]:
        sysfs.set_port(root, name, up=False)
    assert "no network adapter is active" in reasons(links.check("n", fabric.read(root)))


TWELVE = [f"mlx5_{index}" for index in range(12)]


@pytest.mark.parametrize(
    ("value", "extra"),
    [
        ("mlx5_1", "mlx5_10, mlx5_11"),
        ("mlx5_0,mlx5_1:1", "mlx5_10, mlx5_11"),
        ("=mlx5_1", None),
        ("^mlx5_1", None),
        ("mlx5", None),
        ("mlx5,mlx5_1", None),
        ("ibp", None),
    ],
)
def test_a_device_that_is_a_prefix_of_others_is_told_from_a_prefix_that_is_meant(value, extra):
    problem = inherited.prefix_problem(value, TWELVE)
    assert problem is None if extra is None else f"also takes {extra}:" in problem


def test_a_protocol_that_is_only_slow_is_a_warning():
    found = {"NCCL_PROTO": "Simple", "NCCL_ALGO": "Ring"}
    assert [check.result for check in inherited.check("n", found, {})] == ["fail", "warn"]
