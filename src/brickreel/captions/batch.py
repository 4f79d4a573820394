"""The Batch API: requests are uploaded as a file and answered within a day, at half the price.

The money of a batch is reserved request by request before the batch is created, and every reservation names its batch:
`underway` finds it again, whatever becomes of this process, so that none of its requests is paid for twice.
"""

import asyncio
import itertools
import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai

from brickreel.captions import client, pace, prompts, underway
from brickreel.captions import request as requests
from brickreel.captions.items import Caption
from brickreel.captions.judge import failed, judge
from brickreel.captions.ledger import Ledger, Reservation
from brickreel.captions.prices import Price
from brickreel.captions.request import Request
from brickreel.captions.underway import UnderWay
from brickreel.config import Caption as Settings
from brickreel.progress import Bar

logger = logging.getLogger("brickreel")

# What one file may hold. OpenAI takes 200 MB and 50,000 requests; a smaller file is lost more cheaply.
_MOST_BYTES, _MOST_REQUESTS = 90_000_000, 20_000
_CREATION_S = 15.0
"""Seconds within which a batch shows in the endpoint's list, though the answer to its creation was lost."""
_UPLOAD_RETRIES = 6
_PATIENCE_S = 3600.0
"""Seconds of nothing but 429 to the creation of a batch after which it is given up."""
_ROOM_S = 600.0
"""Longest wait for room in the endpoint's queue, before a smaller batch is tried."""

_Ask = tuple[Reservation, Request, str]
"""A request with its reservation, and with what was wrong with the last answer."""


class Batching:
    """One shard's captions from a Batch API."""

    def __init__(
        self,
        settings: Settings,
        price: Price,
        ledger: Ledger,
        api: openai.AsyncOpenAI,
        allowed_failures: int,
        under_way: UnderWay,
    ) -> None:
        self.settings, self.price, self.ledger, self.api = settings, price, ledger, api
        self.under_way = under_way
        self.allowed_failures = allowed_failures
        self.captions: dict[tuple[str, str], Caption] = {}
        self.failures = 0
        self.most: int | None = None
        """Requests that may be under way at once: as many as the endpoint's queue took lately."""

    async def run(self, items: Sequence[Request], bar: Bar) -> dict[tuple[str, str], Caption]:
        """Captions by item name, one for every item.

        Raises EndpointError or ValueError when asking on makes no sense; what was answered stands in the ledger.
        """
        while open_requests := self._still_open(items, bar):
            if not await self._round(open_requests[: self.most], bar):
                await asyncio.sleep(underway.FIRST_POLL_S)
            if self.under_way.stop:
                raise self.under_way.stop
        return self.captions

    def _still_open(self, items: Sequence[Request], bar: Bar) -> list[tuple[Request, str]]:
        """The requests to send now, one per key, with what was wrong with the last answer."""
        found: dict[str, tuple[Request, str]] = {}
        for item in items:
            if item.item.name in self.captions:
                continue
            rows = self.ledger.rows.get(item.key, [])
            caption, hint = judge(rows, self.settings)
            if caption is None and self.under_way.failures[item.key] >= self.settings.attempts:
                caption = failed(self.under_way.reasons[item.key], rows)
            if caption is None:
                found.setdefault(item.key, (item, hint))
            else:
                self._end(item, caption, bar)
        return list(found.values())

    def _end(self, item: Request, caption: Caption, bar: Bar) -> None:
        self.captions[item.item.name] = caption
        self.failures += caption.outcome == "failed"
        if self.failures > self.allowed_failures:
            raise ValueError(
                f"{self.failures} captions failed, more than caption.max_failed_share allows; the last one: "
                f"{caption.reason}; what is finished is kept in the ledger"
            )
        bar.advance(note=f"{self.ledger.spent_usd:.2f} of {self.settings.budget_usd:.2f} USD")

    async def _round(self, open_requests: Sequence[tuple[Request, str]], bar: Bar) -> bool:
        """Send what the budget allows and await it; False when others hold the money or the keys for now."""
        # Made before the ledger is read again: an answer that came meanwhile is then noticed.
        asks = [(self._reservation(request), request, hint) for request, hint in open_requests]
        decisions = self.ledger.outlook([ask for ask, _, _ in asks])
        if set(decisions) == {"refused"}:
            for request, _ in open_requests:
                reason = f"the budget of {self.settings.budget_usd:.2f} USD is used up"
                self._end(request, failed(reason, self.ledger.rows.get(request.key, [])), bar)
            return True
        # Only pictures that will be sent are read.
        affordable = [each for each, decision in zip(asks, decisions, strict=True) if decision == "granted"]
        names: set[str] = set()
        sent = 0
        for lines in self._files(affordable, bar):
            name = uuid.uuid4().hex
            # Held until its number is noted: who follows it sooner would find no batch and give its money back.
            with self.under_way.held(name):
                granted = self._reserve(name, lines)
                if granted:
                    await self._send(name, granted)
            if granted:
                if self.under_way.stop:
                    break
                names.add(name)
                sent += len(granted)
        await self._await(names, sent, bar)
        return bool(names) or not set(decisions) & {"wait", "elsewhere"}

    def _files(self, asks: Sequence[_Ask], bar: Bar) -> Iterator[list[tuple[Reservation, bytes]]]:
        """Requests with their lines, as many at a time as a file may hold; one whose pictures cannot be read ends."""
        lines: list[tuple[Reservation, bytes]] = []
        size = 0
        with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0))), thread_name_prefix="pictures") as readers:
            for start in range(0, len(asks), 64):
                # Few at a time: pictures of a whole data set would not fit the memory.
                part = asks[start : start + 64]
                for (ask, request, _), line in zip(part, readers.map(self._line, part), strict=True):
                    if isinstance(line, str):
                        self._end(request, failed(line), bar)
                        continue
                    if lines and (size + len(line) > _MOST_BYTES or len(lines) == _MOST_REQUESTS):
                        yield lines
                        lines, size = [], 0
                    lines.append((ask, line))
                    size += len(line)
        if lines:
            yield lines

    def _line(self, asked: _Ask) -> bytes | str:
        """A request's line, or why its pictures cannot be read."""
        ask, request, hint = asked
        try:
            jpegs = requests.jpegs(request, self.settings)
        except (ValueError, OSError) as error:
            return str(error)
        again, refused = prompts.again(hint) if hint else "", self.under_way.unsupported
        body = client.body(self.settings, request.prompt, jpegs, again, request.item.kind, refused)
        line = {"custom_id": ask.request, "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(line).encode() + b"\n"

    def _reservation(self, request: Request) -> Reservation:
        return Reservation(
            request=uuid.uuid4().hex,
            key=request.key,
            usd=requests.most_usd(request, self.settings, self.price, self.ledger),
            known=len(self.ledger.rows.get(request.key, ())),
            about=request.about(self.settings.model),
            usd_per_token=(self.price.usd_in, self.price.usd_out),
        )

    def _reserve(self, name: str, lines: Sequence[tuple[Reservation, bytes]]) -> list[bytes]:
        """Reserve the money of a batch: the lines that the account grants."""
        decisions = self.ledger.commit([], [ask._replace(batch=name) for ask, _ in lines])
        return [line for (_, line), decision in zip(lines, decisions, strict=True) if decision == "granted"]

    async def _send(self, name: str, lines: Sequence[bytes]) -> None:
        try:
            self.under_way.note(name, without=sorted(self.under_way.unsupported))
            patient = self.api.with_options(max_retries=_UPLOAD_RETRIES)
            uploaded = await patient.files.create(file=(f"{name}.jsonl", b"".join(lines)), purpose="batch")
            self.under_way.note(name, file=uploaded.id)
            created = await self._create(name, uploaded.id)
        except openai.APIConnectionError:
            await asyncio.sleep(_CREATION_S)
            return  # whether it was created is found out when it is awaited
        except openai.APIStatusError as error:
            if error.status_code >= 500 or error.status_code == 408:
                await asyncio.sleep(_CREATION_S)
                return  # a gateway may answer so after the batch was created
            said = client.words(error, self.api.api_key)
            await self.under_way.give_up(name, f"the batch was refused: {said}")
            if _limited(error):
                self.under_way.stop = ConnectionError(
                    f"the captioning endpoint takes no batch for now (429): {said}; start again to go on"
                )
                return
            self.under_way.stop = client.EndpointError(
                f"the captioning endpoint takes no batch ({error.status_code}): {said}; set caption.batch to false "
                "where it has no Batch API"
            )
            return
        self.under_way.note(name, batch=created.id)
        logger.info("caption %s: %d requests are in batch %s", self.ledger.shard, len(lines), created.id)

    async def _create(self, name: str, file_id: str) -> Any:
        """Only after 429 it is tried again: a lost answer would start, and bill, the batch twice."""
        started = time.monotonic()
        for tries in itertools.count(1):
            try:
                return await self.api.batches.create(
                    completion_window="24h",
                    endpoint="/v1/chat/completions",
                    input_file_id=file_id,
                    metadata={underway.MARK: name},
                )
            except openai.RateLimitError as error:
                if not _limited(error) or time.monotonic() - started > _PATIENCE_S:
                    raise
                asked_s = client.retry_after(error.response.headers)
                await asyncio.sleep(min(60.0, asked_s or pace.backoff_s(tries)))

    async def _await(self, names: Set[str], sent: int, bar: Bar) -> None:
        """Await what was sent; where the endpoint's queue had no room for it, make the next round half as large."""
        self.under_way.no_room = False
        await self.under_way.await_all(names, bar)
        if not self.under_way.no_room:
            if sent and self.most:
                self.most *= 2
            return
        others = self.under_way.names()
        if sent == 1 and not others:
            self.under_way.stop = client.EndpointError("the endpoint's queue of batches has no room for one request")
            return
        self.most = max(1, sent // 2)
        logger.warning(
            "caption %s: the endpoint's queue is full: batches of at most %d requests now", self.ledger.shard, self.most
        )
        until = time.monotonic() + _ROOM_S
        while others and others <= self.under_way.names() and time.monotonic() < until:
            await asyncio.sleep(underway.LONGEST_POLL_S)
            self.ledger.commit([], [])


def _limited(error: openai.APIStatusError) -> bool:
    """Whether an endpoint only asks to come later."""
    return error.status_code == 429 and error.code != "insufficient_quota"
