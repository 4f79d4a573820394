"""How a process of a job ends, said so that the batch script knows whether trying again makes sense.

One failed rank makes Slurm end the others, so the step's exit status says nothing about the cause. A rank that ends
for a reason that will be the same next time therefore leaves its sentence in the file that `BRICKREEL_VERDICT` names
(`slurm/job.sh` does): with a verdict the job is not requeued.
"""

import errno
import os
import sys
import threading
from pathlib import Path
from typing import NoReturn

from brickreel import files

INTERRUPTED = 75
"""Exit status of work that stopped on request where it can continue: EX_TEMPFAIL of sysexits.h."""


PASSING = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EREMOTEIO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENOTCONN,
    errno.ESHUTDOWN,
}
"""What file systems and networks say while they, or a node's way to them, are in trouble: the next attempt may do."""

RESULTS = Path("results")

STUCK = threading.Event()
"""Set where a thread of this process waits for ever in a collective: what would wait for that thread is left out."""


class Interrupted(Exception):  # noqa: N818  it is news, not an error
    """The stage stopped because it was asked to, with everything saved: start it again to continue."""


def leave(status: int) -> NoReturn:
    """End this process."""
    if STUCK.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def verdict_path() -> Path | None:
    """Where this attempt's verdict belongs; None outside a job."""
    name = os.environ.get("BRICKREEL_VERDICT")
    return Path(name) if name else None


def record(command: str, error: Exception) -> None:
    """Leave the sentence of an error that a new attempt would only repeat.

    Lost connections are not of that kind, nor is trouble of a file system that passes or stays behind on a bad node.
    """
    path = verdict_path()
    if path and not passes(error):
        files.write_text(path, f"brickreel {command}: {error}\n")


def passes(error: BaseException | None) -> bool:
    """Whether an error is of a network or a file system in trouble, or not mounted here: the next attempt may do."""
    if isinstance(error, FileNotFoundError):
        # Sentences of our own name no file; where all results are away they say that a stage has not run.
        return unmounted(error.filename if isinstance(error.filename, str) else RESULTS / "any")
    return isinstance(error, ConnectionError) or (isinstance(error, OSError) and error.errno in PASSING)


def unmounted(path: str | Path) -> bool:
    """Whether more than this file is missing: what is left of its folders is empty, or a link that leads nowhere.

    That is how a file system looks where it is not mounted; a file that was deleted or is misspelt has neighbours, or
    had a folder of its own beside others with such files.
    """
    missing = Path(os.path.abspath(path))
    for folder in missing.parents:
        if os.path.lexists(folder):
            try:
                # Not all of a folder of a hundred thousand films is read for each that is missing.
                with os.scandir(folder) as entries:
                    empty = next(entries, None) is None
                return empty and not (folder == missing.parent and _has_neighbours(missing))
            except OSError as error:
                return isinstance(error, FileNotFoundError) or error.errno in PASSING
    return False


def _has_neighbours(missing: Path) -> bool:
    """Whether other folders beside the file's own hold files of its kind, mount points and the project's left out."""
    above = missing.parent.parent
    others = [] if above == Path.cwd() else [each for each in above.iterdir() if each != missing.parent]
    return any(next(each.glob(f"*{missing.suffix}"), None) for each in others if not os.path.ismount(each))


def unopened(path: str) -> str:
    """Why a file cannot be opened, empty when it can. Raises OSError where that passes."""
    try:
        with Path(path).open("rb") as stream:
            stream.read(1)
    except OSError as error:
        if passes(error) and isinstance(error, FileNotFoundError):
            words = f"{error.strerror}, nor anything beside it: is a file system not mounted here?"
            raise FileNotFoundError(error.errno, words, path) from None
        if passes(error):
            raise
        return f"cannot be opened: {error.strerror}"
    return ""
