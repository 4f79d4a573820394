"""The shared file system as training uses it: a checkpoint's worth of writing and reading, and the dataset."""

import json
import os
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from brickreel.cluster.checks import Check, at_least

DATA_AT = 8
"""A safetensors file begins with the length of its header, 8 bytes, little-endian; data follow the header."""


def check_speed(node: str, folder: Path, size_mib: int, warn_mib_s: float, fail_mib_s: float) -> list[Check]:
    """Write, fsync and read back a file in `folder`, all ranks at once."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".preflight-{node}-{os.getpid()}"
    block = os.urandom(2**20)
    try:
        started = time.perf_counter()
        with path.open("wb") as stream:
            for _ in range(size_mib):
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
        write = size_mib / (time.perf_counter() - started)
        started = time.perf_counter()
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # not from this node's own memory
            whole = all(stream.read(2**20) == block for _ in range(size_mib))
        read = size_mib / (time.perf_counter() - started)
    except OSError as error:
        return [Check("checkpoint write", node, "fail", reason=f"writing to {folder} failed: {error.strerror}")]
    finally:
        path.unlink(missing_ok=True)
    if not whole:
        return [Check("checkpoint read", node, "fail", reason=f"{folder} did not give back what was written to it")]
    slow = f"{folder} is slow from this node: checkpoints will hold up training"
    return [
        at_least("checkpoint write", node, write, "MiB/s", warn_mib_s, fail_mib_s, slow),
        at_least("checkpoint read", node, read, "MiB/s", warn_mib_s, fail_mib_s, slow),
    ]


def check_space(node: str, folder: Path, need_gib: float | None) -> Check:
    """Room for the checkpoints that are kept at once; how many GiB those need is the plan's forecast.

    Those of an earlier attempt that are there already are part of it.
    """
    if need_gib is None:
        return Check("disk space", node, "not measured", reason="the plan does not say what checkpoints need")
    folder.mkdir(parents=True, exist_ok=True)
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**30
    need = max(0.0, need_gib - there)
    free = shutil.disk_usage(folder).free / 2**30
    return at_least(
        "disk space",
        node,
        free,
        "GiB",
        need,
        need,
        f"{folder} has {free:.3g} GiB free, the checkpoints that the run keeps need {need:.3g} more: make room, or"
        " lower `keep_last`",
    )


def check_dataset(node: str, index: pa.Table, root: Path = Path()) -> Check:
    """Whether every file of the encoded dataset is there and as long as it says, as this node sees it."""
    files = sorted(filter(None, pc.unique(index["file"]).to_pylist()))
    bad = [name for name in files if not _whole(root / name)]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        return Check(
            "dataset",
            node,
            "fail",
            len(bad),
            "files",
            "none missing",
            f"{bad[0]}{more} of the dataset can not be read here",
        )
    return Check("dataset", node, "pass", len(files), "files", "none missing")


def _whole(path: Path) -> bool:
    """Whether a safetensors file has all the bytes that its header tells of: copies that were cut short do not."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(DATA_AT), "little")
            header = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return path.stat().st_size == DATA_AT + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        return False
