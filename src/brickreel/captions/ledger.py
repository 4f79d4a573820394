"""The ledger: what was asked, answered and paid, shared by all shards on a shared file system.

Two files of JSON lines under one lock. `reservations.jsonl` gets a line before a request is sent, with the most that
it can cost; `ledger.jsonl` gets a row when it has ended. A reservation without a row is in flight, or was when its
process died: either way its highest price counts as spent, so that the budget holds whatever happens. Both files are
only ever appended to, in groups, each group synchronised to the disk before the request is sent or its answer used.
"""

import json
import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from brickreel import files, tables
from brickreel.captions.client import Reply
from brickreel.captions.prices import Price

logger = logging.getLogger("brickreel")

FOLDER = Path("logs/caption")
_ROUNDING_USD = 1e-9
BATCH_ALIVE_S = 26 * 3600.0
"""A batch is answered within a day."""
LEDGER, RESERVATIONS = "ledger.jsonl", "reservations.jsonl"

Decision = Literal["granted", "changed", "elsewhere", "wait", "refused"]


class Reservation(NamedTuple):
    """A request about to be sent."""

    request: str
    key: str
    usd: float
    """The most that it can cost."""
    known: int
    """Rows of this key that its asker has seen."""
    about: dict[str, Any]
    """The fields `ABOUT`: what its ledger row will say."""
    batch: str = ""
    """The batch that it belongs to; empty for a request of its own."""
    usd_per_token: tuple[float, float] | None = None
    """In and out, as they were when it was sent: its answer may come to a process with other settings."""


@dataclass
class _Log:
    """A file of JSON lines that others append to as well; `position` is how far it has been read."""

    path: Path
    position: int = 0

    def new_rows(self) -> list[dict[str, Any]]:
        """Rows since the last call; a line without its end is left for its writer, or for `append` to close."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as stream:
            stream.seek(self.position)
            data = stream.read()
        end = data.rfind(b"\n") + 1
        self.position += end
        return list(_parsed(data[:end].split(b"\n")))

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows and wait until they are on the disk. A line that a crash has cut is closed first."""
        if not rows:
            return
        # Non-ASCII is escaped: no character in a text can then look like the end of a line.
        data = b"".join(json.dumps(row, ensure_ascii=True, allow_nan=False).encode() + b"\n" for row in rows)
        with self.path.open("a+b") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                data = data if stream.read(1) == b"\n" else b"\n" + data
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())


def _parsed(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            row = json.loads(line) if line else None
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


@dataclass
class Ledger:
    """One shard's view of the shared account. Not for several threads at once."""

    folder: Path
    shard: str
    """Such as 03/16: requests in flight under this name before now belong to a dead process."""
    budget_usd: float
    keys: frozenset[str] | None = None
    """The keys whose rows are kept in memory; all when None."""
    alive_s: float = 300.0
    """Age beyond which another shard's request in flight is taken for lost."""
    spent_usd: float = 0.0
    outstanding_usd: float = 0.0
    """The most that the requests without a row can cost."""
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    """Ledger rows by key, in order."""
    in_flight: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Reservations without a row, by request."""
    seen_tokens: dict[tuple[str, str, str | None], list[int]] = field(default_factory=dict)
    """(model, prompt version, pictures) -> answers, tokens in, tokens out, most tokens in."""
    counts: Counter[str] = field(default_factory=Counter)
    abandoned: set[str] = field(default_factory=set)
    """Batches that nobody here follows: their keys are asked for again, their money stays reserved."""
    _mine: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ledger = _Log(self.folder / LEDGER)
        self._reserved = _Log(self.folder / RESERVATIONS)

    def open(self) -> None:
        """Read everything, and close the requests that an earlier process of this shard left in flight."""
        with self.locked():
            self._catch_up()
            left = [r for r in self.in_flight.values() if r["shard"] == self.shard and not r["batch"]]
            self._append([self._lost(reservation) for reservation in left])

    def commit(self, finished: Sequence[dict[str, Any]], asked: Sequence[Reservation]) -> list[Decision]:
        """Write finished rows, then decide reservations in order; both are on the disk when this returns.

        A request has one row: what another process has closed since is left as it is.

        granted: send it. changed: another process has answered this key, look again. elsewhere: another shard is asking
        the same now. wait: the budget may suffice when requests in flight have ended. refused: the budget is used up.
        """
        with self.locked():
            self._catch_up()
            self._append([row for row in finished if row["request"] in self.in_flight])
            decisions = list(self._decisions(asked))
            granted: list[dict[str, Any]] = []
            for ask, decision in zip(asked, decisions, strict=True):
                if decision == "granted":
                    row = {"time_s": time.time(), "shard": self.shard, **ask._asdict(), **ask.about}
                    del row["about"], row["known"]
                    granted.append(row)
                    self._mine.add(ask.request)
                    self._reserve(row)
            self._reserved.append(granted)
            self._reserved.position = _size(self._reserved.path)
        return decisions

    def outlook(self, asked: Sequence[Reservation]) -> list[Decision]:
        """What `commit` would decide now; nothing is reserved."""
        with self.locked():
            self._catch_up()
            return list(self._decisions(asked))

    def _reserve(self, row: dict[str, Any]) -> None:
        self.in_flight[row["request"]] = row
        self.outstanding_usd += row["usd"]

    def _decisions(self, asked: Sequence[Reservation]) -> Iterator[Decision]:
        alive = [r for r in self.in_flight.values() if self._alive(r)]
        busy, hoped_usd = {r["key"] for r in alive}, sum(r["usd"] for r in alive)
        counted_usd = self.spent_usd + self.outstanding_usd
        for ask in asked:
            decision = self._decide(ask, busy, hoped_usd, counted_usd)
            if decision == "granted":
                busy.add(ask.key)
                hoped_usd += ask.usd
                counted_usd += ask.usd
            yield decision

    def _decide(self, ask: Reservation, busy: set[str], hoped_usd: float, counted_usd: float) -> Decision:
        if len(self.rows.get(ask.key, ())) != ask.known:
            return "changed"
        if ask.key in busy:
            return "elsewhere"
        most = counted_usd + ask.usd
        if not ask.usd or most <= self.budget_usd + _ROUNDING_USD:
            return "granted"
        # Requests in flight may turn out cheaper than they were reserved for; those of dead processes never will.
        return "wait" if hoped_usd > _ROUNDING_USD and most - hoped_usd <= self.budget_usd else "refused"

    def _alive(self, reservation: dict[str, Any]) -> bool:
        if reservation["request"] in self._mine:
            return True
        if reservation["batch"]:
            return reservation["batch"] not in self.abandoned and time.time() - reservation["time_s"] < BATCH_ALIVE_S
        if reservation["shard"] == self.shard:
            return False
        return time.time() - reservation["time_s"] < self.alive_s

    def _append(self, rows: Sequence[dict[str, Any]]) -> None:
        if rows:
            tables.table("ledger", rows)
        self._ledger.append(rows)
        self._ledger.position = _size(self._ledger.path)
        for row in rows:
            self._count(row)

    def _catch_up(self) -> None:
        for log, take in ((self._reserved, self._reserve), (self._ledger, self._count)):
            for row in log.new_rows():
                try:
                    take(row)
                except (KeyError, TypeError) as error:
                    raise ValueError(f"{log.path} has a row that brickreel did not write: {error!r}") from error

    def _count(self, row: dict[str, Any]) -> None:
        reservation = self.in_flight.pop(row["request"], None)
        self.outstanding_usd -= reservation["usd"] if reservation else 0.0
        self._mine.discard(row["request"])
        self.spent_usd += row["usd"]
        self.counts[row["billed"]] += 1
        if self.keys is None or row["key"] in self.keys:
            self.rows[row["key"]].append(row)
        if row["billed"] == "reported":
            seen = self.seen_tokens.setdefault((row["model"], row["prompt_version"], row.get("pictures")), [0, 0, 0, 0])
            seen[0] += 1
            seen[1] += row["tokens_in"]
            seen[2] += row["tokens_out"]
            seen[3] = max(seen[3], row["tokens_in"])

    def _lost(self, reservation: dict[str, Any]) -> dict[str, Any]:
        return {
            "time_s": time.time(),
            **{name: reservation.get(name) for name in ("request", "shard", "key", *ABOUT)},
            "tokens_in": None,
            "tokens_out": None,
            "usd": reservation["usd"],
            "billed": "unknown",
            "latency_s": None,
            "answer": None,
            "outcome": "failed",
            "reason": "its process ended before the answer arrived",
        }

    @staticmethod
    def reservation(stored: dict[str, Any]) -> Reservation:
        """A reservation from its line in the file."""
        about = {name: stored[name] for name in ABOUT if name in stored}
        known = stored.get("usd_per_token")
        prices = (known[0], known[1]) if known else None
        return Reservation(stored["request"], stored["key"], stored["usd"], 0, about, stored["batch"], prices)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the account for this process."""
        with (self.folder / "lock").open("w") as stream:
            files.flock(stream, self.folder / "lock", wait=True)
            yield


ABOUT = ("clip_id", "kind", "content_hash", "model", "prompt_version", "pictures", "max_tokens")
"""What a reservation says of its request besides the money."""


def ledger_row(
    shard: str, reservation: Reservation, reply: Reply, price: Price, seconds: float | None
) -> dict[str, Any]:
    """The ledger's row of a request that has ended, at the prices of its reservation where it has some."""
    usd_in, usd_out = reservation.usd_per_token or (price.usd_in, price.usd_out)
    reported_usd = reply.tokens_in * usd_in + reply.tokens_out * usd_out
    usd = {"reported": reported_usd, "none": 0.0, "unknown": reservation.usd}
    reported = reply.billed == "reported"
    return {
        "time_s": time.time(),
        "request": reservation.request,
        "shard": shard,
        "key": reservation.key,
        **dict.fromkeys(ABOUT),
        **reservation.about,
        "tokens_in": reply.tokens_in if reported else None,
        "tokens_out": reply.tokens_out if reported else None,
        "usd": usd[reply.billed],
        "billed": reply.billed,
        "latency_s": seconds,
        "answer": reply.answer.model_dump_json() if reply.answer else None,
        "outcome": reply.outcome,
        "reason": reply.reason,
    }


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def sole(folder: Path, shard: str) -> Iterator[None]:
    """Hold a shard for one process. Raises ValueError when another one has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"shard-{shard.replace('/', 'of')}.lock").open("w") as stream:
        try:
            files.flock(stream, stream.name)
        except BlockingIOError:
            raise ValueError(f"shard {shard} is being captioned by another process already") from None
        yield
