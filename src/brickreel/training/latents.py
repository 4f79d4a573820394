"""The dataset of latents: safetensors files with posterior means and log-variances, and text embeddings, in bf16.

A file describes itself: its header holds the index rows of the samples inside, so that an interrupted `encode` finds
what it has finished. Readers map files into memory and check each sample's CRC-32.
"""

import json
import os
import zlib
from collections.abc import Container, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from brickreel import files

OPEN_FILES = 128


class Sample(NamedTuple):
    """One encoded showing of a clip, bf16: mean and logvar [C, T, h, w], text [tokens, channels]."""

    mean: Tensor
    logvar: Tensor
    text: Tensor


def text_name(row: Mapping[str, Any]) -> str:
    """Name of a clip's text embedding in its file."""
    return f"{row['clip_id']}.{row['kind']}.text"


def crc32(sample: Sample) -> int:
    """Checksum of a sample's bytes."""
    value = 0
    for tensor in sample:
        value = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().reshape(-1).data, value)
    return value


class Writer:
    """Collects samples and writes them to `{prefix}-0000.safetensors` and on, each about `file_mib` MiB."""

    def __init__(self, prefix: Path, digest: str, file_mib: int) -> None:
        self.prefix, self.digest, self.limit = prefix, digest, file_mib << 20
        self.tensors: dict[str, Tensor] = {}
        self.rows: list[dict[str, Any]] = []
        self.bytes = 0
        taken = [int(path.stem.rsplit("-", 1)[1]) for path in part_files(prefix)]
        self.number = max(taken, default=-1) + 1

    @property
    def path(self) -> Path:
        """The file that the next flush writes."""
        return self.prefix.with_name(f"{self.prefix.name}-{self.number:04d}.safetensors")

    def add(self, row: dict[str, Any], sample: Sample, about: Mapping[str, Any]) -> dict[str, Any]:
        """Take a sample; returns its row, completed with file names and checksum. `about` says what it was made of."""
        tensors = {f"{row['sample_id']}.mean": sample.mean, f"{row['sample_id']}.logvar": sample.logvar}
        tensors[text_name(row)] = sample.text
        for name, tensor in tensors.items():
            if name not in self.tensors:
                self.tensors[name] = tensor.contiguous()
                self.bytes += tensor.numel() * tensor.element_size()
        row = row | {"file": self.path.as_posix(), "text_file": self.path.as_posix(), "crc32": crc32(sample)}
        self.rows.append({"row": row, "about": dict(about)})
        return row

    def flush(self, at_least_full: bool = False) -> None:
        """Write what was taken, whole or not at all. Call between clips, so that a clip's text is stored once."""
        if not self.rows or (at_least_full and self.bytes < self.limit):
            return
        header = {"brickreel": json.dumps({"digest": self.digest, "rows": self.rows})}
        with files.replacing(self.path) as temporary:
            save_file(self.tensors, os.fspath(temporary), metadata=header)
        self.tensors, self.rows, self.bytes = {}, [], 0
        self.number += 1


def part_files(prefix: Path) -> list[Path]:
    """The files of one shard that exist."""
    return sorted(prefix.parent.glob(f"{prefix.name}-[0-9][0-9][0-9][0-9]*.safetensors"))


def finished(prefix: Path, digest: str) -> dict[str, dict[str, Any]]:
    """Samples of an earlier attempt whose digest begins like this: sample_id -> its row and what it was made of."""
    found: dict[str, dict[str, Any]] = {}
    for path in part_files(prefix):
        try:
            with safe_open(os.fspath(path), framework="pt") as opened:
                header = json.loads((opened.metadata() or {}).get("brickreel", "{}"))
        except (SafetensorError, OSError, json.JSONDecodeError):
            continue
        if header.get("digest", "").startswith(digest):
            found |= {entry["row"]["sample_id"]: entry for entry in header["rows"]}
    return found


def remove_unused(prefix: Path, rows: Iterable[Mapping[str, Any]], shards: int) -> None:
    """Delete a shard's files that no row names any more, and those of shards from the number of `shards` on."""
    used = {row[column] for row in rows for column in ("file", "text_file")}
    for path in part_files(prefix):
        if path.as_posix() not in used:
            path.unlink()
    for path in prefix.parent.glob("*-[0-9][0-9][0-9][0-9]*.safetensors"):
        shard = path.name.rpartition("-")[0]
        if shard.isdecimal() and int(shard) >= shards:
            path.unlink(missing_ok=True)


def remove_clips(path: Path, clips: Container[str]) -> None:
    """Write a file again without these clips' samples and texts, if it holds any."""
    with safe_open(os.fspath(path), framework="pt") as opened:
        header = json.loads((opened.metadata() or {}).get("brickreel", '{"rows": []}'))
        gone = [entry["row"] for entry in header["rows"] if entry["row"]["clip_id"] in clips]
        if not gone:
            return
        names = {f"{row['sample_id']}.{part}" for row in gone for part in ("mean", "logvar")}
        names |= {text_name(row) for row in gone}
        kept = {name: opened.get_tensor(name) for name in opened.keys() if name not in names}  # noqa: SIM118
    header["rows"] = [entry for entry in header["rows"] if entry["row"]["clip_id"] not in clips]
    with files.replacing(path) as temporary:
        save_file(kept, os.fspath(temporary), metadata={"brickreel": json.dumps(header)})


def _opened(path: str) -> Any:
    about = os.stat(path)
    return _mapped(os.path.abspath(path), about.st_ino, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=OPEN_FILES)
def _mapped(path: str, *version: int) -> Any:
    """A file in memory. `version` tells a file from the one it replaced."""
    return safe_open(path, framework="pt")


def read(row: Mapping[str, Any], check: bool = True) -> Sample:
    """Read one sample. Raises ValueError, naming sample and file, when it is missing, damaged or not finite."""
    try:
        name = row["sample_id"]
        latents, texts = _opened(row["file"]), _opened(row["text_file"])
        sample = Sample(
            latents.get_tensor(f"{name}.mean"), latents.get_tensor(f"{name}.logvar"), texts.get_tensor(text_name(row))
        )
    except (SafetensorError, OSError) as error:
        raise ValueError(f"sample {row['sample_id']} cannot be read from {row['file']}: {error}") from error
    if check and crc32(sample) != row["crc32"]:
        raise ValueError(f"sample {row['sample_id']} in {row['file']} is damaged: its checksum does not match")
    # One of them would make the loss of a whole step not finite.
    strange = [part for part, tensor in zip(Sample._fields, sample, strict=True) if not torch.isfinite(tensor).all()]
    if strange:
        file = row["text_file"] if strange == ["text"] else row["file"]
        raise ValueError(
            f"sample {row['sample_id']} in {file} is not finite ({', '.join(strange)}): delete that file and run encode"
        )
    return sample
