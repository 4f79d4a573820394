"""Every file that `make demo` wrote: known, whole, and of its schema. Runs where the demo has run; always in CI."""

import os
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from brickreel import files, tables
from brickreel.films import video

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"

pytestmark = pytest.mark.skipif(
    not (DEMO / "results/report/index.html").exists() and not os.environ.get("CI"),
    reason="the demo has not run here: make demo",
)

TABLES = {
    r"results/ingest/sources\.parquet": "sources",
    r"results/analyze/\d+\.parquet": "signals",
    r"results/curate/clips\.parquet": "clips",
    r"results/cut/index\.parquet/\d+\.parquet": "cut_index",
    r"results/caption/captions\.parquet/\d+\.parquet": "captions",
    r"results/encode/index\.parquet/\d+\.parquet": "encode_index",
    r"results/sample/demo/step-\d{8}/samples\.parquet": "samples",
}
LOGS = {
    r"results/train/demo/attempts\.jsonl": "attempts",
    r"results/train/demo/steps/\d+-\d+\.jsonl": "steps",
    r"results/train/demo/gauge\.jsonl": "gauge",
}


def written(pattern):
    paths = [path for path in DEMO.rglob("*") if path.is_file() and ".snakemake" not in path.parts]
    return [path for path in paths if re.fullmatch(pattern, path.relative_to(DEMO).as_posix())]


@pytest.mark.parametrize("pattern", TABLES)
def test_tables_have_their_schema(pattern):
    found = written(pattern)
    assert found
    for path in found:
        tables.read(TABLES[pattern], path)


@pytest.mark.parametrize("pattern", LOGS)
def test_logs_have_their_schema(pattern):
    found = written(pattern)
    assert found
    assert sum(tables.read_log(LOGS[pattern], path).num_rows for path in found) > 0


def test_no_table_is_unknown():
    known = {path for pattern in TABLES for path in written(pattern)}
    strange = [path for path in written(r"results/.*\.parquet") if path not in known]
    assert [path for path in strange if b"brickreel.table" not in (pq.read_schema(path).metadata or {})] == []


def test_json_files_are_whole():
    found = written(r"results/.*\.json")
    assert len(found) > 20
    for path in found:
        files.read_json(path)


def test_weights_and_latents_are_safetensors():
    found = written(r"results/.*\.safetensors")
    assert len(found) > 4
    for path in found:
        with safe_open(path, "pt") as stream:
            assert stream.keys()


def test_no_pickle_was_written():
    assert written(r"results/.*\.(pt|pth|ckpt|bin|pkl)") == []


def test_every_clip_in_the_index_has_the_frames_it_names():
    rows = tables.read("cut_index", DEMO / "results/cut/index.parquet").to_pylist()
    clips = [row for row in rows if row["outcome"] == "ok" and row["kind"] == "clip"]
    assert len(clips) > 30
    for row in clips[:: max(1, len(clips) // 8)]:
        path = Path(row["path"])
        assert len(video.read(path if path.is_absolute() else DEMO / path)) == row["frames"]


def test_every_row_has_an_outcome_and_dropped_ones_a_reason():
    for pattern, name in TABLES.items():
        for path in written(pattern):
            rows = tables.read(name, path, columns=["outcome", "reason"]).to_pylist()
            assert all(row["reason"] for row in rows if row["outcome"] != "ok"), path


def test_no_film_is_in_training_and_held_out():
    clips = tables.read("clips", DEMO / "results/curate/clips.parquet", ["film_id", "split", "outcome"]).to_pylist()
    films = {split: {row["film_id"] for row in clips if row["split"] == split} for split in ("train", "heldout")}
    assert films["train"]
    assert films["heldout"]
    assert films["train"].isdisjoint(films["heldout"])


def test_samples_show_before_and_after():
    steps = sorted(path.name for path in (DEMO / "results/sample/demo").glob("step-*"))
    assert steps[0] == "step-00000000"
    assert len(steps) >= 2
    for step in steps:
        found = list((DEMO / "results/sample/demo" / step).glob("*.mp4"))
        assert found
        assert video.read(found[0]).ndim == 4


def test_bad_films_ended_with_a_reason():
    rows = tables.read("sources", DEMO / "results/ingest/sources.parquet").to_pylist()
    assert sum(row["outcome"] == "ok" for row in rows) >= 8
    assert sum(row["outcome"] != "ok" for row in rows) >= 2


def test_the_page_asks_nothing_of_the_network():
    page = (DEMO / "results/report/index.html").read_text(encoding="utf-8")
    assert re.findall(r"""(?:src|href)=["']?(?:https?:)?//[^"' >]+""", page) == []


def test_nothing_half_written_is_left():
    assert [path for path in written(r"results/.*") if path.name.startswith(".")] == []
