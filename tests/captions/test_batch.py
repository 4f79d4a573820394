import asyncio
import json
import time
from pathlib import Path

import pytest

import forked
from brickreel import files
from brickreel.captions import prices
from brickreel.captions.batch import Batching
from brickreel.captions.ledger import ABOUT, Ledger, Reservation
from brickreel.captions.underway import UnderWay
from captions import project
from captions.project import ledger

KEY = "sk-test-0123456789abcdef"


@pytest.fixture(autouse=True)
def _in_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRICKREEL_TEST_KEY", KEY)
    monkeypatch.setattr("brickreel.captions.underway.FIRST_POLL_S", 0.02)
    monkeypatch.setattr("brickreel.captions.batch._CREATION_S", 0.02)


def test_batch_gives_the_same_captions_at_its_own_price(tmp_path):
    project.make(tmp_path, clips=1, stills=5)
    with project.serving(key=KEY) as server:
        one_by_one = project.run(url=server.url)
        batched = project.run(url=server.url, batch=True)
        assert not server.batches, "what is answered is not asked for again"
        (tmp_path / "logs/caption/ledger.jsonl").unlink()
        (tmp_path / "logs/caption/reservations.jsonl").unlink()
        assert one_by_one == batched
        batched = project.run(url=server.url, batch=True, usd_per_million_in=5.0, usd_per_million_out=50.0)
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


def test_error_that_is_a_sentence_alone_costs_no_answer_of_its_batch(tmp_path):
    project.make(tmp_path, clips=0, stills=3)
    with project.serving(script=["words"]) as server:
        found = project.run(url=server.url, batch=True)
        assert len(server.batches) == 2
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert [row["billed"] for row in ledger()].count("none") == 1


def test_request_that_the_endpoint_calls_bad_fails_alone(tmp_path):
    project.make(tmp_path, clips=0, stills=3)
    with project.serving(script=["400"]) as server:
        found = project.run(url=server.url, batch=True)
        assert len(server.batches) == 1
    assert sorted(row["outcome"] for row in found.values()) == ["failed", "ok", "ok"]


@pytest.mark.parametrize("fault", ["drop-before", "drop-after", "408-after", "502-after"])
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
        with pytest.raises(ValueError, match="Too many tokens") as caught:
            project.run(url=server.url, batch=True)
        assert len(str(caught.value)) < 400
        assert "\n" not in str(caught.value)
        assert sum(row["usd"] for row in ledger()) == 0
        assert {row["outcome"] for row in project.run(url=server.url, batch=True).values()} == {"ok"}


def test_batch_that_somebody_cancelled_is_not_created_again(tmp_path):
    project.make(tmp_path, clips=0, stills=4)
    with project.serving(batch_script=["cancelled"]) as server:
        with pytest.raises(ValueError, match="somebody cancelled batch batch_"):
            project.run(url=server.url, batch=True)
        assert len(server.batches) == 1
        assert [row["outcome"] for row in ledger()].count("ok") == 2, "what was answered is kept"
        project.run(url=server.url, batch=True)
        assert sum(server.paid.values()) == 4


def test_full_queue_of_the_endpoint_makes_batches_smaller_and_fails_no_clip(tmp_path):
    project.make(tmp_path, clips=0, stills=8)
    with project.serving(batch_script=["no-room", "no-room"]) as server:
        found = project.run(url=server.url, batch=True, attempts=1)
        sizes = [sum(row["billed"] == "none" for row in ledger()), sum(row["billed"] == "reported" for row in ledger())]
        assert len(server.batches) == 2 + 3, "8 and 4 had no room; then 2, 4 and the last 2"
    assert sizes == [8 + 4, 8]
    assert {row["outcome"] for row in found.values()} == {"ok"}


def test_full_queue_is_waited_for_where_others_fill_it(tmp_path, monkeypatch):
    waits = []

    async def sleep(seconds, asleep=asyncio.sleep):
        waits.append(seconds)
        await asleep(0.02)

    project.make(tmp_path, clips=0, stills=2)
    monkeypatch.setattr("brickreel.captions.batch._ROOM_S", 0.1)
    other = Ledger(Path("logs/caption"), "01/2", 50.0)
    about = dict.fromkeys(ABOUT, "x")
    other.commit([], [Reservation("r", "k", 1.0, 0, about, batch="b")])
    with project.serving(batch_script=["no-room", "no-room"]) as server:
        monkeypatch.setattr("brickreel.captions.batch.asyncio.sleep", sleep)
        project.run(url=server.url, batch=True, shard="0/2")
        project.run(url=server.url, batch=True, shard="0/2")
    assert waits.count(60.0) >= 2


def test_batches_grow_again_only_where_one_was_sent():
    settings, account = project.settings("http://127.0.0.1:9/v1").caption, Ledger(Path("logs/caption"), "0/1", 50.0)
    cost = prices.price(settings)
    batching = Batching(settings, cost, account, None, 0, UnderWay(cost, account, None, 1))
    batching.most = 4
    asyncio.run(batching._await(set(), 0, None))
    assert batching.most == 4
    asyncio.run(batching._await(set(), 4, None))
    assert batching.most == 8


def test_full_queue_for_a_single_request_is_one_sentence(tmp_path):
    project.make(tmp_path, clips=0, stills=2)
    with project.serving(batch_script=["no-room"] * 9) as server:
        with pytest.raises(ValueError, match="no room for one request"):
            project.run(url=server.url, batch=True)
        assert len(server.batches) == 2


def test_creation_is_tried_again_after_429(tmp_path):
    project.make(tmp_path, clips=0, stills=3)
    with project.serving(batch_script=["429", "429"]) as server:
        found = project.run(url=server.url, batch=True, attempts=1)
        assert len(server.batches) == 1
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert len(ledger()) == 3


def test_creation_that_gets_nothing_but_429_is_no_verdict_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("brickreel.captions.batch._PATIENCE_S", 0.15)
    project.make(tmp_path, clips=0, stills=3)
    with project.serving(batch_script=["429"] * 9) as server:
        with pytest.raises(ConnectionError, match=r"takes no batch for now \(429\): Too many batches"):
            project.run(url=server.url, batch=True)
        assert server.files == {}
    assert sum(row["usd"] for row in ledger()) == 0


def test_endpoint_that_is_away_for_a_while_is_asked_on(tmp_path, caplog):
    project.make(tmp_path, clips=0, stills=3)
    with project.serving() as server:
        server.poll_script = ["503"] * 3 + ["429"] * 3 + ["drop"] * 3
        found = project.run(url=server.url, batch=True)
        assert server.poll_script == []
        assert len(server.batches) == 1
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert [r.levelname for r in caplog.records if "no word of the batches" in r.getMessage()] == ["WARNING"]


@pytest.mark.parametrize("said", ["503", "400"])
def test_batch_that_cannot_be_followed_until_it_must_be_lost_is_asked_for_again(tmp_path, monkeypatch, said):
    monkeypatch.setattr("brickreel.captions.underway._PATIENCE_S", 0.0)
    project.make(tmp_path, clips=0, stills=3)
    with project.serving(batch_s=60) as server:
        killed_with_a_batch_under_way(server)
        server.batch_s, server.poll_script = 0, [said]
        if said == "400":
            with pytest.raises(ValueError, match=r"cannot be followed: Not now"):
                project.run(url=server.url, batch=True)
            server.poll_script = [said]
        made_older(27)
        found = project.run(url=server.url, batch=True)
        assert len(server.batches) == 2
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert [row["billed"] for row in ledger() if row["outcome"] == "failed"] == ["unknown"] * 3


def test_one_bad_answer_loses_no_batch_however_old(tmp_path):
    project.make(tmp_path, clips=0, stills=3)
    with project.serving(batch_s=1.0) as server:
        killed_with_a_batch_under_way(server)
        made_older(27)
        server.poll_script = ["503"] * 3
        found = project.run(url=server.url, batch=True)
        assert len(server.batches) == 1
    assert {row["outcome"] for row in found.values()} == {"ok"}


def test_file_of_a_batch_that_was_never_created_is_deleted(tmp_path):
    project.make(tmp_path, clips=0, stills=3)
    with project.serving(batch_script=["drop-before"]) as server:
        project.run(url=server.url, batch=True)
        assert server.files == {}


def test_money_is_asked_for_before_pictures_are_read_and_files_keep_their_size(tmp_path, monkeypatch):
    from brickreel.captions import request

    read = []

    def noting(item, settings, jpegs=request.jpegs):
        read.append(item.item.name)
        return jpegs(item, settings)

    monkeypatch.setattr(request, "jpegs", noting)
    monkeypatch.setattr("brickreel.captions.batch._MOST_BYTES", 30_000)
    project.make(tmp_path, clips=0, stills=30)
    with project.serving() as server:
        project.run(url=server.url, batch=True, budget_usd=0.1, max_failed_share=1.0)
        paid, batches = sum(server.paid.values()), len(server.batches)
        assert max(server.uploads) <= 32_000
    assert len(read) == paid < 30
    assert batches > 1


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
        found = project.run(url=server.url, batch=True, budget_usd=0.2, max_failed_share=1.0)
        spent = server.tokens_in * 10e-6 + server.tokens_out * 100e-6
    assert 0.1 < spent <= 0.2
    assert {row["outcome"] for row in found.values()} == {"ok", "failed"}


def noted(batch):
    """Whether the stage has written down the name of a batch."""
    return any(batch in path.read_text() for path in Path("logs/caption").rglob("[!.]*.json"))  # whole files alone


def made_older(hours):
    path = Path("logs/caption/reservations.jsonl")
    rows = [row | {"time_s": row["time_s"] - hours * 3600} for row in files.read_json_lines(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def killed_with_a_batch_under_way(server, shard="0/1"):
    """Start the stage in a process, and kill it as soon as it has noted the batch that the endpoint has."""
    settings = project.settings(server.url, batch=True)
    files.write_json("settings.json", settings.model_dump(mode="json"))
    process = forked.program(["-m", "brickreel", "caption", "--config", "settings.json", "--shard", shard])
    deadline = time.monotonic() + 60
    while not (server.batches and noted(next(iter(server.batches)))) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.join()
    assert server.batches
    assert not Path("results/caption/captions.parquet").exists()


def test_batch_under_way_is_found_again_after_a_kill(tmp_path):
    project.make(tmp_path, clips=0, stills=5)
    with project.serving(batch_s=1.5) as server:
        killed_with_a_batch_under_way(server)
        found = project.run(url=server.url, batch=True)
        assert len(server.batches) == 1
        assert sum(server.paid.values()) == 5
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert all(row["usd"] > 0 for row in found.values())


def test_batch_of_a_run_that_was_divided_otherwise_is_awaited_by_whichever_shard_comes_first(tmp_path):
    project.make(tmp_path, clips=0, stills=8)
    with project.serving(batch_s=1.0) as server:
        killed_with_a_batch_under_way(server)
        for index in (1, 0):
            found = project.run(url=server.url, batch=True, shard=f"{index}/2")
        assert len(server.batches) == 1
        assert sum(server.paid.values()) == 8
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert len({row["request"] for row in ledger()}) == len(ledger()) == 8
    assert {row["shard"] for row in ledger()} == {"00/1"}


def test_batch_that_is_still_being_created_is_not_given_up_by_a_run_that_is_divided_otherwise(tmp_path):
    project.make(tmp_path, clips=0, stills=8)
    with project.serving(batch_script=["slow"]) as server:
        settings = project.settings(server.url, batch=True)
        files.write_json("settings.json", settings.model_dump(mode="json"))
        first = forked.program(["-m", "brickreel", "caption", "--config", "settings.json", "--shard", "0/1"])
        deadline = time.monotonic() + 60
        while not server.files and time.monotonic() < deadline:
            time.sleep(0.02)
        project.run(url=server.url, batch=True, shard="0/2")
        first.join(60)
        assert first.exitcode == 0
        assert len(server.batches) == 1
        assert sum(server.paid.values()) == 8
    assert {row["shard"] for row in ledger()} == {"00/1"}


def test_batch_under_way_is_fetched_where_batches_are_not_wanted_any_more(tmp_path, caplog):
    caplog.set_level("INFO")
    project.make(tmp_path, clips=0, stills=5)
    with project.serving(batch_s=1.5) as server:
        killed_with_a_batch_under_way(server)
        found = project.run(url=server.url, batch=False)
        assert sum(server.paid.values()) == 5
        assert server.requests == 0
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert any("1 batches are under way already" in record.getMessage() for record in caplog.records)


def test_answers_of_a_batch_cost_what_they_cost_when_it_was_sent(tmp_path):
    project.make(tmp_path, clips=0, stills=4)
    with project.serving(batch_s=1.5) as server:
        killed_with_a_batch_under_way(server)
        project.run(url=server.url, batch=False, usd_per_million_in=0.1, usd_per_million_out=1.0)
        spent = server.tokens_in * 10e-6 + server.tokens_out * 100e-6
    assert sum(row["usd"] for row in ledger()) == pytest.approx(spent)


def test_batch_of_another_endpoint_whose_answers_are_not_wanted_does_not_stop_the_stage(tmp_path):
    project.make(tmp_path, clips=0, stills=3)
    with project.serving(batch_s=60) as server:
        killed_with_a_batch_under_way(server)
    with project.serving() as server:
        server.no_batches = True
        found = project.run(url=server.url, model="another")
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert len(ledger()) == 3, "the money of the batch stays reserved"


@pytest.mark.parametrize("said", ["", "400", "403", "404", "503", "drop"])
def test_batch_of_which_no_answer_is_wanted_holds_nobody_up(tmp_path, caplog, said):
    project.make(tmp_path, clips=0, stills=3)
    with project.serving(batch_s=60) as server:
        killed_with_a_batch_under_way(server)
        server.poll_script = [said] if said else []
        found = project.run(url=server.url, model="another")
        assert server.poll_script == []
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert len(ledger()) == 3, "the money of the batch stays reserved"
    assert [r.levelname for r in caplog.records if "no answer is wanted here" in r.getMessage()] == ["WARNING"]


def test_batch_of_which_no_answer_is_wanted_is_settled_where_it_has_ended(tmp_path):
    project.make(tmp_path, clips=0, stills=3)
    with project.serving(batch_script=["cancelled"], batch_s=0.5) as server:
        killed_with_a_batch_under_way(server)
        time.sleep(0.6)
        found = project.run(url=server.url, model="another")
        assert server.files == {}
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert len(ledger()) == 6


@pytest.mark.parametrize("batch", [False, True])
def test_batch_of_another_endpoint_whose_answers_are_wanted_is_not_awaited(tmp_path, caplog, batch):
    project.make(tmp_path, clips=0, stills=3)
    with project.serving(batch_s=60) as server:
        killed_with_a_batch_under_way(server)
        with project.serving() as other:
            other.no_batches = not batch
            found = project.run(url=other.url, batch=batch)
            assert sum(other.paid.values()) == 3
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert len(ledger()) == 3, "the money of the batch stays reserved"
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert any("1 batches were sent to another caption.base_url" in each for each in said)


def test_refused_parameter_is_no_failed_attempt_of_a_batch_but_once(tmp_path):
    project.make(tmp_path, clips=0, stills=2)
    with project.serving() as server:
        server.refused = ("max_tokens",)
        found = project.run(url=server.url, batch=True, attempts=1)
        assert len(server.batches) == 2
    assert {row["outcome"] for row in found.values()} == {"ok"}
    with project.serving(faults=1.0, kinds=("wants-other-tokens",)) as server:
        found = project.run(url=server.url, model="another", batch=True, attempts=5, max_failed_share=1.0)
        assert len(server.batches) == 2
    assert {row["outcome"] for row in found.values()} == {"failed"}


def test_estimate_does_not_count_a_batch_under_way_again(tmp_path, caplog):
    caplog.set_level("INFO")
    project.make(tmp_path, clips=0, stills=5)
    with project.serving(batch_s=1.5) as server:
        killed_with_a_batch_under_way(server)
        project.run(url=server.url, batch=True)
    said = " ".join(r.getMessage() for r in caplog.records)
    assert "0 requests to test-model for 5 clips (5 are answered or in batches already): about 0.00 USD" in said
    first, row = files.read_json_lines("logs/caption/estimates.jsonl")
    assert (row["usd"], row["usd_most"]) == (0, 0)
    assert files.read_json("results/caption/forecast.json")["usd"] == pytest.approx(first["usd"])


def test_two_processes_that_await_one_batch_write_its_rows_once(tmp_path):
    project.make(tmp_path, clips=0, stills=8)
    with project.serving(batch_s=1.5) as server:
        killed_with_a_batch_under_way(server)
        words = ["-m", "brickreel", "caption", "--config", "settings.json", "--shard"]
        said = [[Path(f"out-{index}"), Path(f"err-{index}")] for index in range(2)]
        processes = [forked.program([*words, f"{index}/2"], streams=said[index]) for index in range(2)]
        for process, (_, err) in zip(processes, said, strict=True):
            process.join(120)
            assert process.exitcode == 0, err.read_text()
        assert len(server.batches) == 1
        assert sum(server.paid.values()) == 8
    assert {row["outcome"] for row in project.captions().values()} == {"ok"}
    assert len(ledger()) == 8


def test_batch_that_the_endpoint_does_not_know_is_kept_for_a_day_and_then_counts_at_its_highest_price(tmp_path):
    project.make(tmp_path, clips=0, stills=3)
    with project.serving(batch_s=60) as server:
        killed_with_a_batch_under_way(server)
        server.batches.clear()
        with pytest.raises(ValueError, match=r"the key and the caption\.base_url that it was started with"):
            project.run(url=server.url, batch=True)
        assert not Path("logs/caption/ledger.jsonl").exists(), "money that may be spent is not given up"
        rows = made_older(27)
        server.batch_s = 0
        found = project.run(url=server.url, batch=True)
    assert {row["outcome"] for row in found.values()} == {"ok"}
    lost = [row for row in ledger() if row["outcome"] == "failed"]
    assert [row["billed"] for row in lost] == ["unknown"] * 3
    assert sum(row["usd"] for row in lost) == pytest.approx(sum(row["usd"] for row in rows))


def test_count_of_tokens_that_is_none_in_a_batchs_answer_does_not_stop_the_stage(tmp_path):
    project.make(tmp_path, clips=0, stills=3)
    with project.serving(script=["strange-usage"]) as server:
        found = project.run(url=server.url, batch=True)
    assert {row["outcome"] for row in found.values()} == {"ok"}
    assert sorted(row["billed"] for row in ledger()) == ["reported", "reported", "unknown"]
