"""The record of a launched job beside its run: job.json."""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brickreel import files


def path(stage: str, part: str) -> Path:
    """Where the record of a stage's run or shard stands."""
    return Path("results") / stage / part / "job.json"


def read(stage: str, part: str) -> dict[str, Any]:
    """The last record; empty when there is none."""
    where = path(stage, part)
    return files.read_json(where) if where.is_file() else {}


def write(stage: str, part: str, **fields: Any) -> None:
    """Merge fields into the record."""
    files.write_json(path(stage, part), read(stage, part) | fields | {"updated_s": time.time()})


def fingerprint(configs: Sequence[str]) -> str:
    """Hash of the settings files, to see whether a job that is found again does what is asked for now."""
    digest = hashlib.sha256()
    for name in configs:
        digest.update(Path(name).read_bytes())
    return digest.hexdigest()[:16]
