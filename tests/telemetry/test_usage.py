"""Recordings reduced to summaries, against answers computed by hand."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from brickreel.telemetry import columns, digest, recordings, usage
from brickreel.telemetry.recordings import Event, Recording

NAN = float("nan")


def device(kind, seconds=11, **values):
    rows = {name: np.full(seconds, NAN) for name in kind}
    rows |= {"time_s": 1000.0 + np.arange(seconds), "mono_s": np.arange(seconds, dtype=float)}
    return rows | {name: np.asarray(value, float) for name, value in values.items()}


def recording(node="node0", attempt=1, events=(), job_id="", **devices):
    host = devices.pop("host", device(columns.HOST, tree_cpu_s=2.0 * np.arange(11) + 5, allowed_cores=np.full(11, 4)))
    return Recording(
        "train",
        "run",
        attempt,
        node,
        Path("x"),
        {"period_s": "1.0", "job_id": job_id},
        {"": host, **devices},
        list(events),
    )


def test_a_recording_of_a_real_gpu_says_what_it_did(tmp_path):
    """An H100 (driver 580.159.04) while `preflight` multiplied matrices on it for two of four seconds, every 0.2 s.

    Made by `brickreel launch preflight --run demo` with `telemetry.period_s: 0.2`; its UUID is replaced.
    """
    path = tmp_path / "preflight" / "demo" / "1-vm.parquet"
    path.parent.mkdir(parents=True)
    shutil.copy(Path(__file__).parent.parent / "data" / "telemetry" / "h100-preflight.parquet", path)
    recording = recordings.read(path)
    found = usage.gpu(recording, "gpu0")
    assert found["name"] == "NVIDIA H100 80GB HBM3"
    assert found["mem_total_b"] / 2**30 == pytest.approx(79.65, abs=0.01)
    # The counter is ahead of the power, which NVML averages over the last second: the work ended with the recording.
    rows = recording.devices["gpu0"]
    assert 1.2 < found["energy_j"] / np.trapezoid(rows["gpu_power_w"], rows["mono_s"]) < 2
    busiest = int(np.nanargmax(rows["tensor_pct"]))
    assert rows["tensor_pct"][busiest] > 90
    assert rows["sm_active_pct"][busiest] > rows["tensor_pct"][busiest]
    assert rows["gpu_power_w"].max() == pytest.approx(393, abs=1)
    assert found["nvlink_errors"] is None
    assert found["throttle_thermal_pct"] == 0
    assert found["throttle_power_pct"] == pytest.approx(16, abs=0.1)


def test_cpu_before_the_first_sample_is_the_stages_but_no_load():
    host = usage.host(recording())
    assert host["cpu_s"] == 25
    assert host["cpu_recorded_s"] == 20
    stage = usage.stage("train", [digest.digest(recording(), np.linspace(1000, 1011, 6))])
    assert stage["cores_mean"] == pytest.approx(2)
    assert stage["cpu_use_pct"] == pytest.approx(50)
    assert stage["cpu_core_hours"] == pytest.approx(25 / 3600)


def test_in_a_slurm_job_the_cgroup_counts_and_elsewhere_the_processes():
    rows = device(columns.HOST, tree_cpu_s=np.arange(11), cgroup_cpu_s=3.0 * np.arange(11))
    assert usage.host(recording(host=rows))["cpu_recorded_s"] == 10
    assert usage.host(recording(host=rows, job_id="7"))["cpu_recorded_s"] == 30


def test_what_shards_side_by_side_saw_of_a_gpu_counts_once():
    gpu = device(columns.GPU, gpu_energy_j=400.0 * np.arange(11))
    edges = np.linspace(1000, 1011, 6)
    shards = [digest.digest(recording(attempt=number, gpu0=gpu, gpu1=gpu), edges) for number in range(8)]
    stage = usage.stage("train", [*shards, digest.digest(recording(node="node1", gpu0=gpu), edges)])
    assert stage["gpu_hours_seen"] == pytest.approx(3 * 10 / 3600)
    assert stage["gpu_kwh"] == pytest.approx(3 * 4000 / 3.6e6)


def test_missing_samples_lower_the_coverage():
    rows = device(columns.HOST)
    rows = {name: values[[0, 1, 2, 3, 10]] for name, values in rows.items()}
    assert usage.host(recording(host=rows))["coverage_pct"] == pytest.approx(100 * 5 / 11)


def test_a_gpus_energy_throttling_and_errors():
    gpu = device(
        columns.GPU,
        gpu_energy_j=600.0 * np.arange(11),
        throttle_hw_s=0.25 * np.arange(11),
        sm_active_pct=[0] + [80] * 10,
        sm_mhz=np.full(11, 990),
        sm_max_mhz=np.full(11, 1980),
        ecc_uncorrected=[0] * 5 + [2] * 6,
    )
    events = [Event(1003.0, "gpu0", "xid", "79"), Event(1000.0, "gpu0", "device", "NVIDIA H100|GPU-1")]
    found = usage.gpu(recording(events=events, gpu0=gpu), "gpu0")
    assert found["name"] == "NVIDIA H100"
    assert found["energy_j"] == 6000
    assert found["throttle_hw_pct"] == pytest.approx(25)
    assert found["sm_active_pct"] == pytest.approx(800 / 11)
    assert found["clock_ratio_pct"] == pytest.approx(50)
    assert (found["ecc_uncorrected"], found["xids"]) == (2, ["79"])
    assert found["tensor_pct"] is None
    assert found["throttle_power_pct"] is None


def test_a_stages_gpu_hours_and_energy_are_those_of_all_its_nodes():
    gpu = device(columns.GPU, gpu_energy_j=360.0 * np.arange(11), sm_active_pct=np.full(11, 50))
    idle = device(columns.GPU, sm_active_pct=np.zeros(11))
    edges = np.array([1000, 1011.0])
    parts = [digest.digest(recording(node, gpu0=gpu, gpu1=idle), edges) for node in ("a", "b")]
    stage = usage.stage("train", parts)
    assert stage["gpu_hours_seen"] == pytest.approx(4 * 10 / 3600)
    assert stage["gpu_kwh"] == pytest.approx(2 * 3600 / 3.6e6)
    assert stage["sm_active_pct"] == pytest.approx(25)
    assert usage.stage("cut", [digest.digest(recording(), edges)])["gpu_hours_seen"] is None


def test_a_ports_traffic_is_in_gigabits():
    port = device(columns.INFINIBAND, ib_tx_b=1.25e9 * np.arange(11), ib_link_downed=[0] * 10 + [1])
    found = usage.port(recording(**{"mlx5_0/1": port}), "mlx5_0/1")
    assert found["tx_gb_s"] == pytest.approx(10)
    assert found["link_downed"] == 1
    assert found["rx_gb_s"] is None


@pytest.mark.parametrize(
    ("spans", "length"), [([(0, 10), (5, 20), (30, 40)], 30), ([(0, 10), (2, 3)], 10), ([], 0), ([(5, 5)], 0)]
)
def test_parts_side_by_side_count_once(spans, length):
    assert usage.covered_s(spans) == length


def test_the_largest_and_the_sum_of_nothing_are_not_zero():
    assert usage.total([None, None]) is usage.largest([None]) is None
    assert usage.total([None, 2]) == usage.largest([None, 2]) == 2


def test_a_series_shows_the_means_of_equal_stretches():
    gpu = device(columns.GPU, sm_active_pct=[10, 20, 30, 40, 50, 60, 70, 80, 90, 100, NAN])
    made = digest.digest(recording(gpu0=gpu), np.array([1000, 1005, 1010.0]))
    assert made.series[("gpu0", "sm_active_pct")].tolist() == [30, 80]
    assert ("gpu0", "tensor_pct") not in made.series


def test_stretches_are_never_shorter_than_two_samples():
    assert len(digest.edges_of([(0.0, 10.0, 1.0)])) == 6
    assert len(digest.edges_of([(0.0, 86400.0, 1.0)])) == digest.MOST_COLUMNS + 1
    assert len(digest.edges_of([(0.0, 0.5, 1.0)])) == 2


def test_of_two_attempts_on_a_node_the_later_one_counts_where_they_overlap():
    edges = np.array([1000, 1005, 1011.0])
    first = digest.digest(recording(gpu0=device(columns.GPU, sm_active_pct=[10] * 11)), edges)
    second = digest.digest(recording(attempt=2, gpu0=device(columns.GPU, sm_active_pct=[NAN] * 6 + [50] * 5)), edges)
    assert digest.merged([second, first], "node0", ("gpu0", "sm_active_pct")).tolist() == [10, 50]


def test_reading_a_day_of_a_node_twice_gives_the_same(tmp_path):
    assert digest.read_all(tmp_path / "none", []) == []
    assert recordings.paths(tmp_path) == []


def shard(job_id, attempt, seconds=11, start=0, node="node0"):
    """A recording whose cgroup used four cores, wrote 100 bytes a second and lost a process to the memory limit."""
    ticks = np.arange(seconds, dtype=float)
    rows = device(columns.HOST, seconds, tree_cpu_s=ticks, cgroup_cpu_s=4 * ticks, cgroup_write_b=100 * ticks,
                  cgroup_read_b=0 * ticks, cgroup_oom_kills=np.minimum(ticks, 1),
                  allowed_cores=np.full(seconds, 4))  # fmt: skip
    rows["time_s"] = rows["time_s"] + start
    return digest.digest(recording(node, attempt, job_id=job_id, host=rows), np.array([1000, 2000.0]))


def test_parts_side_by_side_in_one_job_share_its_cgroup():
    stage = usage.stage("train", [shard("7", number) for number in range(4)])
    assert stage["cpu_core_hours"] == pytest.approx(4 * 10 / 3600)
    assert (stage["cores_mean"], stage["cores_allowed"]) == (pytest.approx(4), 4)
    assert stage["cpu_use_pct"] == pytest.approx(100)
    assert stage["write_gib"] == pytest.approx(1000 / 2**30)
    assert stage["oom_kills"] == 1


def test_jobs_of_their_own_and_parts_one_after_the_other_are_added_up():
    apart = usage.stage("train", [shard("7", 1), shard("8", 2), shard("7", 3, node="node1")])
    assert apart["cpu_core_hours"] == pytest.approx(3 * 4 * 10 / 3600)
    after = usage.stage("train", [shard("7", 1), shard("7", 2, start=100)])
    assert after["cpu_core_hours"] == pytest.approx(2 * 4 * 10 / 3600)
    assert after["oom_kills"] == 2


def test_processes_side_by_side_outside_slurm_are_added_up():
    assert usage.stage("train", [shard("", 1), shard("", 2)])["cpu_core_hours"] == pytest.approx(2 * 10 / 3600)


def test_a_node_without_a_recording_has_a_row_and_one_that_stopped_says_so():
    edges = np.array([1000, 1011.0])
    rows = usage.nodes([digest.digest(recording("a"), edges)], {"a": 40.0, "b": 40.0})
    told = [(row["node"], row["coverage_pct"], row["recorded_hours"], row["of_hours"]) for row in rows]
    assert told == [("a", pytest.approx(25), 10 / 3600, 40 / 3600), ("b", 0, 0, 40 / 3600)]
    assert [usage.is_short(row) for row in rows] == [True, True]
    assert rows[1]["cores_mean"] is None, "never 0"
    (whole,) = usage.nodes([digest.digest(recording("a"), edges)], {"a": 20.0})
    assert not usage.is_short(whole), "the last batch of a running job is not written yet"


def test_energy_is_that_of_the_time_between_its_readings():
    gpu = device(columns.GPU, gpu_energy_j=[0, 600, 1200, *[NAN] * 8])
    found = usage.gpu(recording(gpu0=gpu), "gpu0")
    assert (found["energy_j"], found["energy_s"], found["wall_s"]) == (1200, 2, 10)


def test_the_lowest_line_rate_of_a_port_is_kept():
    rates = np.where(np.arange(11) < 3, 400.0, 100.0)
    found = usage.port(recording(**{"mlx5_0/1": device(columns.INFINIBAND, ib_rate_gb_s=rates)}), "mlx5_0/1")
    assert (found["line_rate_gb_s"], found["line_rate_lowest_gb_s"]) == (400, 100)
