"""Following what the ranks of a job print: rank 0 as it comes, the others when something went wrong."""

import sys
from collections.abc import Sequence
from pathlib import Path

LAST_LINES = 12
MOST_RANKS = 8


class Follower:
    """Passes what rank 0 prints on to the terminal and to the stage's log file; every rank's own file stays.

    A file that does not exist yet is waited for.
    """

    def __init__(self, ranks: Sequence[Path], log_file: Path | None, skip: bool = False) -> None:
        self.ranks, self.log_file = list(ranks), log_file
        # A job that is found again has been followed to here already.
        self.position = self.ranks[0].stat().st_size if skip and self.ranks[0].exists() else 0

    def pump(self) -> None:
        """Pass on the whole lines that are new."""
        try:
            with self.ranks[0].open("rb") as stream:
                stream.seek(self.position)
                new = stream.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self.position += len(whole)
        if whole:
            self._write(whole)

    def _write(self, data: bytes) -> None:
        if self.log_file:
            with self.log_file.open("ab") as log:
                log.write(data)
        try:
            sys.stderr.write(data.decode(errors="replace"))
            sys.stderr.flush()
        except (OSError, ValueError):
            return  # the terminal is gone; the log file is not

    def last_words(self) -> str:
        """The end of what the ranks printed, those that stopped first in front: they know the cause."""
        files = sorted((path for path in self.ranks if path.exists()), key=lambda path: path.stat().st_mtime)
        shown = []
        for path in files[:MOST_RANKS]:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
            shown.append(f"--- rank {self.ranks.index(path)}, {path}\n" + "\n".join(lines))
        return "\n".join(shown)
