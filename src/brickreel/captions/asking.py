"""Asking an endpoint for the captions of many items at once, within the budget and at the pace that it bears."""

import asyncio
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

# Items whose pictures are read ahead of the slots.
_AHEAD = 8
# Seconds between two looks at money or answers that other requests in flight hold.
_LOOK_AGAIN_S = 0.2
# Without one answer in this many seconds of 429, or after this many failures per slot, the endpoint is given up.
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
        self.pace = Pace(settings.concurrency, settings.requests_per_minute, settings.tokens_per_minute)
        self.captions: dict[tuple[str, str], Caption] = {}
        self.failures = 0
        self.failures_in_a_row = 0
        self.last_answer = time.monotonic()
        self.stop: Exception | None = None
        """Why no further request is to be sent."""

    async def run(self, items: Sequence[Request], bar: Bar) -> dict[tuple[str, str], Caption]:
        """Captions by item name, one for every item.

        Raises EndpointError or ValueError when asking on makes no sense; what was answered stands in the ledger.
        """
        self.committer = Committer(self.ledger)
        self.readers = ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0))), thread_name_prefix="pictures")
        queue = iter(items)
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

    async def _work(self, queue: Any, bar: Bar) -> None:
        for item in queue:
            if self.stop:
                return
            try:
                caption = await self._caption(item)
            except (ValueError, OSError) as error:
                self.stop = self.stop or error
                return
            if caption is None:
                return
            self.captions[item.item.name] = caption
            if caption.outcome == "failed":
                self.failures += 1
                if self.failures > self.allowed_failures:
                    self.stop = self.stop or ValueError(
                        f"{self.failures} captions failed, more than caption.max_failed_share allows; the last one: "
                        f"{caption.reason}; what is finished is kept in the ledger"
                    )
            spent = self.ledger.spent_usd
            bar.advance(note=f"{spent:.2f} of {self.settings.budget_usd:.2f} USD" if self.price.usd_in else "")

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
            if reply.limited or reply.outcome != "failed":
                continue
            failures, reason = failures + 1, reply.reason
            if reply.pointless:
                return failed(reason, self.ledger.rows.get(request.key, []))
            if failures < self.settings.attempts:
                await asyncio.sleep(reply.retry_after_s or backoff_s(failures))
        return None

    async def _send(self, request: Request, jpegs: list[bytes], hint: str, known: int) -> "client.Reply | str":
        """Reserve, send, and write down: the reply, or why nothing was sent."""
        tokens_in, tokens_out = requests.expected_tokens(request, self.settings, self.price, self.ledger)
        await self.pace.enter(tokens_in + tokens_out)
        try:
            if self.stop:
                return "stopped"
            most = requests.most_usd(request, self.settings, self.price, self.ledger)
            about = request.about(self.settings.model)
            reservation = Reservation(uuid.uuid4().hex, request.key, most, known, about)
            decision = await self.committer.reserve(reservation)
            if decision != "granted":
                return decision
            body = client.body(self.settings, request.prompt, jpegs, prompts.again(hint) if hint else "")
            try:
                reply, headers, seconds = await client.ask(self.api, body)
            except client.EndpointError as error:
                self.stop = self.stop or error
                reply, headers, seconds = client.Reply("failed", str(error)), {}, 0.0
            await self.committer.finish(ledger_row(self.ledger.shard, reservation, reply, self.price, seconds))
            self._learn(reply, headers)
            return reply
        finally:
            self.pace.leave()

    def _learn(self, reply: client.Reply, headers: Any) -> None:
        if reply.limited:
            self.pace.limited(reply.retry_after_s)
            if time.monotonic() - self.last_answer > _PATIENCE_S:
                self.stop = self.stop or client.EndpointError(
                    f"the captioning endpoint has answered nothing but 429 for {_PATIENCE_S / 60:.0f} minutes"
                )
            return
        if reply.outcome == "failed" and reply.billed != "reported":
            self.failures_in_a_row += 1
            if self.failures_in_a_row >= max(20, _FAILURES_PER_SLOT * self.settings.concurrency):
                self.stop = self.stop or client.EndpointError(
                    f"the captioning endpoint has failed {self.failures_in_a_row} times in a row, at last with: "
                    f"{reply.reason}"
                )
            return
        self.failures_in_a_row = 0
        self.last_answer = time.monotonic()
        self.pace.answered(headers)

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.readers, function, *arguments)
