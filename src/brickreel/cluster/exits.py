"""How a process of a job ends, said so that the batch script knows whether trying again makes sense.

One failed rank makes Slurm end the others, so the step's exit status says nothing about the cause. A rank that ends
for a reason that will be the same next time therefore leaves its sentence in the file that `BRICKREEL_VERDICT` names
(`slurm/job.sh` does): with a verdict the job is not requeued.
"""

import errno
import os
from pathlib import Path

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


class Interrupted(Exception):  # noqa: N818  it is news, not an error
    """The stage stopped because it was asked to, with everything saved: start it again to continue."""


def verdict_path() -> Path | None:
    """Where this attempt's verdict belongs; None outside a job."""
    name = os.environ.get("BRICKREEL_VERDICT")
    return Path(name) if name else None


def record(command: str, error: Exception) -> None:
    """Leave the sentence of an error that a new attempt would only repeat.

    Lost connections are not of that kind, nor is trouble of a file system that passes or stays behind on a bad node.
    """
    path = verdict_path()
    passing = isinstance(error, ConnectionError) or (isinstance(error, OSError) and error.errno in PASSING)
    if path and not passing:
        files.write_text(path, f"brickreel {command}: {error}\n")
