"""Slurm's accounting, from recorded answers of sacct."""

import pytest

from brickreel.telemetry import accounting

# Two jobs: 12 was requeued once (two rows of its own), 13 has two nodes and four typed GPUs.
ANSWER = """\
12|NODE_FAIL|100|00:50.000|2|1|4000M||billing=2,cpu=2,mem=4000M,node=1
12.batch|CANCELLED|100|00:50.000|2|1||1048576K|cpu=2
12|COMPLETED|200|06:00.000|2|1|4000M||billing=2,cpu=2,mem=4000M,node=1
12.batch|COMPLETED|200|06:00.000|2|1||2097152K|cpu=2
12.extern|COMPLETED|200|00:00.001|2|1||0|cpu=2
13|CANCELLED by 1000|3600|1-02:00:00|64|2|200G||cpu=64,gres/gpu:h100=4,gres/gpu=4,node=2
13.0|CANCELLED|3600|1-02:00:00|64|2||90.5G|cpu=64
"""


def test_a_requeued_job_counts_every_time_that_it_ran():
    job = accounting.parse(ANSWER)["12"]
    assert (job.elapsed_s, job.cpu_s, job.core_s, job.state) == (300, 410, 600, "COMPLETED")
    assert job.mem_peak_gib == 2
    assert job.mem_requested_gib == pytest.approx(4000 / 1024)


def test_gpus_are_counted_once_and_memory_is_by_node():
    job = accounting.parse(ANSWER)["13"]
    assert job.gpu_s == 4 * 3600
    assert (job.mem_requested_gib, job.mem_peak_gib) == (100, 90.5)
    assert job.cpu_s == 26 * 3600
    assert job.state == "CANCELLED"


@pytest.mark.parametrize(("asked", "gib_per_node"), [("200G", 100), ("100Gn", 100), ("4Gc", 128)])
def test_memory_is_by_node_however_it_was_asked_for(asked, gib_per_node):
    row = f"13|COMPLETED|3600|1-02:00:00|64|2|{asked}||cpu=64,node=2"
    assert accounting.parse(row)["13"].mem_requested_gib == gib_per_node


def test_jobs_are_added_up_by_stage():
    jobs = accounting.parse(ANSWER)
    stages = accounting.by_stage({"12": "analyze", "13": "train", "99": "cut"}, jobs)
    assert set(stages) == {"analyze", "train"}
    assert stages["analyze"]["cpu_use_pct"] == pytest.approx(100 * 410 / 600)
    assert stages["train"]["gpu_hours_allocated"] == 4


def test_a_line_that_is_cut_is_left_out():
    assert accounting.parse("12|COMPLETED|3") == {}


@pytest.mark.parametrize(
    ("text", "value"), [("4000Mn", 4000 / 1024), ("2Gc", 2), ("1024K", 1 / 1024), ("", None), ("0", None), ("?", None)]
)
def test_memory_of_all_versions(text, value):
    assert accounting.gib(text) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("text", "value"), [("00:01.500", 1.5), ("01:00:00", 3600), ("2-00:00:01", 172801), ("", 0), ("10:00", 600)]
)
def test_times_of_all_lengths(text, value):
    assert accounting.seconds(text) == value


def test_typed_gpus_alone_are_summed():
    assert accounting.gpus("gres/gpu:a100=2,gres/gpu:h100=3") == 5
    assert accounting.gpus("cpu=4") == 0


def test_without_sacct_the_report_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    gaps = []
    assert accounting.read(["12"], gaps) == {}
    assert gaps[0][0] == "Slurm accounting"
    assert "sacct" in gaps[0][1]


def test_sacct_is_asked_for_what_is_parsed(monkeypatch, tmp_path):
    fake = tmp_path / "sacct"
    fake.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\nprintf '12|COMPLETED|10|00:05|1|1|1G||cpu=1\\n'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    gaps = []
    assert accounting.read(["12", "14"], gaps)["12"].cpu_s == 5
    assert "-j 12,14" in (tmp_path / "asked").read_text()
    assert "JobIDRaw" in (tmp_path / "asked").read_text(), "a job of an array is told its raw number"
    assert gaps == [("Slurm accounting", "1 jobs are not in it, such as 14")]
