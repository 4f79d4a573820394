import json
import multiprocessing
import time

import pytest

from brickreel import tables
from brickreel.captions.client import Reply
from brickreel.captions.ledger import Ledger, Reservation, ledger_row, sole
from brickreel.captions.prices import Price

ABOUT = {"clip_id": "c", "kind": "clip", "content_hash": "h", "model": "m", "prompt_version": "clip-1"}
PRICE = Price(1e-3, 1e-2, 100, exact_pictures=True)


def ask(request, key="k", usd=1.0, known=0, batch=""):
    return Reservation(request, key, usd, known, ABOUT, batch)


def ended(ledger, reservation, **reply):
    given = {"outcome": "ok", "billed": "reported", "tokens_in": 100, "tokens_out": 10} | reply
    return ledger_row(ledger.shard, reservation, Reply(**given), PRICE, 0.5)


def opened(folder, shard="0/2", budget=10.0, **other):
    ledger = Ledger(folder, shard, budget, **other)
    ledger.open()
    return ledger


def test_reservation_counts_at_its_highest_price_until_its_row_says_less(tmp_path):
    ledger = opened(tmp_path)
    first = ask("r1")
    assert ledger.commit([], [first]) == ["granted"]
    assert (ledger.spent_usd, ledger.outstanding_usd) == (0, 1)
    ledger.commit([ended(ledger, first)], [])
    assert ledger.spent_usd == pytest.approx(0.2)
    assert ledger.outstanding_usd == 0


@pytest.mark.parametrize(("billed", "usd"), [("reported", 0.2), ("none", 0.0), ("unknown", 1.0)])
def test_row_costs_what_was_reported_nothing_or_the_most(tmp_path, billed, usd):
    ledger = opened(tmp_path)
    row = ended(ledger, ask("r1"), billed=billed)
    assert row["usd"] == pytest.approx(usd)
    assert (row["tokens_in"] is None) == (billed != "reported")


def test_budget_counts_what_is_in_flight_and_waits_for_it_before_it_refuses(tmp_path):
    ledger = opened(tmp_path, budget=2.5)
    one, two, three = (ask(f"r{i}", f"k{i}") for i in range(3))
    assert ledger.commit([], [one, two, three]) == ["granted", "granted", "wait"]
    assert ledger.commit([ended(ledger, one), ended(ledger, two)], [three]) == ["granted"]
    rows = [ended(ledger, three, billed="unknown")]
    assert ledger.commit(rows, [ask("r4", "k4", 1.2)]) == ["refused"]
    assert ledger.spent_usd + ledger.outstanding_usd <= 2.5


def test_exactly_the_budget_may_be_spent(tmp_path):
    ledger = opened(tmp_path, budget=0.3)
    assert ledger.commit([], [ask(f"r{i}", f"k{i}", 0.1) for i in range(4)]) == ["granted"] * 3 + ["wait"]


def test_zero_budget_buys_what_costs_nothing(tmp_path):
    ledger = opened(tmp_path, budget=0.0)
    assert ledger.commit([], [ask("r1", usd=0.0), ask("r2", "k2", usd=0.01)]) == ["granted", "refused"]


def test_request_that_costs_nothing_is_granted_whatever_was_spent(tmp_path):
    ledger = opened(tmp_path, budget=1.0)
    first = ask("r1")
    ledger.commit([], [first])
    ledger.commit([ended(ledger, first, billed="unknown")], [])
    ledger.budget_usd = 0.5
    assert ledger.commit([], [ask("r2", "k2", 0.0), ask("r3", "k3", 0.01)]) == ["granted", "refused"]


def test_two_shards_see_each_others_requests_and_rows(tmp_path):
    one, other = opened(tmp_path, "0/2"), opened(tmp_path, "1/2")
    first = ask("r1")
    one.commit([], [first])
    assert other.commit([], [ask("r2")]) == ["elsewhere"]
    one.commit([ended(one, first)], [])
    assert other.commit([], [ask("r2")]) == ["changed"]
    assert [row["request"] for row in other.rows["k"]] == ["r1"]


def test_request_of_a_dead_process_of_this_shard_is_closed_at_its_highest_price(tmp_path):
    opened(tmp_path).commit([], [ask("r1")])
    again = opened(tmp_path)
    assert (again.spent_usd, again.outstanding_usd, again.in_flight) == (1.0, 0.0, {})
    (row,) = again.rows["k"]
    assert (row["billed"], row["outcome"]) == ("unknown", "failed")
    assert again.commit([], [ask("r2", known=1)]) == ["granted"]


def test_request_of_another_shard_is_waited_for_until_it_must_be_lost(tmp_path):
    opened(tmp_path, "1/2").commit([], [ask("r1")])
    patient = opened(tmp_path, "0/2", alive_s=60)
    assert patient.commit([], [ask("r2")]) == ["elsewhere"]
    time.sleep(0.05)
    hasty = opened(tmp_path, "0/2", alive_s=0.01)
    assert hasty.commit([], [ask("r2")]) == ["granted"]
    assert hasty.outstanding_usd == 2.0, "the lost request still counts"


def test_batch_is_not_taken_for_lost_when_its_process_ends(tmp_path):
    opened(tmp_path).commit([], [ask("r1", batch="b")])
    again = opened(tmp_path)
    assert set(again.in_flight) == {"r1"}
    assert again.commit([], [ask("r2", known=0)]) == ["elsewhere"]
    assert Ledger.reservation(again.in_flight["r1"]) == ask("r1", batch="b")


def test_line_that_a_crash_has_cut_is_skipped_and_does_not_swallow_the_next(tmp_path):
    ledger = opened(tmp_path)
    first, second = ask("r1", "k1"), ask("r2", "k2")
    ledger.commit([], [first, second])
    ledger.commit([ended(ledger, first)], [])
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes() + b'{"request": "r2", "usd": 0.')
    again = opened(tmp_path)
    assert again.spent_usd == pytest.approx(0.2 + 1.0)  # r2 was in flight
    lines = path.read_bytes().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[2])["request"] == "r2"
    assert opened(tmp_path).spent_usd == pytest.approx(1.2)


def test_text_with_line_separators_stays_one_row(tmp_path):
    ledger = opened(tmp_path)
    first = ask("r1")
    ledger.commit([], [first])
    ledger.commit([ended(ledger, first, reason="one\u2028two\nthree\x85")], [])
    assert opened(tmp_path).rows["k"][0]["reason"] == "one\u2028two\nthree\x85"
    assert tables.read_log("ledger", tmp_path / "ledger.jsonl").num_rows == 1


def test_only_wanted_keys_are_kept_but_all_are_counted(tmp_path):
    ledger = opened(tmp_path)
    for key in ("a", "b"):
        reservation = ask(f"r-{key}", key)
        ledger.commit([], [reservation])
        ledger.commit([ended(ledger, reservation)], [])
    again = opened(tmp_path, keys=frozenset({"a"}))
    assert set(again.rows) == {"a"}
    assert again.spent_usd == pytest.approx(0.4)
    assert again.seen_tokens["m", "clip-1", None] == [2, 200, 20, 100]


def _spend(folder, shard, count, budget):
    ledger = opened(folder, shard, budget)
    for number in range(count):
        reservation = ask(f"{shard}-{number}", f"{shard}-{number}", 1.0)
        if ledger.commit([], [reservation]) == ["granted"]:
            ledger.commit([ended(ledger, reservation, tokens_in=500, tokens_out=40)], [])


def test_processes_at_once_never_exceed_the_budget_together(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_spend, args=(tmp_path, f"{i}/2", 40, 60.0)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    ledger = opened(tmp_path, "9/9", 60.0)
    assert 59 < ledger.spent_usd <= 60.0
    rows = tables.read_log("ledger", tmp_path / "ledger.jsonl").to_pylist()
    assert len({row["request"] for row in rows}) == len(rows)
    assert sum(row["usd"] for row in rows) == pytest.approx(ledger.spent_usd)


def test_shard_is_held_by_one_process_at_a_time(tmp_path):
    with sole(tmp_path, "0/2"):
        with sole(tmp_path, "1/2"):
            pass
        with pytest.raises(ValueError, match="shard 0/2 is being captioned by another process already"):
            sole(tmp_path, "0/2").__enter__()
    with sole(tmp_path, "0/2"):
        pass
