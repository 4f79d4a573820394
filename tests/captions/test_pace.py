import asyncio
import time

import pytest

from brickreel.captions import pace
from brickreel.captions.pace import Pace


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("20ms", 0.02), ("1h2m3s", 3723), ("1.5s", 1.5), ("soon", 1), ("", 1)],
)
def test_durations_of_the_headers_are_read(text, seconds):
    assert pace.duration_s(text) == pytest.approx(seconds)


def test_slots_are_never_exceeded_and_all_are_used():
    async def work():
        limit = Pace(4)
        most = 0

        async def one():
            nonlocal most
            await limit.enter(1)
            most = max(most, limit.in_flight)
            await asyncio.sleep(0.001)
            limit.leave()

        await asyncio.gather(*(one() for _ in range(40)))
        return most, limit.in_flight

    assert asyncio.run(work()) == (4, 0)


def test_volley_of_refusals_halves_the_slots_once_and_answers_bring_them_back():
    limit = Pace(64)
    for _ in range(20):
        limit.limited(0.0)
    assert limit.limit == 32
    for _ in range(33):
        limit.answered({})
    assert limit.limit == pytest.approx(33, abs=0.1)
    for _ in range(5000):
        limit.answered({})
    assert limit.limit == 64


def test_one_slot_always_remains():
    limit = Pace(8)
    for _ in range(10):
        limit._cut_at = 0.0
        limit.limited(0.0)
    assert limit.limit == 1


def test_server_that_says_how_long_is_obeyed():
    async def work(limit):
        started = time.monotonic()
        await limit.enter(1)
        return time.monotonic() - started

    limit = Pace(8)
    limit.limited(0.3)
    assert asyncio.run(work(limit)) >= 0.3
    limit = Pace(8)
    limit.answered({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "250ms"})
    assert asyncio.run(work(limit)) >= 0.25


def test_slots_return_spread_over_a_tenth_of_a_pause():
    async def work(limit):
        async def one():
            await limit.enter(1)
            return time.monotonic() - ended

        limit.pause(2.0)
        ended = limit.paused_until
        return sorted(await asyncio.gather(*(one() for _ in range(40))))

    late = asyncio.run(work(Pace(40)))
    assert late[0] >= 0
    assert late[-1] - late[0] > 0.1


def test_limits_per_minute_are_kept():
    async def work(limit, tokens):
        started = time.monotonic()
        for _ in range(12):
            await limit.enter(tokens)
            limit.leave()
        return time.monotonic() - started

    # Ten per second, of which six seconds' worth would fit at once: start with an empty bucket.
    limit = Pace(8, requests_per_minute=600)
    limit._requests.level = 0
    assert 1.1 <= asyncio.run(work(limit, 1)) < 3
    limit = Pace(8, tokens_per_minute=60_000)
    limit._tokens.level = 0
    assert 1.1 <= asyncio.run(work(limit, 100)) < 3


def test_request_larger_than_the_limit_passes_when_the_minute_is_fresh():
    async def work():
        limit = Pace(8, tokens_per_minute=600)
        await asyncio.wait_for(limit.enter(10_000), 1)
        limit.leave()
        return limit._tokens.wait_s(1)

    assert asyncio.run(work()) > 100


def test_cancelled_waiter_leaves_no_slot_behind():
    async def work():
        limit = Pace(1)
        await limit.enter(1)
        waiting = asyncio.create_task(limit.enter(1))
        await asyncio.sleep(0)
        waiting.cancel()
        limit.leave()
        await asyncio.wait_for(limit.enter(1), 1)
        return limit.in_flight

    assert asyncio.run(work()) == 1


def test_waits_grow_with_failures_up_to_half_a_minute():
    waits = [pace.backoff_s(n) for n in range(1, 12)]
    assert all(0.25 * 2 ** (n - 1) <= wait <= 0.5 * 2 ** (n - 1) for n, wait in enumerate(waits[:6], 1))
    assert max(waits) <= 30


def test_server_that_asks_for_no_pause_is_given_one():
    limit = Pace(8)
    limit.limited(0.0)
    assert limit.paused_until - time.monotonic() > 0.4


def test_long_pause_is_told_once(caplog):
    caplog.set_level("INFO", "brickreel")
    limit = Pace(8)
    for _ in range(5):
        limit.limited(45.0)
    limit = Pace(8)
    limit.limited(5.0)
    assert [record.getMessage() for record in caplog.records] == ["the captioning endpoint is given a pause of 45 s"]


def test_pause_beyond_all_patience_is_not_waited_for():
    limit = Pace(8, patience_s=60)
    limit.answered({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2h"})
    with pytest.raises(ConnectionError, match="asks to wait for 120 minutes"):
        asyncio.run(limit.enter(1))
    assert limit.in_flight == 0


def test_nobody_waits_for_a_pause_when_nothing_will_be_sent():
    async def work():
        limit = Pace(8)
        limit.limited(300.0)
        waiting = asyncio.create_task(limit.enter(1))
        await asyncio.sleep(0.01)
        limit.closed = True
        await asyncio.wait_for(waiting, 3)

    asyncio.run(work())


def test_what_was_not_sent_does_not_count_against_the_minute():
    async def work():
        limit = Pace(8, requests_per_minute=10, tokens_per_minute=600)
        for _ in range(5):
            await asyncio.wait_for(limit.enter(60), 1)
            limit.give_back(60)
            limit.leave()

    asyncio.run(work())
