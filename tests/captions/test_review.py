import csv
import io
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from brickreel.captions import corrections, review
from captions import project

FIELDS = dict.fromkeys(("subjects", "action", "camera", "setting", "style"), "")


@pytest.fixture(autouse=True)
def _in_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def row(clip_id, text, kind="clip", outcome="ok", reason=""):
    extra = {"confidence": 0.5, "source": "machine", "model": "m", "outcome": outcome, "reason": reason}
    return {"clip_id": clip_id, "kind": kind, "text": text, **FIELDS, **extra}


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
    index = [{"clip_id": evil, "kind": "clip", "path": 'results/cut/clips/a "b"<c>.mp4'}]
    review.write(tmp_path, [row(evil, evil), row("x", evil, outcome="dropped", reason=evil)], index, None)
    text = (tmp_path / "review.html").read_text()
    assert text.count("<script>") == 1
    assert "<b>" not in text
    assert '"b"' not in text


def test_statistics_count_outcomes_lengths_and_near_identical_clips():
    rows = [row(f"c{i}", "One two three four five six.") for i in range(3)]
    rows += [row("d", "Quite another text with eight words in it."), row("e", None, outcome="failed", reason="why")]
    found = review.summarise(rows)
    assert found["outcomes"] == {"ok": 4, "failed": 1}
    assert found["reasons"] == {"why": 1}
    assert (found["words"]["least"], found["words"]["most"]) == (6, 8)
    assert sum(bar["count"] for bar in found["words"]["histogram"]) == 4
    assert found["near_identical"]["clips"] == 3
    assert found["near_identical"]["groups"][0]["clip_ids"] == ["c0", "c1", "c2"]


def test_no_captions_at_all_make_a_page_too(tmp_path):
    review.write(tmp_path, [], [], None)
    assert json.loads((tmp_path / "review.json").read_text())["words"]["median"] is None


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
