import os
import signal
import subprocess
import sys
import time

import pytest

from brickreel import files
from captions import project
from captions.project import ledger

KEY = "sk-test-0123456789abcdef"


@pytest.fixture(autouse=True)
def _in_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRICKREEL_TEST_KEY", KEY)
    monkeypatch.setattr("brickreel.captions.batch._FIRST_POLL_S", 0.02)


def test_batch_gives_the_same_captions_at_half_the_price(tmp_path):
    project.make(tmp_path, clips=1, stills=5)
    with project.serving(key=KEY) as server:
        one_by_one = project.run(url=server.url)
        batched = project.run(url=server.url, batch=True)
        assert not server.batches, "what is answered is not asked for again"
        (tmp_path / "logs/caption/ledger.jsonl").unlink()
        (tmp_path / "logs/caption/reservations.jsonl").unlink()
        assert one_by_one == batched
        batched = project.run(url=server.url, batch=True)
        assert len(server.batches) == 1
        assert server.files == {}, "the endpoint still holds files"
    for name, row in one_by_one.items():
        assert batched[name]["text"] == row["text"]
        assert batched[name]["usd"] == pytest.approx(row["usd"] / 2)
        assert batched[name]["tokens_in"] == row["tokens_in"]


def test_requests_that_failed_or_were_unusable_are_asked_for_in_another_batch(tmp_path):
    project.make(tmp_path, clips=0, stills=8)
    with project.serving(script=["500", "banned", "length", "wrong-shape", "no-choices", "429"]) as server:
        found = project.run(url=server.url, batch=True)
        assert len(server.batches) == 2
    assert {row["outcome"] for row in found.values()} == {"ok"}
    rows = ledger()
    assert len(rows) == 14
    assert [row["billed"] for row in rows].count("none") == 2
    assert sum(row["outcome"] == "failed" for row in rows) == 4


def test_request_that_the_endpoint_calls_bad_fails_alone(tmp_path):
    project.make(tmp_path, clips=0, stills=3)
    with project.serving(script=["400"]) as server:
        found = project.run(url=server.url, batch=True)
        assert len(server.batches) == 1
    assert sorted(row["outcome"] for row in found.values()) == ["failed", "ok", "ok"]


@pytest.mark.parametrize("fault", ["drop-before", "drop-after"])
def test_creation_that_was_cut_off_is_neither_lost_nor_paid_twice(tmp_path, fault):
    project.make(tmp_path, clips=0, stills=4)
    with project.serving(batch_script=[fault]) as server:
        found = project.run(url=server.url, batch=True)
        assert len(server.batches) == 1
        assert sum(server.paid.values()) == 4
    assert {row["outcome"] for row in found.values()} == {"ok"}


def test_expired_batch_keeps_its_answers_and_asks_for_the_rest(tmp_path):
    project.make(tmp_path, clips=0, stills=6)
    with project.serving(batch_script=["expired"]) as server:
        found = project.run(url=server.url, batch=True)
        assert sum(server.paid.values()) == 6
        assert len(server.batches) == 2
    assert {row["outcome"] for row in found.values()} == {"ok"}


def test_batch_that_cannot_run_ends_in_the_endpoints_words_and_costs_nothing(tmp_path):
    project.make(tmp_path, clips=0, stills=2)
    with project.serving(batch_script=["failed"]) as server:
        with pytest.raises(ValueError, match="Too many tokens"):
            project.run(url=server.url, batch=True)
        assert sum(row["usd"] for row in ledger()) == 0
        assert {row["outcome"] for row in project.run(url=server.url, batch=True).values()} == {"ok"}


def test_endpoint_without_batches_is_one_sentence(tmp_path):
    project.make(tmp_path, clips=0, stills=1)
    with project.serving() as server:
        server.no_batches = True
        with pytest.raises(ValueError, match=r"takes no batch \(404\)"):
            project.run(url=server.url, batch=True)
    assert [row["usd"] for row in ledger()] == [0.0]


def test_budget_holds_for_batches_too(tmp_path):
    project.make(tmp_path, clips=0, stills=30)
    with project.serving() as server:
        found = project.run(url=server.url, batch=True, budget_usd=0.1, max_failed_share=1.0)
        spent = (server.tokens_in * 10e-6 + server.tokens_out * 100e-6) / 2
    assert 0.05 < spent <= 0.1
    assert {row["outcome"] for row in found.values()} == {"ok", "failed"}


def test_batch_under_way_is_found_again_after_a_kill(tmp_path):
    project.make(tmp_path, clips=0, stills=5)
    with project.serving(batch_s=1.5) as server:
        settings = project.settings(server.url, batch=True)
        files.write_json("settings.json", settings.model_dump(mode="json"))
        command = [sys.executable, "-m", "brickreel", "caption", "--config", "settings.json"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not server.batches and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "results/caption/captions.parquet").exists()
        found = project.run(url=server.url, batch=True)
        assert len(server.batches) == 1
        assert sum(server.paid.values()) == 5
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert all(row["usd"] > 0 for row in found.values())
