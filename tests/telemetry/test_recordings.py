"""Reading what the sampler wrote: streams, cut streams, finished files; rates, buckets, means."""

import os
import time

import numpy as np
import pyarrow as pa
import pytest

from brickreel.telemetry import digest, recordings
from brickreel.telemetry.sampler import Stream

NAN = float("nan")


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "logs/telemetry/train/run"
    folder.mkdir(parents=True)
    return folder / "3-node1.arrow"


def write(path, samples=5, closed=True):
    stream = Stream(path, {"period_s": "1.0", "job_id": "7"})
    for second in range(samples):
        stream.add(100.0 + second, second, "", {"tree_cpu_s": 0.5 * second, "allowed_cores": 2})
        stream.add(100.0 + second, second, "gpu0", {"sm_active_pct": 10.04 * second, "gpu_energy_j": 300.0 * second})
        stream.add(100.0 + second, second, "mlx5_0/1", {"ib_tx_b": 4000 * second})
        if second == 2:
            stream.add(102.0, 2, "gpu0", {"event": "xid", "detail": "79"})
        stream.flush()
    if closed:
        stream.close()
    else:
        stream.sink.close()


@pytest.mark.parametrize("finished", [False, True])
def test_a_recording_reads_the_same_as_stream_and_as_finished_file(path, finished):
    write(path)
    found = recordings.read(recordings.finish(path) if finished else path)
    assert (found.stage, found.part, found.attempt, found.node, found.period_s) == ("train", "run", 3, "node1", 1.0)
    assert found.gpus == ["gpu0"]
    assert found.ports == ["mlx5_0/1"]
    assert found.span_s == (100.0, 104.0)
    assert found.devices["gpu0"]["gpu_energy_j"].tolist() == [0, 300, 600, 900, 1200]
    assert found.devices["gpu0"]["sm_active_pct"] == pytest.approx([0, 10.04, 20.08, 30.12, 40.16], abs=0.051)
    assert np.isnan(found.devices["gpu0"]["gpu_power_w"]).all(), "what was not measured is NaN, never 0"
    assert [(e.time_s, e.device, e.event, e.detail) for e in found.events] == [
        (pytest.approx(102.0), "gpu0", "xid", "79")
    ]


def test_what_is_no_number_is_not_measured_either(path):
    stream = Stream(path, {})
    for second in range(3):
        stream.add(100.0 + second, second, "", {})
        stream.add(100.0 + second, second, "gpu0", {"dram_pct": float("nan") if second == 1 else 25.0})
    stream.close()
    found = recordings.read(recordings.finish(path)).devices["gpu0"]["dram_pct"]
    assert np.array_equal(found, [25, np.nan, 25], equal_nan=True)


def test_finishing_removes_the_stream_and_keeps_the_span(path):
    write(path)
    assert recordings.span_of(path) == (100.0, 104.0, 1.0)
    done = recordings.finish(path)
    assert not path.exists()
    assert recordings.span_of(done) == (100.0, 104.0, 1.0)


def test_a_finished_file_is_a_tenth_of_its_stream(path):
    stream = Stream(path, {})
    noise = np.random.default_rng(0).standard_normal(600)
    for second in range(600):
        for gpu in range(4):
            values = {
                "sm_active_pct": 80 + noise[second],
                "gpu_energy_j": 600.0 * second,
                "gpu_power_w": 600 + noise[-second],
            }
            stream.add(100.0 + second, second, f"gpu{gpu}", values)
        if second % 10 == 9:
            stream.flush()
    stream.close()
    size = path.stat().st_size
    assert recordings.finish(path).stat().st_size < size / 10


def test_a_stream_without_its_end_gives_all_whole_batches(path):
    write(path, closed=False)
    assert len(recordings.read(path).devices[""]["time_s"]) == 5


def test_a_stream_cut_in_a_batch_gives_those_before(path):
    write(path, closed=False)
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    assert 3 <= len(recordings.read(path).devices[""]["time_s"]) <= 5


@pytest.mark.parametrize("content", [b"", b"not arrow at all, but long enough to be read as something"])
def test_a_file_without_samples_is_a_sentence(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"nothing was written|no sample"):
        recordings.read(path)
    with pytest.raises(ValueError, match=r"nothing was written|no sample"):
        recordings.span_of(path)


def test_a_table_of_somebody_else_is_a_sentence(path):
    other = path.with_suffix(".parquet")
    pa.parquet.write_table(pa.table({"time_s": [1.0]}), other)
    with pytest.raises(ValueError, match="none of this recorder's"):
        recordings.read(other)
    with pytest.raises(ValueError, match="nothing was written"):
        recordings.span_of(other)


def test_a_stream_that_nobody_finished_is_finished_by_its_reader(path):
    write(path, closed=False)
    assert recordings.settled(path) == path, "it may still be growing"
    before = recordings.read(path).devices["gpu0"]["gpu_energy_j"].tolist()
    os.utime(path, (0, time.time() - 3600))
    done = recordings.settled(path)
    assert done.suffix == ".parquet"
    assert not path.exists()
    assert recordings.read(done).devices["gpu0"]["gpu_energy_j"].tolist() == before


def test_a_broken_stream_stays_for_its_reader_to_name(path):
    path.write_bytes(b"")
    os.utime(path, (0, 0))
    assert recordings.settled(path) == path


def test_a_finished_file_is_taken_before_its_stream(path):
    write(path)
    content = path.read_bytes()
    done = recordings.finish(path)
    path.write_bytes(content)
    assert recordings.paths(path.parents[2]) == [done]


def test_rates_leave_out_resets_and_holes():
    values, time = np.array([0, 10, 5, NAN, 20, 30.0]), np.array([0, 1, 2, 3, 4, 6.0])
    rates, lengths = recordings.rate(values, time)
    assert rates[0] == 10
    assert np.isnan(rates[1:4]).all()
    assert rates[4] == 5
    assert lengths.tolist() == [1, 1, 1, 1, 2]


def test_a_counter_rises_over_a_hole_and_a_reset_loses_nothing_before_it():
    assert recordings.increase(np.array([5, NAN, 10, 2, 4.0])) == 7
    assert recordings.increase(np.array([5, NAN])) is None


def test_bucket_means_are_exact_and_empty_ones_are_not_zero():
    means = recordings.bucket_means(np.array([0, 1, 2, 9.0]), np.array([1, 3, NAN, 7.0]), np.array([0, 2, 4, 10.0]))
    assert means[0] == 2
    assert np.isnan(means[1])
    assert means[2] == 7


def test_nothing_measured_has_no_mean():
    empty = np.array([NAN, NAN])
    assert recordings.mean(empty) is recordings.highest(empty) is recordings.percentile(empty, 99) is None


def test_quantiles_are_numpys_and_columns_without_values_have_none():
    values = np.random.default_rng(0).random((9, 5))
    values[:, 2] = NAN
    values[3, 4] = NAN
    known = [0, 1, 3, 4]
    for share, made in zip(
        (0, 0.05, 0.5, 0.95, 1), recordings.column_quantiles(values, (0, 0.05, 0.5, 0.95, 1)), strict=True
    ):
        assert made[known] == pytest.approx(np.nanquantile(values[:, known], share, axis=0))
        assert np.isnan(made[2])


def test_a_stream_that_its_recorder_still_holds_is_not_finished_however_long_it_was_silent(path):
    """As of a suspended job: what it wrote on would go into a file that is no longer there."""
    stream = Stream(path, {})
    stream.add(100.0, 0.0, "", {})
    stream.flush()
    os.utime(path, (0, time.time() - 3600))
    assert not recordings.ended(path)
    assert recordings.settled(path) == path
    assert path.exists()
    stream.add(101.0, 1.0, "", {})
    stream.close()
    assert recordings.span_of(path)[:2] == (100.0, 101.0)
    os.utime(path, (0, time.time() - 3600))
    assert recordings.ended(path)


def test_reading_finishes_nothing_unless_it_is_told_to(path):
    write(path, closed=False)
    os.utime(path, (0, time.time() - 3600))
    folder = path.parents[2]
    (found,) = digest.read_all(folder, [])
    assert (found.ended, path.exists()) == (True, True)
    digest.read_all(folder, [], settle=True)
    assert [file.suffix for file in path.parent.iterdir()] == [".parquet"]


def test_recordings_that_do_not_belong_do_not_stretch_the_time_axis(path):
    write(path)
    other = path.with_name("4-node1.arrow")
    stream = Stream(other, {})
    for second in (1e6, 1e6 + 5):
        stream.add(second, second, "", {})
    stream.close()
    folder = path.parents[2]
    both = digest.read_all(folder, [], belongs=lambda stage, part, span_s: span_s[0] < 1e6)
    assert [(item.edges[0], round(item.edges[-1])) for item in both] == [(100.0, 104)] * 2
    assert digest.read_all(folder, [])[0].edges[-1] > 1e6
