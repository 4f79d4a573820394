"""Checkpoints: sharded safetensors written beside training, whole or absent, checked before they are loaded.

`step-00000250/` holds one `shard-*.safetensors` per rank (torch.distributed.checkpoint's format, which any number of
ranks can read), `state.json`, and `manifest.json` with every file's SHA-256. All of it is written into a hidden folder
that gets its name last, by one rename.
"""

import functools
import logging
import os
import re
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from brickreel import files

logger = logging.getLogger("brickreel")

MANIFEST = "manifest.json"
STATE = "state.json"
ASIDE = ".damaged"
"""Ending of a checkpoint that was passed over."""
FAILURES_IN_A_ROW = 3
"""Checkpoints that cannot be written, until the run ends: what it computes would be lost."""


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints of `results/train/{run}/checkpoints`, as (step, folder), oldest first."""
    found = []
    for path in Path(folder).glob("step-*"):
        number = path.name.removeprefix("step-")
        if number.isdecimal() and (path / MANIFEST).is_file():
            found.append((int(number), path))
    return sorted(found)


def name_of(step: int) -> str:
    """`step-00000250`."""
    return f"step-{step:08d}"


def problem(path: Path, part: int = 0, parts: int = 1) -> str:
    """What is damaged in a checkpoint; empty when every file has its checksum. `part` of `parts` shares the reading.

    Raises OSError when a file is there and cannot be read: that says nothing about its content.
    """
    try:
        manifest = files.read_json(path / MANIFEST)
        for place, (name, checksum) in enumerate(sorted(manifest["files"].items())):
            if place % parts == part and files.sha256(path / name) != checksum:
                return f"{name} is damaged"
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        return str(error)
    return ""


def read_state(path: Path) -> dict[str, Any]:
    """The numbers beside the tensors: step, micro-batches and samples consumed, order, updates."""
    return files.read_json(path / STATE)


def load_weights(path: Path, which: str, check: bool = True) -> dict[str, Tensor]:
    """The trained weights of a checkpoint, `raw` or `ema`, whole, on the CPU, as the transformer names them.

    They load with `model.load_state_dict(weights, strict=False)`: what is not trained is not in a checkpoint. Of a
    LoRA run these are the additions; `training.lora.load_transformer` merges them. Raises ValueError for a damaged
    checkpoint, unless `check` is off since the caller knows it to be whole, or another word than raw or ema.
    """
    if which not in ("raw", "ema"):
        raise ValueError(f"weights are 'raw' or 'ema', not '{which}'")
    wrong = problem(path) if check else ""
    if wrong:
        raise ValueError(f"{path} cannot be loaded: {wrong}")
    prefix = "model." if which == "raw" else "ema."
    shapes = read_state(path).get("shapes") or {}
    weights = {name.removeprefix(prefix): tensor for name, tensor in _whole(path, prefix).items()}
    return {name: tensor.view(shapes.get(name, tensor.shape)) for name, tensor in weights.items()}


def _whole(path: Path, prefix: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint whose names begin so, put together from all ranks' files."""
    reader = HuggingFaceStorageReader(os.fspath(path))
    wanted = {
        name: torch.empty(about.size, dtype=about.properties.dtype)
        for name, about in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(prefix) and isinstance(about, TensorStorageMetadata)
    }
    _read(path, wanted, no_dist=True)
    return wanted


def _read(path: Path, tensors: dict[str, Tensor], **options: Any) -> None:
    try:
        _quietly(dcp.load, tensors, storage_reader=HuggingFaceStorageReader(os.fspath(path)), **options)
    except CheckpointException as error:  # not an Exception: nothing else would catch it
        raise _in_words(f"{path} cannot be loaded", error, ValueError) from error


def to_delete(
    steps: list[int], keep_last: int, keep_every: int | None, keep_best: int, losses: Mapping[int, float]
) -> list[int]:
    """Steps whose checkpoints go: all but the newest, those at multiples, and those with the lowest held-out loss."""
    kept = set(sorted(steps)[-keep_last:])
    if keep_every:
        kept |= {step for step in steps if step % keep_every == 0}
    if keep_best:
        kept |= set(sorted((step for step in steps if step in losses), key=lambda step: losses[step])[:keep_best])
    return sorted(set(steps) - kept)


class Checkpoints:
    """Writes and finds the checkpoints of one run. Every method is called by all ranks together."""

    def __init__(self, folder: Path, rank: int, world_size: int, device: torch.device) -> None:
        self.folder, self.rank, self.world_size = Path(folder), rank, world_size
        # Collectives of the writing thread must not meet those of training.
        self.group = dist.new_group(backend="gloo") if world_size > 1 else None
        pinned = device.type == "cuda"
        self.stager = DefaultStager(StagingOptions(pinned, False, False, pinned))
        # A thread's device is GPU 0 until it says otherwise: every rank's writer would take memory there.
        begin = functools.partial(torch.cuda.set_device, device) if device.type == "cuda" else None
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=begin)
        self.pending: Future[None] | None = None
        self.failures = 0
        self.lock = threading.Lock()
        self.on_written: Any = None
        """Called on rank 0, in the writing thread, with the step and folder of each finished checkpoint."""
        if rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".step-*"):
                shutil.rmtree(left, ignore_errors=True)
        self._barrier()

    def newest_good(self, last: int | None = None) -> tuple[Path | None, list[str]]:
        """The newest checkpoint whose files are whole, and a sentence per damaged one that was passed over.

        Those are renamed to `step-00000250.damaged`, so that nothing takes them for the newest. Where there are some
        beyond the `last` step of the run, it is the one of that step, or an older one where that is damaged. Raises
        ValueError when that is not kept, or when there are checkpoints and none is good, OSError on all ranks when one
        of them cannot read.
        """
        passed: list[str] = []
        damaged: list[Path] = []
        found = self._from_first(lambda: (list_checkpoints(self.folder), os.listdir(self.folder)))
        kept = _up_to(last, *found)
        for _, path in reversed(kept):
            wrong = self._from_all(functools.partial(problem, path, self.rank, self.world_size))
            if not any(wrong):
                self._from_first(lambda: _set_aside(damaged))
                return path, passed
            damaged.append(path)
            passed.append(f"checkpoint {path.name} is damaged and was passed over: {next(filter(None, wrong))}")
            logger.warning("%s", passed[-1])
        if passed:
            raise ValueError(
                f"no checkpoint in {self.folder} is whole: {'; '.join(passed)}. Restore one, or move"
                f" {self.folder.parent} away to start anew"
            )
        return None, passed

    def load(self, path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Read a checkpoint into tensors, however they are sharded now; returns its state.

        Raises ValueError when it has not these tensors.
        """
        _read(path, tensors, process_group=self.group, no_dist=self.world_size == 1)
        return read_state(path)

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any], wait: bool) -> None:
        """Copy the tensors and write them, beside training unless `wait`. A write that fails is a warning.

        With `wait` a failure raises OSError, and so does the third in a row: on all ranks, which all saw it fail.
        """
        self.wait(must_succeed=self.failures + 1 >= FAILURES_IN_A_ROW)
        staged = self.stager.stage(tensors)
        self.pending = self.pool.submit(self._write, step, staged, state)  # type: ignore[arg-type]
        if wait:
            self.wait(must_succeed=True)

    def wait(self, must_succeed: bool = False) -> None:
        """Until the write under way is over. Raises OSError when it failed and must not have.

        That is a ConnectionError when another rank is gone; else it has the number of the error behind it.
        """
        if self.pending is None:
            return
        error = self.pending.exception()
        self.pending = None
        if error is None:
            self.failures = 0
            return
        self.failures += 1
        # Torch collects what fails on a rank in an exception of its own; what comes out bare is of a collective.
        kind = ConnectionError if isinstance(error, RuntimeError) else OSError
        told = _in_words("a checkpoint could not be written", error, kind)
        # torch's own exception is not an Exception.
        if must_succeed or not isinstance(error, Exception | CheckpointException):
            raise told from error
        logger.warning("%s; training goes on with the one before", told)

    def close(self) -> None:
        """Finish what is under way."""
        self.wait()
        self.pool.shutdown()
        self.stager.close()

    def prune(
        self,
        keep_last: int,
        keep_every: int | None,
        keep_best: int,
        losses: Mapping[int, float],
        written: int | None = None,
    ) -> None:
        """Delete checkpoints that no rule keeps, but not the one of the step just `written`.

        On rank 0, in the writing thread.
        """
        found = dict(list_checkpoints(self.folder))
        for step in to_delete(list(found), keep_last, keep_every, keep_best, losses):
            if step == written:
                continue
            # Renamed first: a half-deleted folder must not look like a checkpoint.
            hidden = found[step].with_name(f".{found[step].name}.deleted")
            os.replace(found[step], hidden)
            shutil.rmtree(hidden, ignore_errors=True)

    def _write(self, step: int, staged: dict[str, Tensor], state: dict[str, Any]) -> None:
        partial = self.folder / f".{name_of(step)}.partial"
        try:
            writer = HuggingFaceStorageWriter(os.fspath(partial), save_distributed=True)
            _quietly(dcp.save, staged, storage_writer=writer, process_group=self.group, no_dist=self.world_size == 1)
            self._from_first(lambda: self._finish(step, partial, state))
        except BaseException:
            if self.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _from_first(self, action: Callable[[], Any]) -> Any:
        """Rank 0 acts; every rank gets what came of it."""
        return self._from_all(action if self.rank == 0 else lambda: None)[0]

    def _from_all(self, action: Callable[[], Any]) -> list[Any]:
        """Every rank acts and gets what came of it on each.

        When one fails, all raise its error as an OSError, so that none waits for the others in vain.
        """
        value = cause = error = None
        try:
            value = action()
        except OSError as caught:
            error = caught
        except Exception as caught:
            cause, error = caught, OSError(str(caught))
        found = [(value, error)] * self.world_size
        if self.group is not None:
            dist.all_gather_object(found, (value, error), group=self.group)
        for _, error in found:
            if error is not None:
                raise error from cause
        return [value for value, _ in found]

    def _finish(self, step: int, partial: Path, state: dict[str, Any]) -> None:
        files.write_json(partial / STATE, state)
        checksums = {path.name: files.sha256(path) for path in sorted(partial.iterdir())}
        files.write_json(partial / MANIFEST, {"files": checksums, "time_s": time.time()})
        final = self.folder / name_of(step)
        if final.exists():
            hidden = final.with_name(f".{final.name}.replaced")
            shutil.rmtree(hidden, ignore_errors=True)
            os.replace(final, hidden)
            shutil.rmtree(hidden, ignore_errors=True)
        os.replace(partial, final)
        _sync(self.folder)
        if self.on_written:
            try:
                self.on_written(step, final)
            except (OSError, ValueError) as error:
                logger.warning("%s is written, but older checkpoints could not be tidied away: %s", final.name, error)

    def _barrier(self) -> None:
        if self.group is not None:
            dist.barrier(group=self.group)


def _quietly(function: Any, *arguments: Any, **keywords: Any) -> None:
    """Call without torch's warning that a single process saves by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        function(*arguments, **keywords)


def _up_to(last: int | None, kept: list[tuple[int, Path]], names: list[str]) -> list[tuple[int, Path]]:
    """Checkpoints that a run of so many steps may go on from, where a longer one was there before.

    That of its last step must be there, among the `names` in the folder, if only as a damaged one.
    """
    if last is None or not kept or kept[-1][0] <= last:
        return kept
    up_to = [(step, path) for step, path in kept if step <= last]
    if not up_to or not {name_of(last), f"{name_of(last)}{ASIDE}"} & set(names):
        raise ValueError(
            f"max_steps is {last}, and training is at step {kept[-1][0]} already: set it to a step whose checkpoint is"
            f" kept ({', '.join(str(step) for step, _ in kept)}) or to more, or start a run of another name"
        )
    return up_to


def _set_aside(damaged: list[Path]) -> None:
    for path in damaged:
        aside = path.with_name(f"{path.name}{ASIDE}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _in_words(what: str, error: BaseException, otherwise: type[Exception]) -> Exception:
    """A sentence with the first reason inside an error that collects those of all ranks.

    As an OSError it keeps the number, by which trouble of a file system that passes is told from what comes again.
    """
    failures = getattr(error, "failures", {}).items()
    rank, inner = next(((f"rank {number}: ", first) for number, (first, _) in failures), ("", error))
    sentence = f"{what}: {rank}{str(inner) or type(inner).__name__}"
    # Safetensors, which is written in Rust, has the number in its text alone.
    in_text = re.search(r"\(os error (\d+)\)", sentence)
    if not isinstance(inner, OSError) and not in_text:
        return otherwise(sentence)
    told = OSError(sentence)
    told.errno = int(in_text[1]) if in_text else getattr(inner, "errno", None)
    return told
