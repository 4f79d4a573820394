"""The Batch API: requests are uploaded as a file and answered within a day, at half the price.

The money of a batch is reserved request by request before the batch is created, and every reservation names its batch.
Whoever starts again therefore finds the batches that are under way in the ledger, asks the endpoint how they stand, and
pays for none of their requests twice. A batch whose creation was cut off is looked for by its name.
"""

import asyncio
import fcntl
import json
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import openai

from brickreel import files
from brickreel.captions import client, prompts
from brickreel.captions import request as requests
from brickreel.captions.items import Caption
from brickreel.captions.judge import failed, judge
from brickreel.captions.ledger import BATCH_ALIVE_S, Ledger, Reservation, ledger_row
from brickreel.captions.prices import Price
from brickreel.captions.request import Request
from brickreel.config import Caption as Settings
from brickreel.progress import Bar

logger = logging.getLogger("brickreel")

FOLDER = "batches"
"""Beside the ledger: what is known of each batch, one small JSON file each."""
# What one file may hold. OpenAI takes 200 MB and 50,000 requests; a smaller file is lost more cheaply.
_MOST_BYTES, _MOST_REQUESTS = 90_000_000, 20_000
_FIRST_POLL_S, _LONGEST_POLL_S = 1.0, 60.0
_CREATION_S = 15.0
"""Seconds within which a batch shows in the endpoint's list, though the answer to its creation was lost."""
_CONTROL_RETRIES = 6
"""Repetitions of calls that cost nothing: uploads, polls, downloads."""
_ENDS = ("completed", "failed", "expired", "cancelled")
_MARK = "brickreel_batch"


class Batching:
    """One shard's captions from a Batch API."""

    def __init__(
        self, settings: Settings, price: Price, ledger: Ledger, api: openai.AsyncOpenAI, allowed_failures: int
    ) -> None:
        self.settings, self.price, self.ledger, self.api = settings, price, ledger, api
        self.patient = api.with_options(max_retries=_CONTROL_RETRIES)
        self.allowed_failures = allowed_failures
        self.captions: dict[tuple[str, str], Caption] = {}
        self.failures: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}
        self.stop: ValueError | None = None

    async def run(self, items: Sequence[Request], bar: Bar) -> dict[tuple[str, str], Caption]:
        """Captions by item name, one for every item.

        Raises EndpointError or ValueError when asking on makes no sense; what was answered stands in the ledger.
        """
        await self._await_batches({r["batch"] for r in self._under_way() if self._follows(r["shard"])}, bar)
        while open_requests := self._still_open(items, bar):
            if not await self._round(open_requests, bar):
                await asyncio.sleep(_FIRST_POLL_S)
            if self.stop:
                raise self.stop
        return self.captions

    def _under_way(self) -> list[dict[str, Any]]:
        return [r for r in self.ledger.in_flight.values() if r["batch"]]

    def _follows(self, shard: str) -> bool:
        """Whether a shard's batches are this one's to await: its own, and those of a run that was divided otherwise,
        whose shards nobody starts again."""
        return shard == self.ledger.shard or shard.partition("/")[2] != self.ledger.shard.partition("/")[2]

    def _still_open(self, items: Sequence[Request], bar: Bar) -> list[tuple[Request, str]]:
        """The requests to send now, one per key, with what was wrong with the last answer."""
        found: dict[str, tuple[Request, str]] = {}
        for item in items:
            if item.item.name in self.captions:
                continue
            rows = self.ledger.rows.get(item.key, [])
            caption, hint = judge(rows, self.settings)
            if caption is None and self.failures[item.key] >= self.settings.attempts:
                caption = failed(self.reasons[item.key], rows)
            if caption is None:
                found.setdefault(item.key, (item, hint))
            else:
                self._end(item, caption, bar)
        return list(found.values())

    def _end(self, item: Request, caption: Caption, bar: Bar) -> None:
        self.captions[item.item.name] = caption
        count = sum(each.outcome == "failed" for each in self.captions.values())
        if count > self.allowed_failures:
            raise ValueError(
                f"{count} captions failed, more than caption.max_failed_share allows; the last one: {caption.reason}; "
                "what is finished is kept in the ledger"
            )
        bar.advance(note=f"{self.ledger.spent_usd:.2f} of {self.settings.budget_usd:.2f} USD")

    async def _round(self, open_requests: Sequence[tuple[Request, str]], bar: Bar) -> bool:
        """Send what the budget allows and await it; False when others hold the money or the keys for now."""
        names: set[str] = set()
        waiting = False
        with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0))), thread_name_prefix="pictures") as readers:
            position = 0
            while position < len(open_requests):
                lines: list[tuple[Request, bytes]] = []
                size = 0
                while position < len(open_requests) and size < _MOST_BYTES and len(lines) < _MOST_REQUESTS:
                    # As many as there are readers at a time: pictures of a whole data set would not fit the memory.
                    part = open_requests[position : position + 64]
                    position += len(part)
                    for (request, _), line in zip(part, readers.map(self._line, part), strict=True):
                        if isinstance(line, str):
                            self._end(request, failed(line), bar)
                        else:
                            lines.append((request, line))
                            size += len(line)
                name = uuid.uuid4().hex
                # Held until its number is noted: who follows it sooner would find no batch and give its money back.
                with self._held(name):
                    granted, decisions = self._reserve(name, lines)
                    waiting |= bool(decisions & {"wait", "elsewhere"})
                    if granted:
                        await self._send(name, granted)
                if granted:
                    if self.stop:
                        break
                    names.add(name)
                elif decisions == {"refused"}:
                    for request, _ in lines:
                        reason = f"the budget of {self.settings.budget_usd:.2f} USD is used up"
                        self._end(request, failed(reason, self.ledger.rows.get(request.key, [])), bar)
        await self._await_batches(names, bar)
        return bool(names) or not waiting

    def _line(self, asked: tuple[Request, str]) -> bytes | str:
        """A request's line without its id, or why its pictures cannot be read."""
        request, hint = asked
        try:
            jpegs = requests.jpegs(request, self.settings)
        except (ValueError, OSError) as error:
            return str(error)
        body = client.body(self.settings, request.prompt, jpegs, prompts.again(hint) if hint else "")
        return json.dumps({"method": "POST", "url": "/v1/chat/completions", "body": body}).encode()

    def _reserve(self, name: str, lines: Sequence[tuple[Request, bytes]]) -> tuple[list[bytes], set[str]]:
        """Reserve the money of a batch: the lines that the account grants, and all its decisions."""
        asks = [
            Reservation(
                request=uuid.uuid4().hex,
                key=request.key,
                usd=requests.most_usd(request, self.settings, self.price, self.ledger),
                known=len(self.ledger.rows.get(request.key, ())),
                about=request.about(self.settings.model),
                batch=name,
            )
            for request, _ in lines
        ]
        decisions = self.ledger.commit([], asks)
        granted = [
            b'{"custom_id":"' + ask.request.encode() + b'",' + line[1:]
            for ask, decision, (_, line) in zip(asks, decisions, lines, strict=True)
            if decision == "granted"
        ]
        return granted, set(decisions)

    async def _send(self, name: str, lines: Sequence[bytes]) -> None:
        try:
            content = b"".join(line + b"\n" for line in lines)
            uploaded = await self.patient.files.create(file=(f"{name}.jsonl", content), purpose="batch")
            # Not repeated by the client: a lost answer would start, and bill, the batch twice.
            created = await self.api.batches.create(
                completion_window="24h",
                endpoint="/v1/chat/completions",
                input_file_id=uploaded.id,
                metadata={_MARK: name},
            )
        except openai.APIConnectionError:
            await asyncio.sleep(_CREATION_S)
            return  # whether it was created is found out when it is awaited
        except openai.APIStatusError as error:
            if error.status_code >= 500:
                await asyncio.sleep(_CREATION_S)
                return  # a gateway may answer so after the batch was created
            self._close(name, "none", f"the batch was refused: {client.words(error, self.api.api_key)}")
            self.stop = client.EndpointError(
                f"the captioning endpoint takes no batch ({error.status_code}): "
                f"{client.words(error, self.api.api_key)}; set caption.batch to false where it has no Batch API"
            )
            return
        self._note(name, created.id)
        logger.info("caption %s: %d requests are in batch %s", self.ledger.shard, len(lines), created.id)

    def _note(self, name: str, batch_id: str) -> None:
        files.write_json(self._noted(name), {"batch": batch_id, "time_s": time.time()})

    async def _await_batches(self, names: set[str], bar: Bar) -> None:
        """Return when all these batches have ended and their rows are in the ledger."""
        wait_s = _FIRST_POLL_S
        while names:
            for name in sorted(names):
                with self._held(name) as mine:
                    if mine and await self._ended(name):
                        names = names - {name}
            if names:
                bar.advance(0, note=f"{len(names)} batches under way")
                await asyncio.sleep(wait_s)
                wait_s = min(_LONGEST_POLL_S, 1.5 * wait_s)

    @contextmanager
    def _held(self, name: str) -> Iterator[bool]:
        """Whether this process alone looks at a batch now: several may await one of an earlier run's shard."""
        folder = self.ledger.folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            self.ledger.commit([], [])
            yield True

    async def _ended(self, name: str) -> bool:
        """Ask how a batch stands; True when it has ended and its rows are in the ledger."""
        if not any(r["batch"] == name for r in self._under_way()):
            return True  # another process has written them
        try:
            batch = await self._find(name)
            if batch is None:
                self._close(name, "none", "the batch was never started")
                return True
            if batch.status in _ENDS:
                await self._settle(name, batch)
            return batch.status in _ENDS
        except openai.APIStatusError as error:
            if error.status_code == 404:
                return self._unknown(name)
            client.read_error(error.status_code, error.code, client.words(error, self.api.api_key), {})
            said = client.words(error, self.api.api_key)
            raise ValueError(f"batch {name} cannot be followed: {said}") from None
        except openai.APIConnectionError as error:
            raise ConnectionError(
                f"the captioning endpoint cannot be reached ({error}); the batches under way are kept: "
                "start again to go on"
            ) from None

    def _unknown(self, name: str) -> bool:
        """A batch that was created and that the endpoint does not know: lost, once it is too old to be answered."""
        if all(time.time() - r["time_s"] > BATCH_ALIVE_S for r in self._under_way() if r["batch"] == name):
            self._close(name, "unknown", "the endpoint has forgotten its batch")
            return True
        raise ValueError(
            f"the captioning endpoint does not know the batch of {self._noted(name)} (404): use the key and the "
            f"caption.base_url that it was started with; after {BATCH_ALIVE_S / 3600:.0f} hours it is given up, at its "
            "highest price"
        )

    def _noted(self, name: str) -> Path:
        return self.ledger.folder / FOLDER / f"{name}.json"

    async def _find(self, name: str) -> Any:
        """A batch as the endpoint knows it; None when it was never created."""
        path = self._noted(name)
        if path.exists():
            return await self.patient.batches.retrieve(files.read_json(path)["batch"])
        since = min((r["time_s"] for r in self._under_way() if r["batch"] == name), default=time.time()) - 3600
        async for batch in self.patient.batches.list(limit=100):
            if (batch.metadata or {}).get(_MARK) == name:
                self._note(name, batch.id)
                return batch
            if batch.created_at < since:
                break
        return None

    async def _settle(self, name: str, batch: Any) -> None:
        """Write the rows of a batch that has ended, from its output and its error file, then delete its files."""
        answers: dict[str, Mapping[str, Any]] = {}
        held = [one for one in (batch.output_file_id, batch.error_file_id) if one]
        for file_id in held:
            content = await self.patient.files.content(file_id)
            for line in content.content.splitlines():
                row = _parsed(line)
                if row:
                    answers[row["custom_id"]] = row
        problems = "; ".join(str(e.message) for e in (batch.errors.data or [])) if batch.errors else ""
        missing = f"no answer in the batch ({batch.status}{': ' + problems if problems else ''})"
        self._close(
            name, "none", missing, lambda request: self._reply(answers[request]) if request in answers else None
        )
        if batch.status == "failed":
            self.stop = self.stop or client.EndpointError(
                f"the endpoint could not run the batch: {problems or 'no reason'}"
            )
        for file_id in [*held, batch.input_file_id]:
            try:
                await self.api.files.delete(file_id)
            except openai.OpenAIError:
                continue  # some endpoints keep them; their answers are safe here

    def _reply(self, row: Mapping[str, Any]) -> client.Reply:
        response = row.get("response")
        response = response if isinstance(response, dict) else {}
        status, body = response.get("status_code"), response.get("body")
        if status == 200:
            return client.read(body)
        error = (body.get("error") if isinstance(body, dict) else None) or row.get("error") or {}
        # Some servers write the sentence alone.
        error = error if isinstance(error, dict) else {"message": str(error)}
        said = client.clean(str(error.get("message") or error.get("code") or "no reason"), self.api.api_key)
        try:
            return client.read_error(status or 500, error.get("code"), said, {})
        except client.EndpointError as ended:
            self.stop = self.stop or ended
            return client.Reply("failed", str(ended))

    def _close(
        self,
        name: str,
        billed: client.Billed,
        reason: str,
        reply_of: Callable[[str], client.Reply | None] = lambda request: None,
    ) -> None:
        """Write a row for every request of a batch that has none: its reply, or the reason why there is none."""
        rows = []
        for stored in [r for r in self._under_way() if r["batch"] == name]:
            reply = reply_of(stored["request"]) or client.Reply("failed", reason, billed=billed)
            rows.append(ledger_row(stored["shard"], Ledger.reservation(stored), reply, self.price, None))
            if reply.outcome == "failed":
                self.failures[stored["key"]] += self.settings.attempts if reply.pointless else 1
                self.reasons[stored["key"]] = reply.reason
        self.ledger.commit(rows, [])


def _parsed(line: bytes) -> Mapping[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return cast(Mapping[str, Any], row) if isinstance(row, dict) and isinstance(row.get("custom_id"), str) else None
