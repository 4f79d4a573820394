"""The launcher's own settings of a site: the `BRICKREEL_` lines of slurm/site.env, which is otherwise shell."""

import os
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

SITE_ENV = Path("slurm/site.env")


class Site(NamedTuple):
    """How the launcher behaves here. The environment wins over slurm/site.env, which wins over these."""

    max_requeues: int = 10
    """Times a job may be put back into the queue."""
    hang_s: float = 1800.0
    """Seconds without a new step after which a training run counts as hanging; 0 turns it off."""
    on_interrupt: str = "cancel"
    """`cancel` or `leave`: what becomes of the job when the launcher gets SIGINT or SIGTERM."""
    poll_s: float = 10.0
    """Seconds between two looks at the queue."""


def read(path: Path = SITE_ENV) -> Site:
    """The site's settings. Raises ValueError that names a setting with a value of the wrong kind."""
    values = assignments(path) | {key: value for key, value in os.environ.items() if key.startswith("BRICKREEL_")}
    found: dict[str, Any] = {}
    for field, default in Site()._asdict().items():
        name = f"BRICKREEL_{field.upper()}"
        try:
            if name in values:
                found[field] = type(default)(values[name])
        except ValueError:
            raise ValueError(f"{path}: {name}={values[name]} is not a number") from None
    result = Site(**found)
    if result.on_interrupt not in ("cancel", "leave"):
        raise ValueError(f"{path}: BRICKREEL_ON_INTERRUPT={result.on_interrupt}: choose cancel or leave")
    return result


def assignments(path: Path) -> dict[str, str]:
    """Plain `BRICKREEL_NAME=value` lines of a shell file; lines that need a shell to understand are passed over."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        match = re.match(r"\s*(?:export\s+)?(BRICKREEL_\w+)=(.*)$", line)
        if match:
            words = shlex.split(match.group(2), comments=True)
            found[match.group(1)] = words[0] if words else ""
    return found
