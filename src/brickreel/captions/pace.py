"""How fast an endpoint may be asked: as many requests at once as it bears, never more than it allows.

Additive increase, multiplicative decrease on 429 (Chiu and Jain, 1989); `retry-after` and the `x-ratelimit-*` headers
are obeyed, and limits per minute can be set beside them.
"""

import asyncio
import logging
import random
import re
import time
from collections import deque
from collections.abc import Mapping

logger = logging.getLogger("brickreel")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0
_TOLD_FROM_S = 30.0
"""A longer pause is told to the log."""


class Pace:
    """Grants requests their moment. One event loop, many workers."""

    def __init__(
        self,
        most: int,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        patience_s: float = 600.0,
    ) -> None:
        """`patience_s`: the longest pause that is waited for."""
        self.most, self.patience_s = most, patience_s
        self.limit = float(most)
        self.in_flight = 0
        self.paused_until = 0.0
        self.limited_in_a_row = 0
        self.closed = False
        """Nothing is waited for any more: what enters will not send."""
        self._cut_at = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._requests = _Bucket(requests_per_minute)
        self._tokens = _Bucket(tokens_per_minute)

    async def enter(self, tokens: int) -> None:
        """Wait for a slot, the end of a pause, and room in the limits per minute.

        Raises ConnectionError when the endpoint asks for a pause that is longer than anybody's patience.
        """
        while self.in_flight >= max(1, int(self.limit)):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        self.in_flight += 1
        paused_until = spread_s = 0.0
        try:
            while not self.closed:
                now = time.monotonic()
                pause_s = self.paused_until - now
                if self.paused_until != paused_until:
                    # Spread over a tenth of the pause, so that all slots do not return at once.
                    paused_until, spread_s = self.paused_until, random.uniform(0, 0.1 * max(0.0, pause_s))  # noqa: S311
                wait = max(pause_s + spread_s, self._requests.wait_s(1), self._tokens.wait_s(tokens))
                if wait <= 0:
                    break
                if pause_s > self.patience_s:
                    raise ConnectionError(
                        f"the captioning endpoint asks to wait for {pause_s / 60:.0f} minutes: start again then; what "
                        "is finished is kept in the ledger"
                    )
                await asyncio.sleep(min(wait, 1.0))
        except BaseException:
            self.leave()
            raise
        self._requests.take(1)
        self._tokens.take(tokens)

    def give_back(self, tokens: int) -> None:
        """Undo what `enter` took from the limits per minute, for a request that was not sent."""
        self._requests.take(-1)
        self._tokens.take(-tokens)

    def leave(self) -> None:
        """Give a slot back."""
        self.in_flight -= 1
        room = max(1, int(self.limit)) - self.in_flight
        while room > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                room -= 1

    def answered(self, headers: Mapping[str, str]) -> None:
        """Learn from an answer that came: go a little faster, unless the headers say that the limit is near."""
        self.limited_in_a_row = 0
        self.limit = min(self.most, self.limit + 1 / max(1.0, self.limit))
        for kind in ("requests", "tokens"):
            remaining = headers.get(f"x-ratelimit-remaining-{kind}", "")
            if remaining.strip() == "0":
                self.pause(duration_s(headers.get(f"x-ratelimit-reset-{kind}", "")))

    def limited(self, retry_after_s: float | None) -> None:
        """Learn from a 429: halve the slots, once per volley, and wait as long as the server says, or longer.

        A server that says 0, or a date in the past, is not asked without a pause.
        """
        now = time.monotonic()
        self.limited_in_a_row += 1
        if now >= self._cut_at:
            self.limit = max(1.0, self.limit / 2)
            self._cut_at = now + 1.0
        backoff = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(self.limited_in_a_row // max(1, self.in_flight), 10))
        self.pause(max(retry_after_s or 0.0, backoff))

    def pause(self, seconds: float) -> None:
        """Let nobody in for so long."""
        now = time.monotonic()
        if seconds > _TOLD_FROM_S and now >= self.paused_until:
            logger.info("the captioning endpoint is given a pause of %.0f s", seconds)
        self.paused_until = max(self.paused_until, now + seconds)


class _Bucket:
    """So many units per minute, evenly: a tenth of a minute's worth may be taken at once."""

    def __init__(self, per_minute: int | None) -> None:
        self.rate = per_minute / 60 if per_minute else 0.0
        self.size = max(1.0, self.rate * 6)
        self.level, self.filled_at = self.size, time.monotonic()

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` may be taken; more than the bucket's size is taken when it is full."""
        if not self.rate:
            return 0.0
        now = time.monotonic()
        self.level = min(self.size, self.level + (now - self.filled_at) * self.rate)
        self.filled_at = now
        return max(0.0, (min(amount, self.size) - self.level) / self.rate)

    def take(self, amount: float) -> None:
        """Take units; a debt is paid back by later waits."""
        if self.rate:
            self.level -= amount


def backoff_s(failures: int) -> float:
    """Seconds to wait after so many failures of one request: doubling, with full jitter in its upper half."""
    top = min(_LONGEST_WAIT_S / 2, _FIRST_WAIT_S * 2 ** (failures - 1))
    return random.uniform(top / 2, top)  # noqa: S311


def duration_s(text: str) -> float:
    """Seconds in a duration as the rate-limit headers write it: `1s`, `6m0s`, `20ms`; one second if unreadable."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    parts = re.findall(r"([\d.]+)(ms|h|m|s)", text)
    return sum(float(number) * units[unit] for number, unit in parts) if parts else 1.0
