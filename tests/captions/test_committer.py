import asyncio
import time

import pytest

from brickreel.captions.client import Reply
from brickreel.captions.committer import Committer
from brickreel.captions.ledger import Ledger, Reservation, ledger_row
from brickreel.captions.prices import Price

ABOUT = {"clip_id": "c", "kind": "clip", "content_hash": "h", "model": "m", "prompt_version": "clip-1"}
PRICE = Price(1e-3, 1e-2, 100, exact_pictures=True)


class Counting(Ledger):
    """The ledger, with the sizes of its groups written down."""

    def commit(self, finished, asked):
        self.groups = [*getattr(self, "groups", []), (len(finished), len(asked))]
        return super().commit(finished, asked)


def run(ledger, work):
    async def whole():
        committer = Committer(ledger)
        writing = asyncio.create_task(committer.run())
        try:
            return await work(committer)
        finally:
            writing.cancel()

    return asyncio.run(whole())


def reservation(number):
    return Reservation(f"r{number}", f"k{number}", 0.1, 0, ABOUT)


def test_requests_of_many_coroutines_pass_in_few_groups_and_each_gets_its_decision(tmp_path):
    ledger = Counting(tmp_path, "0/1", 5.0)
    decisions = run(ledger, lambda c: asyncio.gather(*(c.reserve(reservation(i)) for i in range(80))))
    assert decisions.count("granted") == 50
    assert decisions.count("wait") == 30
    assert len(ledger.groups) < 10


def test_what_returns_is_on_the_disk(tmp_path):
    ledger = Ledger(tmp_path, "0/1", 5.0)

    async def work(committer):
        one = reservation(1)
        await committer.reserve(one)
        assert "r1" in (tmp_path / "reservations.jsonl").read_text()
        await committer.finish(ledger_row("0/1", one, Reply("ok", billed="reported"), PRICE, 0.1))
        assert "r1" in (tmp_path / "ledger.jsonl").read_text()

    run(ledger, work)


def test_disk_that_fails_fails_the_requests_and_not_the_loop(tmp_path):
    ledger = Ledger(tmp_path, "0/1", 5.0)

    async def work(committer):
        (tmp_path / "reservations.jsonl").mkdir()
        with pytest.raises(OSError, match="reservations"):
            await committer.reserve(reservation(1))
        (tmp_path / "reservations.jsonl").rmdir()
        return await committer.reserve(reservation(2))

    assert run(ledger, work) == "granted"


def test_loop_goes_on_while_another_process_holds_the_lock(tmp_path):
    ledger = Ledger(tmp_path, "0/1", 5.0)

    async def work(committer):
        with ledger.locked():
            asking = asyncio.create_task(committer.reserve(reservation(1)))
            started, turns = time.monotonic(), 0
            while time.monotonic() - started < 0.2:
                await asyncio.sleep(0.01)
                turns += 1
            assert not asking.done()
        return await asking, turns

    decision, turns = run(ledger, work)
    assert decision == "granted"
    assert turns > 5


def test_rows_that_are_not_the_ledgers_fail_the_requests_with_the_files_name(tmp_path):
    ledger = Ledger(tmp_path, "0/1", 5.0)
    (tmp_path / "reservations.jsonl").write_text('{"request": "r0"}\n')

    async def work(committer):
        with pytest.raises(ValueError, match=r"reservations\.jsonl has a row that brickreel did not write"):
            await asyncio.wait_for(committer.reserve(reservation(1)), 10)

    run(ledger, work)


def test_nobody_waits_for_ever_when_a_row_cannot_be_written(tmp_path):
    ledger = Ledger(tmp_path, "0/1", 5.0)

    async def work(committer):
        one = reservation(1)
        await committer.reserve(one)
        row = ledger_row("0/1", one, Reply("ok", billed="reported"), PRICE, 0.1)
        with pytest.raises((TypeError, ValueError), match="int"):
            await asyncio.wait_for(committer.finish(row | {"tokens_in": "many"}), 10)

    run(ledger, work)
