"""Batches that are under way: awaited, and their answers written into the ledger, at the prices they were sent at.

Whoever starts again finds them in the ledger, since every reservation names its batch. A batch whose creation was cut
off is looked for by its name. One that was sent to another endpoint is left alone, with its money reserved.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import openai

from brickreel import files
from brickreel.captions import client
from brickreel.captions.ledger import BATCH_ALIVE_S, Ledger, ledger_row
from brickreel.captions.prices import Price
from brickreel.progress import Bar

logger = logging.getLogger("brickreel")

FOLDER = "batches"
"""Beside the ledger: what is known of each batch, one small JSON file each."""
MARK = "brickreel_batch"
"""Where a batch at the endpoint says its name."""
FIRST_POLL_S, LONGEST_POLL_S = 1.0, 60.0
_PATIENCE_S = 600.0
"""Seconds without a word of a batch that should have ended long ago, after which it is given up."""
_ENDS = ("completed", "failed", "expired", "cancelled")
_PASSING = (408, 409, 429)
_NO_ROOM = "token_limit_exceeded"
"""Code of a batch that failed since too many tokens are in the endpoint's queue already."""


class UnderWay:
    """One shard's look at the batches."""

    def __init__(self, price: Price, ledger: Ledger, api: openai.AsyncOpenAI, attempts: int) -> None:
        """A request that makes no sense to repeat counts for all its `attempts`."""
        self.price, self.ledger, self.api, self.attempts = price, ledger, api, attempts
        self.failures: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}
        self.unsupported: set[str] = set()
        """Parameters that the model refuses."""
        self.no_room = False
        """Whether the endpoint's queue was too full for a batch."""
        self.stop: ValueError | OSError | None = None
        """Why no further batch is to be sent."""
        self._unheard: dict[str, float] = {}
        """Since when there was no word of a batch."""
        ledger.abandoned |= {name for name in self.names() if self._elsewhere(name)}

    def requests(self, name: str = "") -> list[dict[str, Any]]:
        """Reservations of one batch, or of all of them, that have no row."""
        return [r for r in self.ledger.in_flight.values() if r["batch"] and name in ("", r["batch"])]

    def names(self) -> set[str]:
        """All batches under way at this endpoint."""
        return {r["batch"] for r in self.requests()} - self.ledger.abandoned

    def keys(self) -> set[str]:
        """The keys that they will answer."""
        return {r["key"] for r in self.requests() if r["batch"] not in self.ledger.abandoned}

    async def await_earlier(self, bar: Bar) -> None:
        """Await what earlier runs have left: this shard's batches, and those of a run that was divided otherwise,
        whose shards nobody starts again. One of which no answer is wanted holds nobody up."""
        shard = self.ledger.shard
        count = shard.partition("/")[2]
        names = {r["batch"] for r in self.requests() if r["shard"] == shard or r["shard"].partition("/")[2] != count}
        if left := names & self.ledger.abandoned:
            logger.warning(
                "caption %s: %d batches were sent to another caption.base_url: they are not followed, their money "
                "stays reserved, and what they were to answer is asked for again", shard, len(left),
            )  # fmt: skip
        wanted = {name for name in names - left if self._wanted(name)}
        await self._look_once(names - left - wanted)
        if wanted:
            logger.info("caption %s: %d batches are under way already: their answers are awaited", shard, len(wanted))
        await self.await_all(wanted, bar)

    def _wanted(self, name: str) -> bool:
        return any(r["key"] in (self.ledger.keys or ()) for r in self.requests(name))

    def _elsewhere(self, name: str) -> bool:
        here = str(self.api.base_url)
        return bool(self._known(name).get("base_url", here) != here)

    async def _look_once(self, names: Set[str]) -> None:
        """Settle the batches that have ended, for their prices; only a wrong key is a reason not to go on."""
        for name in sorted(names):
            with self.held(name) as mine:
                if not mine or not self.requests(name):
                    continue
                said = "it has not ended"
                try:
                    if await self._settled(name):
                        continue
                except openai.APIStatusError as error:
                    said = f"{error.status_code}: {client.words(error, self.api.api_key)}"
                    if error.status_code == 401:
                        raise client.EndpointError(f"the captioning endpoint refuses every request ({said})") from None
                    if error.status_code == 404 and self._too_old(name):
                        self._lost(name, "the endpoint has forgotten its batch")
                        continue
                except openai.APIConnectionError as error:
                    said = str(error)
            logger.warning(
                "caption %s: batch %s, of which no answer is wanted here, keeps its money reserved (%s): going on",
                self.ledger.shard, name, said,
            )  # fmt: skip
        # What other runs' batches ended with says nothing of this one's.
        self.stop, self.no_room = None, False
        self.unsupported.clear()

    async def await_all(self, names: Set[str], bar: Bar) -> None:
        """Return when all these batches have ended and their rows are in the ledger."""
        wait_s = FIRST_POLL_S
        while names:
            for name in sorted(names):
                with self.held(name) as mine:
                    if mine and await self._ended(name):
                        names = names - {name}
            if names:
                bar.advance(0, note=f"{len(names)} batches under way")
                await asyncio.sleep(wait_s)
                wait_s = min(LONGEST_POLL_S, 1.5 * wait_s)

    @contextmanager
    def held(self, name: str) -> Iterator[bool]:
        """Whether this process alone looks at a batch now: several may await one of an earlier run's shard."""
        folder = self.ledger.folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.lock").open("w") as stream:
            try:
                files.flock(stream, stream.name)
            except BlockingIOError:
                yield False
                return
            self.ledger.commit([], [])
            yield True

    def note(self, name: str, **what: str | list[str]) -> None:
        """Write down which parameters a batch is `without`, its `file`, and the number that the endpoint gave the
        `batch` when it was created."""
        always = {"base_url": str(self.api.base_url), "time_s": time.time()}
        files.write_json(self._noted(name), self._known(name) | what | always)

    def _known(self, name: str) -> dict[str, Any]:
        path = self._noted(name)
        return cast(dict[str, Any], files.read_json(path)) if path.exists() else {}

    def _noted(self, name: str) -> Path:
        return self.ledger.folder / FOLDER / f"{name}.json"

    async def _ended(self, name: str) -> bool:
        """Ask how a batch stands; True when it has ended, or is lost, and its rows are in the ledger."""
        if not self.requests(name):
            return True  # another process has written them
        try:
            ended = await self._settled(name)
            self._unheard.pop(name, None)
            return ended
        except openai.APIStatusError as error:
            if error.status_code == 404:
                return self._unknown(name)
            said = client.words(error, self.api.api_key)
            if error.code == "insufficient_quota" or not (error.status_code >= 500 or error.status_code in _PASSING):
                client.read_error(error.status_code, error.code, said, {})
                if self._too_old(name):
                    return self._lost(name, f"its batch cannot be followed: {said}")
                raise ValueError(f"batch {name} cannot be followed: {said}") from None
            return self._unanswered(name, f"{error.status_code}: {said}")
        except openai.APIConnectionError as error:
            return self._unanswered(name, str(error))

    async def _settled(self, name: str) -> bool:
        """Ask how a batch stands, and write its rows when it has ended. Raises what the client does."""
        batch = await self._find(name)
        if batch is None:
            await self.give_up(name, "the batch was never started")
        elif batch.status in _ENDS:
            await self._settle(name, batch)
        return batch is None or batch.status in _ENDS

    def _unanswered(self, name: str, said: str) -> bool:
        """Look again later: the batch goes on without its endpoint's answers, until it is too old."""
        if not self._unheard:
            logger.warning("caption %s: no word of the batches (%s); asking on", self.ledger.shard, said)
        since = self._unheard.setdefault(name, time.monotonic())
        # One bad answer at the start of a later run loses nothing.
        if self._too_old(name) and time.monotonic() - since >= _PATIENCE_S:
            del self._unheard[name]
            return self._lost(name, f"no word of its batch: {said}")
        return False

    def _lost(self, name: str, reason: str) -> bool:
        """Close a batch that is too old to be answered: whether it was is not known, so that it counts as if it was."""
        self._close(name, "unknown", reason)
        logger.warning("caption %s: batch %s is given up, at its highest price: %s", self.ledger.shard, name, reason)
        return True

    def _too_old(self, name: str) -> bool:
        return all(time.time() - r["time_s"] > BATCH_ALIVE_S for r in self.requests(name))

    def _unknown(self, name: str) -> bool:
        """A batch that was created and that the endpoint does not know: lost, once it is too old to be answered."""
        if self._too_old(name):
            return self._lost(name, "the endpoint has forgotten its batch")
        raise ValueError(
            f"the captioning endpoint does not know the batch of {self._noted(name)} (404): use the key and the "
            f"caption.base_url that it was started with; after {BATCH_ALIVE_S / 3600:.0f} hours it is given up, at its "
            "highest price"
        )

    async def _find(self, name: str) -> Any:
        """A batch as the endpoint knows it; None when it was never created."""
        known = self._known(name)
        if "batch" in known:
            return await self.api.batches.retrieve(known["batch"])
        since = min((r["time_s"] for r in self.requests(name)), default=time.time()) - 3600
        async for batch in self.api.batches.list(limit=100):
            if (batch.metadata or {}).get(MARK) == name:
                self.note(name, batch=batch.id)
                return batch
            if batch.created_at < since:
                break
        return None

    async def give_up(self, name: str, reason: str) -> None:
        """Close a batch that was never created, and delete its file."""
        self._close(name, "none", reason)
        await self._delete(self._known(name).get("file"))

    async def _settle(self, name: str, batch: Any) -> None:
        """Write the rows of a batch that has ended, from its output and its error file, then delete its files."""
        answers: dict[str, Mapping[str, Any]] = {}
        held = [one for one in (batch.output_file_id, batch.error_file_id) if one]
        for file_id in held:
            content = await self.api.files.content(file_id)
            for line in content.content.splitlines():
                row = _parsed(line)
                if row:
                    answers[row["custom_id"]] = row
        errors = (batch.errors.data or []) if batch.errors else []
        problems = client.clean("; ".join(str(e.message) for e in errors), self.api.api_key)
        without = self._known(name).get("without", ())
        no_room = batch.status == "failed" and any(e.code == _NO_ROOM for e in errors)
        missing = f"no answer in the batch ({batch.status}{': ' + problems if problems else ''})"
        self._close(
            name,
            "none",
            missing,
            lambda request: self._reply(answers[request], without) if request in answers else None,
            failure=not no_room,
        )
        if no_room:
            self.no_room = True
        elif batch.status == "failed":
            self._stop(client.EndpointError(f"the endpoint could not run the batch: {problems or 'no reason'}"))
        elif batch.status == "cancelled":
            self._stop(
                client.EndpointError(
                    f"somebody cancelled batch {batch.id} at the endpoint; its answers so far are kept, and the rest "
                    "is asked for again when the stage is started again"
                )
            )
        await self._delete(*held, batch.input_file_id)

    async def _delete(self, *file_ids: str | None) -> None:
        for file_id in filter(None, file_ids):
            try:
                await self.api.files.delete(file_id)
            except openai.OpenAIError:
                continue  # some endpoints keep them; their answers are safe here

    def _stop(self, error: ValueError | OSError) -> None:
        self.stop = self.stop or error

    def _reply(self, row: Mapping[str, Any], without: Collection[str]) -> client.Reply:
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
            reply = client.read_error(status or 500, error.get("code"), said, {}, error.get("param"))
        except client.EndpointError as ended:
            self._stop(ended)
            return client.Reply("failed", str(ended))
        return replace(reply, unsupported="", pointless=True) if reply.unsupported in without else reply

    def _close(
        self,
        name: str,
        billed: client.Billed,
        reason: str,
        reply_of: Callable[[str], client.Reply | None] = lambda request: None,
        failure: bool = True,
    ) -> None:
        """Write a row for every request of a batch that has none: its reply, or the reason why there is none."""
        rows = []
        for stored in self.requests(name):
            reply = reply_of(stored["request"]) or client.Reply("failed", reason, billed=billed)
            rows.append(ledger_row(stored["shard"], Ledger.reservation(stored), reply, self.price, None))
            self.unsupported |= {reply.unsupported} - {""}
            if reply.outcome == "failed" and failure and not reply.unsupported:
                self.failures[stored["key"]] += self.attempts if reply.pointless else 1
                self.reasons[stored["key"]] = reply.reason
        self.ledger.commit(rows, [])


def _parsed(line: bytes) -> Mapping[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return cast(Mapping[str, Any], row) if isinstance(row, dict) and isinstance(row.get("custom_id"), str) else None
