"""The real nvidia-ml-py on the mock library: values, exact integrals, and everything that may be missing."""

import pytest

from brickreel.telemetry import gpu
from telemetry import nvml

WAITING = [
    "0 util 0 100",
    "0 sm 0 88",
    "0 tensor 0 40",
    "0 power 0 650",
    "0 mhz 0 1755",
    "0 used 0 60",
    "0 temp 0 64",
    "0 sm 10 7",
    "0 power 20 190",
    "0 sm 20 88",
]


UUIDS = {f"gpu{number}": f"GPU-{number}{number}-of-eight" for number in range(8)}


@pytest.mark.parametrize(
    ("environ", "mine"),
    [
        ({}, range(8)),
        ({"SLURM_STEP_GPUS": "2,11", "SLURM_JOB_GPUS": "0"}, [2]),
        ({"SLURM_JOB_GPUS": "4,5", "CUDA_VISIBLE_DEVICES": "5"}, [4, 5]),  # the variable is one task's
        ({"SLURM_JOB_GPUS": "8,9,10,11,12,13,14,15"}, range(8)),  # cgroups hide the others
        ({"CUDA_VISIBLE_DEVICES": "1, 3"}, [1, 3]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-66"}, [6]),
        ({"CUDA_VISIBLE_DEVICES": "MIG-0123"}, range(8)),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
    ],
)
def test_only_the_gpus_of_the_job_are_looked_at_where_nvml_shows_all(environ, mine):
    assert gpu.allotted(UUIDS, environ) == [f"gpu{number}" for number in mine]


def test_gpus_of_others_are_not_sampled(driver, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    rows = nvml.sample(driver, [*WAITING[:7], "1 util 0 3"], [0], tmp_path)
    assert list(rows[0]["values"]) == ["gpu1"]
    assert {event[0] for event in rows[0]["events"]} == {"gpu1"}


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return nvml.build(tmp_path_factory.mktemp("nvml"))


def events(rows, kind):
    return [tuple(event) for row in rows for event in row["events"] if event[1] == kind]


def test_a_gpu_that_waits_is_full_by_utilization_and_idle_by_sm_active(driver, tmp_path):
    rows = nvml.sample(driver, WAITING, [0, 10, 20, 30], tmp_path)
    values = [row["values"]["gpu0"] for row in rows]
    assert [row["kernel_time_pct"] for row in values] == [100, 100, 100, 100]
    assert [row.get("sm_active_pct") for row in values] == [
        None,
        pytest.approx(88),
        pytest.approx(7),
        pytest.approx(88),
    ]
    assert values[1]["tensor_pct"] == pytest.approx(40)


def test_gpm_gives_the_mean_of_the_interval_and_not_a_moment(driver, tmp_path):
    rows = nvml.sample(driver, WAITING, [5, 15], tmp_path)
    assert rows[1]["values"]["gpu0"]["sm_active_pct"] == pytest.approx((5 * 88 + 5 * 7) / 10)


def test_energy_is_the_exact_integral_of_power(driver, tmp_path):
    rows = nvml.sample(driver, WAITING, [0, 30], tmp_path)
    first, last = (row["values"]["gpu0"]["gpu_energy_j"] for row in rows)
    assert last - first == 20 * 650 + 10 * 190


def test_units_are_those_of_the_column_names(driver, tmp_path):
    row = nvml.sample(driver, WAITING, [1], tmp_path)[0]["values"]["gpu0"]
    assert row["gpu_power_w"] == 650
    assert row["gpu_mem_used_b"] == 60 * 2**30
    assert row["gpu_mem_total_b"] == 80 * 2**30
    assert (row["sm_mhz"], row["sm_max_mhz"], row["gpu_temp_c"]) == (1755, 1980, 64)


def test_throttling_is_cumulative_so_that_nothing_between_samples_is_missed(driver, tmp_path):
    lines = ["0 mhz 0 1755", "0 thermal 12 1", "0 mhz 12 1005", "0 thermal 12.5 0", "0 mhz 12.5 1755"]
    rows = nvml.sample(driver, lines, [0, 10, 20], tmp_path)
    values = [row["values"]["gpu0"] for row in rows]
    assert [row["throttle_bits"] for row in values] == [0, 0, 0]
    assert values[2]["throttle_hw_s"] - values[1]["throttle_hw_s"] == pytest.approx(0.5)


def test_thermal_throttling_shows_in_bits_and_clock(driver, tmp_path):
    row = nvml.sample(driver, ["0 mhz 0 1005", "0 thermal 0 1"], [1], tmp_path)[0]["values"]["gpu0"]
    assert (row["throttle_bits"], row["sm_mhz"]) == (0x40, 1005)


def test_a_lost_gpu_is_not_measured_and_the_others_go_on(driver, tmp_path):
    lines = ["0 power 0 600", "1 power 0 600", "0 xid 15 79", "0 lost 15 1"]
    rows = nvml.sample(driver, lines, [0, 10, 20, 30], tmp_path)
    assert set(rows[2]["values"]["gpu0"].values()) == {None}
    assert rows[3]["values"]["gpu1"]["gpu_power_w"] == 600
    assert events(rows, "xid") == [("gpu0", "xid", "79")]
    reasons = [detail for device, _, detail in events(rows, "not_measured") if device == "gpu0"]
    assert any("code 15" in detail for detail in reasons)
    assert len(reasons) == len(set(reasons)), "each reason is told once, not at every sample"


def test_gpm_without_permission_is_recorded_and_never_zero(driver, tmp_path):
    lines = ["0 sm 0 80", "0 nogpm 15 1", "0 nogpm 25 0"]
    rows = nvml.sample(driver, lines, [0, 10, 20, 30, 40], tmp_path)
    shown = [row["values"]["gpu0"].get("sm_active_pct") for row in rows]
    assert shown[2] is None
    assert shown[1] == shown[4] == pytest.approx(80)
    assert any("gpm_sample" in event[2] and "code 4" in event[2] for event in events(rows, "not_measured"))
    assert ("gpu0", "measured", "gpm_sample") in events(rows, "measured")


def test_an_old_driver_gives_what_it_has(tmp_path):
    library = nvml.build(tmp_path, old=True)
    rows = nvml.sample(library, ["0 power 0 600", "0 temp 0 50", "0 thermal 0 1", "0 sm 0 80"], [0, 10], tmp_path)
    row = rows[1]["values"]["gpu0"]
    assert (row["gpu_power_w"], row["gpu_temp_c"], row["throttle_bits"]) == (600, 50, 0x40)
    assert "sm_active_pct" not in row
    assert any(event[2].startswith("gpm:") for event in events(rows, "not_measured"))


def test_a_driver_that_is_not_loaded_is_a_reason(driver, tmp_path):
    rows = nvml.sample(driver, None, [0], tmp_path)
    assert rows[0]["values"] == {}
    assert events(rows, "not_measured")[0][2].startswith("gpu: ")


def test_no_library_is_a_reason(tmp_path):
    rows = nvml.sample(None, None, [0], tmp_path)
    assert rows[0]["values"] == {}
    assert "Not Found" in events(rows, "not_measured")[0][2]


def test_activity_that_is_no_number_is_not_measured(driver, tmp_path):
    rows = nvml.sample(driver, ["0 sm 0 88", "0 dram 0 nan"], [0, 10], tmp_path)
    values = rows[1]["values"]["gpu0"]
    assert values["dram_pct"] is None
    assert values["sm_active_pct"] == pytest.approx(88)


def test_uncorrected_errors_are_counted(driver, tmp_path):
    rows = nvml.sample(driver, ["0 ecc 0 0", "0 ecc 5 2"], [0, 10], tmp_path)
    assert [row["values"]["gpu0"]["ecc_uncorrected"] for row in rows] == [0, 2]


def test_nvlinks_that_are_up_are_counted_and_processes_that_compute_are_listed(driver, tmp_path):
    lines = ["0 links 0 18", "0 pid 0 4711", "1 links 0 17", "2 mhz 0 1755"]
    (row,) = nvml.sample(driver, lines, [1], tmp_path)
    assert row["nvlinks"] == {"gpu0": [18, 18], "gpu1": [17, 18]}  # up, and the most of the node
    assert row["processes"] == {"gpu0": [4711], "gpu1": [], "gpu2": []}


def test_cards_without_a_bridge_are_left_out_unless_a_peer_has_one(driver, tmp_path):
    (row,) = nvml.sample(driver, ["0 links 0 0", "1 links 0 0", "2 mhz 0 1755"], [1], tmp_path)
    assert row["nvlinks"] == {}
    (row,) = nvml.sample(driver, ["0 links 0 0", "1 links 0 12", "2 links 0 12"], [1], tmp_path)
    assert row["nvlinks"] == {"gpu0": [0, 12], "gpu1": [12, 12], "gpu2": [12, 12]}


def test_a_jobs_only_gpu_is_compared_with_the_nodes_others(driver, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (row,) = nvml.sample(driver, ["0 links 0 16", "1 links 0 18"], [1], tmp_path)
    assert row["nvlinks"] == {"gpu0": [16, 18]}


@pytest.mark.gpu
def test_a_real_gpu_at_work_is_seen_at_work():
    import torch

    gpus = gpu.Gpus()
    before = gpus.sample()["gpu0"]
    matrix = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    for _ in range(2000):
        matrix @ matrix
    torch.cuda.synchronize()
    after = gpus.sample()["gpu0"]
    found = gpus.events()
    assert [event.event for event in found][:1] == ["device"]
    assert {event.event for event in found} <= {"device", "not_measured"}
    assert after["gpu_energy_j"] > before["gpu_energy_j"]
    assert 0 < after["gpu_mem_used_b"] <= after["gpu_mem_total_b"]
    assert 0 < after["sm_mhz"] <= after["sm_max_mhz"]
    assert 10 < after["gpu_temp_c"] < 100
    if "gpm" not in "".join(event.detail for event in found):
        assert after["sm_active_pct"] > 20
        assert after["tensor_pct"] > 5
