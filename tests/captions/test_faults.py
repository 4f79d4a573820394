"""The whole stage against an endpoint that fails in every way, and killed at any moment."""

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import forked
from brickreel import files
from captions import project
from captions.project import ledger
from captions.server import FAULTS

KEY = "sk-test-0123456789abcdef"
USD_IN, USD_OUT = 10e-6, 100e-6


@pytest.fixture(autouse=True)
def _in_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRICKREEL_TEST_KEY", KEY)
    monkeypatch.setattr("brickreel.captions.pace._FIRST_WAIT_S", 0.01)


def paid_usd(server):
    return server.tokens_in * USD_IN + server.tokens_out * USD_OUT


@pytest.mark.parametrize("clips", [120, pytest.param(1000, marks=pytest.mark.slow)])
def test_with_a_fifth_of_faults_every_clip_has_one_outcome_and_every_cent_a_row(tmp_path, clips):
    project.make(tmp_path, clips=0, stills=clips)
    with project.serving(faults=0.2, seed=1) as server:
        found = project.run(url=server.url, concurrency=24, max_failed_share=0.05)
        requests = server.requests
        assert len(server.made) >= min(len(FAULTS), clips // 15)
    assert len(found) == clips
    assert {row["outcome"] for row in found.values()} <= {"ok", "dropped", "failed"}
    assert all((row["text"] is not None) == (row["outcome"] == "ok") for row in found.values())
    assert all(row["reason"] for row in found.values() if row["outcome"] != "ok")
    assert Counter(row["outcome"] for row in found.values())["ok"] >= 0.97 * clips
    rows = ledger()
    assert len(rows) == requests
    # A good answer is paid for again only where it was lost on its way.
    lost = server.made.get("drop-paid", 0)
    assert sum(n - 1 for n in server.good.values()) <= lost
    # Whatever was paid stands in the ledger; answers that were lost stand there at their highest price.
    assert sum(row["usd"] for row in rows) >= paid_usd(server)
    reported = [row for row in rows if row["billed"] == "reported"]
    unknown = sum(row["usd"] for row in rows if row["billed"] == "unknown")
    told = sum(row["tokens_in"] * USD_IN + row["tokens_out"] * USD_OUT for row in reported)
    assert sum(row["usd"] for row in rows) == pytest.approx(told + unknown)


def test_limits_of_the_endpoint_are_kept_without_failing_a_clip(tmp_path):
    project.make(tmp_path, clips=0, stills=40)
    with project.serving(faults=0.5, kinds=("429", "429-after")) as server:
        found = project.run(url=server.url, concurrency=16, attempts=1)
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert sum(row["usd"] for row in ledger()) == pytest.approx(paid_usd(server))


def test_an_endpoint_that_counts_no_tokens_is_asked_to_the_end_and_counts_at_the_highest_price(tmp_path):
    project.make(tmp_path, clips=0, stills=40)
    with project.serving(faults=1.0, kinds=("no-usage",)) as server:
        found = project.run(url=server.url, concurrency=4)
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert {row["billed"] for row in ledger()} == {"unknown"}
    assert len(ledger()) == 40


def test_answers_that_never_come_end_after_their_time_and_count_at_the_highest_price(tmp_path):
    project.make(tmp_path, clips=0, stills=2)
    with project.serving(script=["slow"]) as server:
        found = project.run(url=server.url, timeout_s=0.5, concurrency=1)
        assert server.requests == 3
    assert {row["outcome"] for row in found.values()} == {"ok"}
    late = next(row for row in ledger() if row["outcome"] == "failed")
    assert (late["reason"], late["billed"]) == ("no answer in time", "unknown")
    assert late["usd"] > max(row["usd"] for row in ledger() if row["billed"] == "reported")


def start(url, shard="0/1", **settings):
    files.write_json("settings.json", project.settings(url, **settings).model_dump(mode="json"))
    return forked.program(["-m", "brickreel", "caption", "--config", "settings.json", "--shard", shard])


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_loses_nothing_and_pays_nothing_twice(tmp_path, kills):
    clips, concurrency = 60 * kills, 8
    project.make(tmp_path, clips=0, stills=clips)
    chance = random.Random(kills)
    with project.serving(latency_s=0.05) as server:
        for _ in range(kills):
            before = server.requests
            process = start(server.url, concurrency=concurrency, budget_usd=100)
            # Somewhere between its first requests and the end.
            target = before + chance.randint(1, clips // kills)
            deadline = time.monotonic() + 60
            while server.requests < target and process.exitcode is None and time.monotonic() < deadline:
                time.sleep(chance.uniform(0.001, 0.02))
            process.kill()
            process.join()
            time.sleep(0.1)  # the server finishes, and charges for, what was in flight
        found = project.run(url=server.url, concurrency=concurrency, budget_usd=100)
    assert len(found) == clips
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert len(server.good) == clips
    assert sum(n - 1 for n in server.good.values()) <= kills * concurrency
    assert sum(row["usd"] for row in ledger()) >= paid_usd(server)


@pytest.mark.slow
def test_budget_is_kept_over_kills(tmp_path):
    project.make(tmp_path, clips=0, stills=80)
    with project.serving(latency_s=0.05) as server:
        for _ in range(3):
            process = start(server.url, budget_usd=0.5, max_failed_share=1.0, concurrency=8)
            before, deadline = server.requests, time.monotonic() + 60
            while server.requests < before + 6 and process.exitcode is None and time.monotonic() < deadline:
                time.sleep(0.005)
            process.kill()
            process.join()
        time.sleep(0.1)
        found = project.run(url=server.url, budget_usd=0.5, max_failed_share=1.0)
        assert paid_usd(server) <= 0.5
    failed = [row for row in found.values() if row["outcome"] == "failed"]
    assert failed
    assert all("budget" in row["reason"] for row in failed)


@pytest.mark.parametrize("shards", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_many_shards_at_once_share_one_budget(tmp_path, shards):
    clips = 30 * shards
    project.make(tmp_path, clips=0, stills=clips)
    with project.serving(latency_s=0.05) as server:
        budget = 0.0035 * clips  # for about two thirds of them
        processes = [
            start(server.url, f"{index}/{shards}", budget_usd=budget, max_failed_share=1.0, concurrency=8)
            for index in range(shards)
        ]
        for process in processes:
            process.join(240)
        assert [process.exitcode for process in processes] == [0] * shards
        assert 0.75 * budget < paid_usd(server) <= budget
    found = project.captions()
    assert len(found) == clips
    assert {row["outcome"] for row in found.values()} == {"ok", "failed"}
    assert sum(row["usd"] for row in ledger()) == pytest.approx(paid_usd(server))


def test_key_is_in_no_command_line_of_the_stage(tmp_path):
    project.make(tmp_path, clips=0, stills=4)
    with project.serving(key=KEY, latency_s=0.5) as server:
        files.write_json("settings.json", project.settings(server.url).model_dump(mode="json"))
        process = subprocess.Popen([sys.executable, "-m", "brickreel", "caption", "--config", "settings.json"])
        deadline = time.monotonic() + 60
        while not server.requests and time.monotonic() < deadline:
            time.sleep(0.01)
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert process.wait(60) == 0
    assert b"caption" in arguments
    assert KEY.encode() not in arguments
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
