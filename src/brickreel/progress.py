"""Progress that a person can watch and a log file can keep: a bar in a terminal, plain lines elsewhere."""

import logging
import os
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

logger = logging.getLogger("brickreel")

SECONDS_BETWEEN_LINES = 10.0


class Bar:
    """Counts `total` units of work; use as a context manager and call `advance`.

    In a terminal a bar with rate and time left; in any case a line in the log every ten seconds and at the end.
    `BRICKREEL_PROGRESS=lines` turns bars off, for several jobs that share a terminal.
    """

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.skipped, self.note = 0, 0, ""
        self.started = self.reported = time.monotonic()
        interactive = sys.stderr.isatty() and os.environ.get("BRICKREEL_PROGRESS") != "lines"
        self.bar = _terminal_bar() if interactive else None
        self.task = self.bar.add_task(label, total=total, unit=unit, note="") if self.bar else None

    def __enter__(self) -> "Bar":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()
        if kind is None and self.total:
            self._line()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count work as done. `note` stands behind the bar: money spent, loss, the film at hand."""
        self.done += amount
        self.note = note or self.note
        if self.bar and self.task is not None:
            self.bar.update(self.task, advance=amount, note=self.note)
        if time.monotonic() - self.reported >= SECONDS_BETWEEN_LINES:
            self._line()

    def skip(self, amount: int) -> None:
        """Count work that an earlier run has done: it says nothing of how fast this one is. Before any `advance`."""
        self.done, self.skipped = self.done + amount, self.skipped + amount
        if self.bar and self.task is not None:
            self.bar.reset(self.task, completed=self.done)

    def _line(self) -> None:
        self.reported = time.monotonic()
        elapsed = max(self.reported - self.started, 1e-9)
        rate = (self.done - self.skipped) / elapsed
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate and self.done < self.total else ""
        note = f" ({self.note})" if self.note else ""
        logger.info("%s: %d of %d %s, %.3g/s%s%s", self.label, self.done, self.total, self.unit, rate, left, note)


class RateColumn(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        """The rate as text, empty before the first unit."""
        return Text(f"{task.speed:.3g}/s" if task.speed else "")


def _terminal_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
