"""The shared file system as training uses it: a checkpoint's worth of writing and reading, and the dataset."""

import os
import shutil
import time
from pathlib import Path

import pyarrow as pa

from brickreel.cluster.checks import Check, at_least

CHECKPOINTS_KEPT = 3


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


def check_space(node: str, folder: Path, checkpoint_gib: float) -> Check:
    """Room for the checkpoints that are kept at once."""
    need = checkpoint_gib * CHECKPOINTS_KEPT
    free = shutil.disk_usage(folder).free / 2**30
    return at_least(
        "disk space",
        node,
        free,
        "GiB",
        need,
        need,
        f"{folder} has {free:.3g} GiB free, {CHECKPOINTS_KEPT} checkpoints need {need:.3g}",
    )


def check_dataset(node: str, index: pa.Table, root: Path = Path()) -> Check:
    """Whether every file of the encoded dataset is there, and not empty, as this node sees it."""
    files = sorted({name for name in index["file"].to_pylist() if name})
    bad = [name for name in files if not (root / name).is_file() or (root / name).stat().st_size == 0]
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
