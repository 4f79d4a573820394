"""Which videos a run's sample stage owes: one per prompt, seed, weights, length, with and without its prompt."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from brickreel import config, files
from brickreel.evaluation import prompts


class Weights(NamedTuple):
    """One set of weights to sample from."""

    step: int
    kind: str
    """base, raw or ema."""
    folder: Path | None
    """What the weights are loaded from; None for the base model."""
    final: bool = False
    identity: str = ""
    """Changes when the weights or parts of the base model do: videos of others are not taken for these."""
    objective: str = "iddpm"
    """What they were trained for, which decides the samplers that suit them."""

    def sampler(self, settings: config.Sample) -> str:
        """The named samplers solve IDDPM's equation; weights trained for rectified flow have one sampler."""
        return settings.sampler if self.objective == "iddpm" else self.objective


class Job(NamedTuple):
    """One video."""

    prompt: str
    seed: int
    weights: Weights
    conditional: bool = True
    length: int = 1

    @property
    def prompt_id(self) -> str:
        """Names the prompt in files."""
        return prompts.prompt_id(self.prompt)

    def name(self, first: str) -> str:
        """File name without suffix; what is not the usual case stands behind the seed. `first`: usual weights."""
        parts = [self.prompt_id, str(self.seed)]
        if self.weights.kind not in ("base", first):
            parts.append(self.weights.kind)
        if not self.conditional:
            parts.append("unconditional")
        if self.length > 1:
            parts.append(f"x{self.length}")
        return "-".join(parts)


def owed(texts: Sequence[str], weights: Iterable[Weights], settings: config.Sample) -> list[Job]:
    """All videos of a run, grouped by weights, so that each set is loaded once."""
    jobs = []
    for item in weights:
        ends = item.final or item.kind == "base"
        for length in settings.lengths if item.final else (1,):
            for conditional in (True, False) if settings.unconditional and ends and length == 1 else (True,):
                jobs += [Job(text, seed, item, conditional, length) for text in texts for seed in settings.seeds]
    return jobs


def folder(run: str, step: int) -> Path:
    """Where the videos of a step stand; step 0 is the base model."""
    return Path("results/sample") / run / f"step-{step:08d}"


def key(job: Job, settings: config.Sample) -> str:
    """Hash of everything that decides the pixels of a video, as far as the weights' identity tells them."""
    parts = {
        "prompt": job.prompt,
        "seed": job.seed,
        "conditional": job.conditional,
        "length": job.length,
        "weights": [job.weights.step, job.weights.kind, job.weights.identity, job.weights.objective],
        "settings": settings.model_dump(mode="json", include=_PIXELS),
        "device": _device(settings),
    }
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _device(settings: config.Sample) -> str:
    """A GPU computes in bf16, a CPU in fp32."""
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return automatic if settings.device == "auto" else settings.device


_PIXELS = {"steps", "sampler", "guidance", "guidance_channels", "resolution", "frames", "pose_rate", "hold"}


def finished(path: Path, wanted: str) -> dict[str, Any] | None:
    """The row of a video that is done under this key: its record beside it says so. None when it must be made."""
    row = _record(path, wanted)
    return row if row and row["outcome"] == "ok" and path.is_file() else None


def recorded(path: Path, wanted: str) -> dict[str, Any]:
    """The row of a video that was made or failed under this key. Raises ValueError when there is none."""
    row = _record(path, wanted)
    if row is None:
        raise ValueError(f"{path} has no record of how it was made: was its rank ended? Run the stage again")
    return row


def _record(path: Path, wanted: str) -> dict[str, Any] | None:
    record = path.with_suffix(".json")
    if not record.is_file():
        return None
    try:
        value = files.read_json(record)
    except ValueError:
        return None
    return value["row"] if isinstance(value, dict) and value.get("key") == wanted else None


def finish(path: Path, wanted: str, row: dict[str, Any]) -> None:
    """Note how a video ended. Written last, so that a video without its record is made again."""
    files.write_json(path.with_suffix(".json"), {"key": wanted, "row": row})


def deal(jobs: Sequence[Job], rank: int, world_size: int) -> list[Job]:
    """The jobs of one rank: whole prompts, dealt in turn over prompts and seeds, so that ranks finish together."""
    videos = list(dict.fromkeys((job.prompt, job.seed) for job in jobs))
    mine = set(videos[rank::world_size])
    return [job for job in jobs if (job.prompt, job.seed) in mine]
