"""Asking an endpoint for the captions of many items at once, within the budget and at the pace that it bears."""

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai

from brickreel.captions import client, prompts
from brickreel.captions import request as requests
from brickreel.captions.committer import Committer
from brickreel.captions.items import Caption
from brickreel.captions.judge import failed, judge
from brickreel.captions.ledger import Ledger, Reservation, ledger_row
from brickreel.captions.pace import Pace, backoff_s
from brickreel.captions.prices import Price
from brickreel.captions.request import Request
from brickreel.config import Caption as Settings
from brickreel.progress import Bar

logger = logging.getLogger("brickreel")

# Items whose pictures are read ahead of the slots.
_AHEAD = 8
# Seconds between two looks at money or answers that other requests in flight hold.
_LOOK_AGAIN_S = 0.2
# Without one answer in this many seconds of 429, when it asks for a longer pause, or after this many failures per slot,
# the endpoint is given up.
_PATIENCE_S, _FAILURES_PER_SLOT = 600.0, 3


class Asking:
    """One shard's conversation with one endpoint."""

    def __init__(
        self,
        settings: Settings,
        price: Price,
        ledger: Ledger,
        api: openai.AsyncOpenAI,
        allowed_failures: int,
        read: Callable[[Request, Settings], list[bytes]] = requests.jpegs,
    ) -> None:
        """`read` gives an item's pictures as JPEG; it runs in threads."""
        self.settings, self.price, self.ledger, self.api, self.read = settings, price, ledger, api, read
        self.allowed_failures = allowed_failures
        self.pace = Pace(settings.concurrency, settings.requests_per_minute, settings.tokens_per_minute, _PATIENCE_S)
        self.captions: dict[tuple[str, str], Caption] = {}
        self.failures = 0
        self.failures_in_a_row = 0
        self.last_answer = time.monotonic()
        self.stop: Exception | None = None
        """Why no further request is to be sent."""
        self.unsupported: set[str] = set()
        """Parameters that the model refuses."""

    async def run(self, items: Sequence[Request], bar: Bar) -> dict[tuple[str, str], Caption]:
        """Captions by item name, one for every item.

        Raises EndpointError or ValueError when asking on makes no sense, ConnectionError when it may later; what was
        answered stands in the ledger.
        """
        self.committer = Committer(self.ledger)
        self.readers = ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0))), thread_name_prefix="pictures")
        queue = iter(self._settled(items, bar))
        writing = asyncio.create_task(self.committer.run())
        try:
            count = min(len(items), self.settings.concurrency + _AHEAD)
            await asyncio.gather(*(self._work(queue, bar) for _ in range(count)))
        finally:
            writing.cancel()
            self.readers.shutdown(wait=False, cancel_futures=True)
        if self.stop:
            raise self.stop
        return self.captions

    def _settled(self, items: Sequence[Request], bar: Bar) -> list[Request]:
        """Take the captions that the ledger has already; the items that are left."""
        left = []
        for item in items:
            caption, _ = judge(self.ledger.rows.get(item.key, ()), self.settings)
            if caption:
                self._take(item, caption)
            else:
                left.append(item)
        bar.skip(len(items) - len(left))
        return left

    async def _work(self, queue: Any, bar: Bar) -> None:
        for item in queue:
            if self.stop:
                return
            try:
                caption = await self._caption(item)
            except (ValueError, OSError) as error:
                self._end(error)
                return
            if caption is None:
                return
            self._take(item, caption)
            spent = self.ledger.spent_usd
            bar.advance(note=f"{spent:.2f} of {self.settings.budget_usd:.2f} USD" if self.price.usd_in else "")

    def _take(self, item: Request, caption: Caption) -> None:
        self.captions[item.item.name] = caption
        if caption.outcome != "failed":
            return
        self.failures += 1
        if self.failures > self.allowed_failures:
            self._end(
                ValueError(
                    f"{self.failures} captions failed, more than caption.max_failed_share allows; the last one: "
                    f"{caption.reason}; what is finished is kept in the ledger"
                )
            )

    def _end(self, error: Exception) -> None:
        """Send nothing more; the first reason counts."""
        self.stop = self.stop or error
        self.pace.closed = True

    async def _caption(self, request: Request) -> Caption | None:
        """The end of one item; None when asking has stopped before it."""
        jpegs: list[bytes] = []
        failures, reason = 0, ""
        while not self.stop:
            # A copy: other shards' rows may come in while the pictures are read, and would then never be judged.
            rows = list(self.ledger.rows.get(request.key, ()))
            caption, hint = judge(rows, self.settings)
            if caption:
                return caption
            if failures >= self.settings.attempts:
                return failed(reason, rows)
            try:
                jpegs = jpegs or await self._in_thread(self.read, request, self.settings)
            except (ValueError, OSError) as error:
                return failed(str(error))
            reply = await self._send(request, jpegs, hint, len(rows))
            if reply == "refused":
                return failed(f"the budget of {self.settings.budget_usd:.2f} USD is used up", rows)
            if not isinstance(reply, client.Reply):
                await asyncio.sleep(0 if reply == "changed" else _LOOK_AGAIN_S)
                continue
            if reply.limited or reply.unsupported or reply.outcome != "failed":
                continue
            failures, reason = failures + 1, reply.reason
            if reply.pointless:
                return failed(reason, self.ledger.rows.get(request.key, []))
            if failures < self.settings.attempts:
                await asyncio.sleep(backoff_s(failures))
        return None

    async def _send(self, request: Request, jpegs: list[bytes], hint: str, known: int) -> "client.Reply | str":
        """Reserve, send, and write down: the reply, or why nothing was sent."""
        tokens_in, tokens_out = requests.expected_tokens(request, self.settings, self.price, self.ledger)
        await self.pace.enter(tokens_in + tokens_out)
        sent = False
        try:
            if self.stop:
                return "stopped"
            most = requests.most_usd(request, self.settings, self.price, self.ledger)
            about = request.about(self.settings.model)
            reservation = Reservation(uuid.uuid4().hex, request.key, most, known, about)
            decision = await self.committer.reserve(reservation)
            if decision != "granted":
                return decision
            sent = True
            again = prompts.again(hint) if hint else ""
            body = client.body(self.settings, request.prompt, jpegs, again, request.item.kind, self.unsupported)
            try:
                reply, headers, seconds = await client.ask(self.api, body)
            except client.EndpointError as error:
                self._end(error)
                reply, headers, seconds = client.Reply("failed", str(error)), {}, 0.0
            await self.committer.finish(ledger_row(self.ledger.shard, reservation, reply, self.price, seconds))
            self._learn(reply, headers)
            return reply
        finally:
            if not sent:
                self.pace.give_back(tokens_in + tokens_out)
            self.pace.leave()

    def _learn(self, reply: client.Reply, headers: Any) -> None:
        if reply.limited:
            self.pace.limited(reply.retry_after_s)
            if time.monotonic() - self.last_answer > _PATIENCE_S:
                self._end(
                    ConnectionError(
                        f"the captioning endpoint has answered nothing but 429 for {_PATIENCE_S / 60:.0f} minutes: "
                        "start again to go on"
                    )
                )
        elif reply.unsupported:
            if reply.unsupported not in self.unsupported:
                logger.info("caption: the model refuses `%s`, which is not sent any more", reply.unsupported)
            self.unsupported.add(reply.unsupported)
        elif reply.outcome == "failed":
            self.pace.pause(reply.retry_after_s or 0.0)
            self.failures_in_a_row += 1
            if self.failures_in_a_row >= max(20, _FAILURES_PER_SLOT * self.settings.concurrency):
                self._end(
                    client.EndpointError(
                        f"the captioning endpoint has failed {self.failures_in_a_row} times in a row, at last with: "
                        f"{reply.reason}"
                    )
                )
        else:
            self.failures_in_a_row = 0
            self.last_answer = time.monotonic()
            self.pace.answered(headers)

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.readers, function, *arguments)
