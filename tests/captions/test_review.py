import csv
import io
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from brickreel import tables
from brickreel.captions import corrections, review
from captions import project

FIELDS = dict.fromkeys(("subjects", "action", "camera", "setting", "style"), "")


@pytest.fixture(autouse=True)
def _in_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def row(clip_id, text, kind="clip", outcome="ok", reason=""):
    extra = {"confidence": 0.5, "source": "machine", "model": "m", "outcome": outcome, "reason": reason}
    return dict.fromkeys(tables.SCHEMAS["captions"].names) | {
        "clip_id": clip_id,
        "kind": kind,
        "text": text,
        **FIELDS,
        **extra,
    }


def write(folder, captions, paths=()):
    """The page of these captions, and what `review.json` says."""
    files_of = [project.index_row(clip_id, kind, Path(path)) for clip_id, kind, path in paths]
    tables.write("captions", folder / "captions.parquet", captions)
    tables.write("cut_index", folder / "index.parquet", files_of)
    review.write(folder, folder / "captions.parquet", folder / "index.parquet", None)
    return (folder / "review.html").read_text(), json.loads((folder / "review.json").read_text())


def test_last_shard_writes_the_page_and_its_clips_can_be_opened_from_it(tmp_path):
    project.make(tmp_path, clips=2, stills=30)
    project.run(shard="0/2")
    page = tmp_path / "results/caption/review.html"
    assert not page.exists()
    found = project.run(shard="1/2")
    text = page.read_text()
    addresses = re.findall(r'<(?:video|img)[^>]* src="([^"]+)"', text)
    assert len(addresses) == review.SHOWN
    assert all((page.parent / unquote(address)).resolve().is_file() for address in addresses)
    shown = re.findall(r'<textarea data-clip="([^"]+)" data-kind="([^"]+)">([^<]+)</textarea>', text)
    assert len(shown) == review.SHOWN
    assert all(found[clip, kind]["text"] == said for clip, kind, said in shown)


def test_same_captions_give_the_same_page(tmp_path):
    project.make(tmp_path, clips=0, stills=25)
    project.run()
    first = Path("results/caption/review.html").read_text()
    project.run()
    assert Path("results/caption/review.html").read_text() == first


def test_texts_cannot_break_out_of_the_page(tmp_path):
    evil = '</textarea><script>alert(1)</script> "onerror=x" & <b>'
    rows = [row(evil, evil), row("x", evil, outcome="dropped", reason=evil)]
    text, _ = write(tmp_path, rows, [(evil, "clip", 'results/cut/clips/a "b"<c>.mp4')])
    assert text.count("<script>") == 1
    assert "<b>" not in text
    assert '"b"' not in text


def test_statistics_count_outcomes_lengths_and_near_identical_clips(tmp_path):
    rows = [row(f"c{i}", "One two three four five six.") for i in range(3)]
    rows += [row("d", "Quite another text with eight words in it."), row("e", None, outcome="failed", reason="why")]
    text, found = write(tmp_path, rows)
    assert found["outcomes"] == {"ok": 4, "failed": 1}
    assert found["reasons"] == {"why": 1}
    assert (found["words"]["least"], found["words"]["median"], found["words"]["most"]) == (6, 6, 8)
    assert (found["distinct"], found["words"]["vocabulary"]) == (2, 14)
    assert sum(bar["count"] for bar in found["words"]["histogram"]) == 4
    assert found["near_identical"]["clips"] == 3
    assert found["near_identical"]["groups"][0]["clip_ids"] == ["c0", "c1", "c2"]
    assert "3 clips. Either" in text


def test_of_many_captions_some_are_compared_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(review, "COMPARED", 10)
    text, found = write(tmp_path, [row(f"c{n}", "One two three four five six.") for n in range(30)])
    assert (found["near_identical"]["clips"], found["words"]["histogram"][0]["count"]) == (10, 30)
    assert "10 of 10 random clips. Either" in text


def test_what_is_shown_does_not_depend_on_the_order_of_rows_or_on_batches(tmp_path, monkeypatch):
    rows = [row(f"c{n}", f"Words {n % 7} of clip {n}.") for n in range(60)]
    paths = [(one["clip_id"], "clip", one["clip_id"]) for one in rows]
    first = write(tmp_path, rows, paths)
    monkeypatch.setattr(tables, "BATCH", 7)
    assert write(tmp_path, rows[::-1], paths) == first
    shown = re.findall(r'data-clip="([^"]+)"', first[0])
    assert len(shown) == review.SHOWN
    assert shown != sorted(shown)


def test_no_captions_at_all_make_a_page_too(tmp_path):
    assert write(tmp_path, [])[1]["words"]["median"] is None


def test_money_stands_on_the_page_beside_its_forecast(tmp_path, monkeypatch):
    monkeypatch.setenv("BRICKREEL_TEST_KEY", "sk-test")
    project.make(tmp_path, clips=0, stills=4)
    with project.serving() as server:
        found = project.run(url=server.url, budget_usd=3)
    budget = json.loads(Path("results/caption/review.json").read_text())["budget"]
    assert budget["usd"] == pytest.approx(sum(r["usd"] for r in found.values()))
    assert budget["usd_forecast"] == json.loads(Path("results/caption/forecast.json").read_text())["usd"] > 0
    assert "budget 3.00 USD" in Path("results/caption/review.html").read_text()


def test_rows_as_the_page_saves_them_are_corrections(tmp_path):
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(
        [["clip_id", "kind", "text"], ["s0", "still", 'A "person" wrote this, by hand.'], ["s1", "still", ""]]
    )
    Path("corrections.csv").write_text(buffer.getvalue() + '"s0","still","Later words win over it."\n')
    found = corrections.read(Path("corrections.csv"))
    assert found["s0", "still"].answer.caption == "Later words win over it."
    assert found["s1", "still"].outcome == "dropped"
