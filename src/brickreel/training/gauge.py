"""The held-out loss: frozen clips, noise and timesteps, so that two readings differ by the weights alone.

The training loss of diffusion hardly falls, since timestep and noise decide most of it. Here every reading asks the
same questions, and the answers are reported per range of timesteps, with an interval, and relative to step 0. Readings
that asked others, which a digest tells, are not compared.
"""

import hashlib
import heapq
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
import torch.distributed as dist
from torch import nn

from brickreel import tables
from brickreel.config import Run
from brickreel.training import objective
from brickreel.training.buckets import BucketPlan
from brickreel.training.dataset import Batch, Dataset, read_batch, read_encoded
from brickreel.training.randomness import Showing

logger = logging.getLogger("brickreel")

# A backward pass costs twice a forward pass.
FORWARDS_PER_TRAINED_SAMPLE = 3
LEAST_CLIPS = 2


@dataclass(frozen=True)
class Question:
    """One held-out sample at one frozen timestep."""

    row: dict[str, Any]
    clip: int
    bin: int
    timestep: int


def timestep_range(bin_number: int, bins: int) -> tuple[int, int]:
    """First timestep of a bin, and the one after its last."""
    return objective.TIMESTEPS * bin_number // bins, objective.TIMESTEPS * (bin_number + 1) // bins


def clips_within_budget(run: Run, plan: BucketPlan, available: int) -> int:
    """How many clips a reading can afford, for raw and EMA weights, within the run's share of training compute.

    Stills, which cost little, count only where nothing else is shown.
    """
    shown = sum(bucket.shown for bucket in plan.buckets if bucket.frames > 1) or plan.samples
    samples = run.gauge_every * run.micro_batches * shown / plan.micro_batches
    forwards = run.gauge_share * samples * FORWARDS_PER_TRAINED_SAMPLE
    affordable = int(forwards / (2 * run.gauge_bins))
    return min(available, run.gauge_clips, max(LEAST_CLIPS, affordable))


def questions(dataset: Dataset, run: Run, plan: BucketPlan) -> list[Question]:
    """The frozen questions: held-out clips drawn by their names, each at one timestep per bin.

    A still is a picture of a clip and would count as another one: stills are asked only where there are no clips.
    """
    rows = dataset.heldout.rows
    first = np.concatenate([np.zeros(0, np.int64), *(clips[:, 0] for clips in dataset.heldout.clips.values())])
    moving = first[pc.equal(rows["kind"].take(first).cast("string"), "clip").to_numpy()]
    first = moving if moving.size else first
    names = (name.as_py() for name in rows["sample_id"].take(first))
    # By a hash of the name: a dataset that grows keeps most of its questions.
    drawn = zip((hashlib.blake2b(name.encode()).digest() for name in names), first.tolist(), strict=True)
    chosen = [place for _, place in heapq.nsmallest(clips_within_budget(run, plan, len(first)), drawn)]
    asked = []
    for clip, row in enumerate(rows.take(chosen).to_pylist() if chosen else []):
        generator = Showing(f"gauge/{row['sample_id']}", 0).generator("timestep")
        for number in range(run.gauge_bins):
            low, high = timestep_range(number, run.gauge_bins)
            asked.append(Question(row, clip, number, int(generator.integers(low, high))))
    return asked


def digest(asked: Iterable[Question]) -> str:
    """Of what is asked: the same clips with other latents or texts are other questions."""
    told = [(question.row["sample_id"], question.row["crc32"], question.bin, question.timestep) for question in asked]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=8).hexdigest()


class Gauge:
    """Reads the held-out loss of one run on all ranks together."""

    def __init__(
        self, dataset: Dataset, run: Run, plan: BucketPlan, rank: int, world_size: int, device: torch.device
    ) -> None:
        self.run, self.rank, self.world_size, self.device = run, rank, world_size, device
        self.dataset = dataset
        self.questions = questions(dataset, run, plan)
        self.asked = digest(self.questions)
        self.kind = objective.diffusion(run)
        self.kept: dict[int, Batch] = {}

    def read(self, model: nn.Module, autocast: torch.dtype | None) -> list[list[float]]:
        """Loss per bin and clip with the model's present weights; the same on every rank."""
        answers = torch.zeros(len(self.questions), dtype=torch.float64, device=self.device)
        training = model.training
        model.eval()
        with torch.no_grad():
            for places, batch in self._batches():
                drawn = self._draw(places, batch)
                found = objective.losses(self.kind, model, batch, drawn, autocast)
                if places[0] >= 0:
                    absent = batch.valid.to(self.device) == 0
                    answers[torch.tensor(places, device=self.device)] = found.double().masked_fill(absent, math.nan)
        model.train(training)
        if self.world_size > 1:
            dist.all_reduce(answers)
        values = answers.tolist()
        bins: list[list[float]] = [[] for _ in range(self.run.gauge_bins)]
        for question, value in zip(self.questions, values, strict=True):
            bins[question.bin].append(value)
        return bins

    def _batches(self) -> Iterator[tuple[list[int], Batch]]:
        """This rank's questions and their clips, which are kept; but those out of reach are asked for every time."""
        for number, places in enumerate(self._dealt()):
            batch = self.kept.get(number)
            if batch is None:
                batch = self._batch(places)
                for sentence in dict.fromkeys(batch.problems if places[0] >= 0 else ()):
                    logger.warning("held-out loss: %s; it counts as absent", sentence)
                if not batch.passing:
                    self.kept[number] = batch
            yield places, batch

    def _dealt(self) -> list[list[int]]:
        """This rank's questions in batches of one clip; every rank has as many, padded with [-1]."""
        clips: dict[int, list[int]] = {}
        for place, question in enumerate(self.questions):
            clips.setdefault(question.clip, []).append(place)
        groups = list(clips.values())
        mine = groups[self.rank :: self.world_size]
        rounds = -(-len(groups) // self.world_size)
        return mine + [[-1]] * (rounds - len(mine))

    def _batch(self, places: list[int]) -> Batch:
        asked = [self.questions[max(place, 0)] for place in places]
        showings = [Showing(f"gauge/{question.row['sample_id']}", 1 + question.bin) for question in asked]
        rows = [question.row for question in asked]
        return read_batch(rows, showings, rows[0]["frames"], read_encoded, self.dataset.channels)

    def _draw(self, places: list[int], batch: Batch) -> objective.Draw:
        timesteps = [self.questions[max(place, 0)].timestep for place in places]
        return objective.Draw(
            objective.latents(batch, self.device),
            torch.tensor(timesteps, device=self.device),
            objective.noise(batch, self.device),
            None,
            torch.zeros(len(places), dtype=torch.bool, device=self.device),
        )


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval over clips (Student's t); with one clip the interval is the value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, mean, mean
    from scipy import stats  # here, since it takes a second to import

    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * spread
    return mean, mean - reach, mean + reach


def first_losses(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str | None, int, int, int], float]:
    """Losses of step 0, by what two readings must share: weights, questions, timesteps and number of clips."""
    return {
        (row["weights"], row["questions"], *_timesteps(row), row["clips"]): row["loss"]
        for row in rows
        if row["step"] == 0
    }


def mean_losses(path: Path, weights: str = "ema") -> dict[int, float]:
    """Step -> held-out loss, averaged over bins.

    Only of readings that can be compared: with the questions and bins of the newest one, and none of fewer clips than
    the fullest.
    """
    rows = tables.read_log("gauge", path).to_pylist()
    rows = [row for row in rows if row["weights"] == weights and row["loss"] is not None]
    last = rows[-1] if rows else {}
    bins = {_timesteps(row) for row in rows if (row["attempt"], row["step"]) == (last["attempt"], last["step"])}
    rows = [row for row in rows if row["questions"] == last["questions"] and _timesteps(row) in bins]
    most = max((row["clips"] for row in rows), default=0)
    found: dict[int, dict[tuple[int, int], float]] = {}
    for row in rows:
        # Of a step that was read twice, the later reading counts.
        found.setdefault(row["step"], {})[_timesteps(row)] = row["loss"] if row["clips"] == most else math.nan
    means = {step: math.fsum(losses.values()) / len(bins) for step, losses in found.items() if losses.keys() == bins}
    return {step: mean for step, mean in means.items() if math.isfinite(mean)}


def _timesteps(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["t_low"], row["t_high"]


def write(
    path: Path, attempt: int, step: int, readings: Mapping[str, list[list[float]]], asked: str | None = None
) -> None:
    """Append a reading to `gauge.jsonl`, one row per weights and bin. `readings`: weights -> bins -> clips.

    It is relative to a reading of step 0 that asked the same (`asked` is the digest), in the same bins and of as many
    clips, where there is one. Where there is none, the log says so once in an attempt.
    """
    rows = tables.read_log("gauge", path).to_pylist() if step else []
    first = first_losses(rows)
    told = any(row["attempt"] == attempt and row["step"] and row["relative"] is None for row in rows)
    for weights, bins in readings.items():
        for number, values in enumerate(bins):
            finite = [value for value in values if math.isfinite(value)]
            if not finite:
                continue
            loss, low, high = interval(finite)
            t_low, t_high = timestep_range(number, len(bins))
            at_start = first.get((weights, asked, t_low, t_high, len(finite))) if step else loss
            if at_start is None and not told:
                told = True
                logger.warning(
                    "held-out loss: that of step %d is not told relative to step 0, of which there is no reading of"
                    " the same clips and timesteps, or of as many clips",
                    step,
                )
            tables.log(
                "gauge",
                path,
                {
                    "attempt": attempt,
                    "step": step,
                    "time_s": time.time(),
                    "weights": weights,
                    "bin": number,
                    "t_low": t_low,
                    "t_high": t_high,
                    "loss": loss,
                    "low": low,
                    "high": high,
                    "relative": loss / at_start if at_start else None,
                    "clips": len(finite),
                    "questions": asked,
                },
            )
