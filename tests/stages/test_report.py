"""`brickreel report` at any time: in an empty folder, while files are half-written, twice, from the command line."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pytest

from brickreel import config, files, tables
from brickreel.stages import report
from brickreel.telemetry import project
from films import memory
from telemetry import fleet, rich_project


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def summary():
    report.run(config.load("config.json"))
    return json.loads(open("results/report/summary.json").read())


def gaps():
    return {gap["what"]: gap["why"] for gap in summary()["gaps"]}


def test_the_command_line_writes_the_page_and_prints_the_summary(folder):
    fleet.configuration(folder, "one")
    words = [sys.executable, "-m", "brickreel", "report", "--config", "config.json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Run one: not started" in done.stdout
    assert sorted(os.listdir("results/report")) == ["index.html", "summary.json"]


def test_broken_files_are_gaps_with_their_reasons(folder):
    rich_project.write(folder)
    (folder / "results/ingest/sources.parquet").write_bytes(b"PAR1 no more")
    (folder / "results/plan/big/plan.json").write_text('{"steps": ')
    (folder / "results/preflight/big/health.json").write_text("[]")
    (folder / "results/train/big/steps/0-1.jsonl").write_text('{"step": "x"}\n')
    (folder / "logs/telemetry/train/big/1-node001.arrow").write_bytes(b"")
    found = gaps()
    assert "not valid JSON" in found["big: plan"]
    assert {"sources and licences", "big: preflight", "telemetry of train/big/1-node001"} <= set(found)
    assert any(what.startswith("big: steps in 0-1") for what in found)


def test_a_table_of_another_version_is_a_gap(folder):
    fleet.configuration(folder, "one")
    path = folder / "results/curate/clips.parquet"
    path.parent.mkdir(parents=True)
    pa.parquet.write_table(pa.table({"a": [1]}), path)
    assert "what curation kept and dropped" in gaps()


def test_a_line_that_is_being_written_is_left_out(folder):
    rich_project.write(folder)
    for path in ("attempts.jsonl", "gauge.jsonl", "steps/0-0.jsonl"):
        with (folder / "results/train/big" / path).open("a") as log:
            log.write('{"attempt": 1, "ev')
    assert summary()["runs"][0]["steps_kept"] > 100


def test_runs_that_are_no_longer_configured_are_reported_too(folder):
    rich_project.write(folder, evil="plain")
    fleet.configuration(folder, "other")
    assert [run["run"] for run in summary()["runs"]] == ["other", "big"]


def test_writing_it_again_changes_nothing_but_the_time(folder):
    rich_project.write(folder)
    first, second = summary(), summary()
    assert first.pop("generated_at_s") <= second.pop("generated_at_s")
    assert first == second


def test_the_report_does_not_report_on_itself(folder):
    rich_project.write(folder)
    (folder / "logs/telemetry/report/all").mkdir(parents=True)
    (folder / "logs/telemetry/report/all/1-node.arrow").write_bytes(b"")
    assert not any("report" in gap for gap in gaps())


def test_a_video_that_is_gone_is_said_on_the_page(folder):
    rich_project.write(folder, evil="plain")
    (folder / "results/sample/big/step-00000100/one-0.mp4").unlink()
    summary()
    assert "the file is gone" in (folder / "results/report/index.html").read_text()


def test_a_caption_ledger_counts_what_was_really_paid(folder):
    rich_project.write(folder, evil="plain")
    row = dict.fromkeys(tables.SCHEMAS["ledger"].names) | {"outcome": "ok", "reason": "", "latency_s": 2.0}
    old = {name: value for name, value in row.items() if name not in tables.LATER}
    for written, usd in ((row, 0.25), (old, 0.5)):
        files.append_json_line("logs/caption/ledger.jsonl", written | {"usd": usd, "tokens_in": 10, "tokens_out": 5})
    captions = summary()["dataset"]["captions"]
    assert (captions["usd"], captions["requests"], captions["latency_mean_s"]) == (0.75, 2, 2.0)
    assert (captions["tokens_in"], captions["tokens_out"]) == (20, 10)


def test_in_small_batches_the_tables_say_the_same(folder, monkeypatch):
    rich_project.write(folder)
    whole = summary()["dataset"]
    monkeypatch.setattr(tables, "BATCH", 1)
    assert summary()["dataset"] == whole
    captions = whole["captions"]
    assert (captions["ok"], captions["words_mean"], captions["usd"]) == (3, len(rich_project.EVIL.split()), 1.5)
    assert {row["clip_id"] for row in captions["examples"]} == {"c0", "c1", "c2"}


def test_rows_of_large_tables_are_not_held(folder, monkeypatch):
    fleet.configuration(folder, "one")
    clip = rich_project.row(
        "clips", film_id="f", start_frame=0, end_frame=48, fps=24.0, pose_frames=list(range(300, 348))
    )
    tables.write("clips", "results/curate/clips.parquet", [clip | {"clip_id": f"c{n}"} for n in range(2000)])
    monkeypatch.setattr(tables, "BATCH", 100)
    whole = memory.peak(lambda: tables.read("clips", "results/curate/clips.parquet").to_pylist())
    assert memory.peak(lambda: project.read("one", [])) < whole / 4
    (row,) = project.read("one", []).clips
    assert (row["count"], row["poses"], row["frames"], row["seconds"]) == (2000, 2000 * 48, 2000 * 48, 4000.0)


def test_what_every_stage_kept_is_counted(folder):
    rich_project.write(folder, evil="plain")
    data = summary()["dataset"]
    rows = {(row["stage"], row["what"]): (row["ok"], row["of"]) for row in data["funnel"]}
    assert rows[("ingest", "films that can be read")] == (1, 2)
    assert rows[("curate", "candidate clips kept")] == (3, 4)
    assert rows[("encode", "samples encoded")] == (3, 3)
    assert data["licences"] == [{"licence": "CC0-1.0", "films": 1, "hours": pytest.approx(100 / 3600), "clips": 3}]
    assert data["curation"]["dropped"] == [{"reason": "plain", "count": 1}]
    assert data["curation"]["frames_per_pose"] == 2
    assert data["curation"]["kept_minutes"] == pytest.approx(3 * 2 / 60)
