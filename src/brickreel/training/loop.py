"""The training loop: the same steps on any number of ranks.

A step shows a fixed list of micro-batches. Each rank takes its share, sums the losses of its samples, and after the
gradients are added over the ranks one small collective brings loss, norms and requests to stop together, so that all
ranks decide alike: update, skip, or stop with a checkpoint.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn

from brickreel import files, tables
from brickreel.cluster import sweep
from brickreel.cluster.exits import Interrupted
from brickreel.cluster.ranks import Ranks
from brickreel.config import Run, Train
from brickreel.progress import Bar
from brickreel.training import backends, cautions, checkpoint, final, gauge, objective, recipe
from brickreel.training.arithmetic import Arithmetic
from brickreel.training.checkpoint import Checkpoints
from brickreel.training.dataset import Batch, Dataset, prefetched
from brickreel.training.order import Order, deal
from brickreel.training.schedule import learning_rate
from brickreel.training.signals import StopRequest, noticed
from brickreel.training.steplog import Clock, StepLog
from brickreel.training.tracking import Trackers

__all__ = ["Interrupted", "Trainer"]

logger = logging.getLogger("brickreel")


@dataclass
class Progress:
    """What a checkpoint stores beside tensors."""

    step: int = 0
    micro_batches: int = 0
    """Shown so far in the present order."""
    samples: int = 0
    """Shown so far, over all ranks and orders."""
    skipped: int = 0
    unreadable: int = 0


@dataclass
class Outcome:
    """What the ranks found together in one step."""

    loss: float
    samples: float
    gradient_square: float
    weight_square: float
    unreadable: int
    stop: bool

    @property
    def finite(self) -> bool:
        """Whether the step may be taken."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_square) and self.samples > 0


class Trainer:
    """One attempt of one run on this rank."""

    def __init__(
        self, name: str, folder: Path, run: Run, settings: Train, ranks: Ranks, device: torch.device, attempt: int
    ) -> None:
        self.name, self.folder, self.run, self.settings = name, folder, run, settings
        self.ranks, self.device, self.attempt = ranks, device, attempt
        self.progress = Progress()
        self.skipped_in_a_row = 0
        self.at_work: Batch | str = "its first micro-batch"
        self.clock = Clock(device)
        self.log = StepLog(folder / "steps", attempt, ranks.rank)

    def prepare(self, model: nn.Module, dataset: Dataset, order: Order, made_of: Mapping[str, Any]) -> None:
        """Put the model under its backend and continue from the newest good checkpoint, if there is one.

        Raises ValueError when that checkpoint is of another recipe than `made_of`, or of another order and the settings
        refuse it or have no steps for a fresh one, or when there is none of a run that had some.
        """
        self.arithmetic = Arithmetic.of(model)
        self.dataset, self.order, self.made_of = dataset, order, made_of
        backend = backends.choose(self.run.backend, self.ranks.world_size, self.device)
        self.backend = backends.build(backend, model.train(), self.run, self.ranks.world_size, self.device)
        self.kind = objective.diffusion(self.run)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", self.ranks.rank, self.ranks.world_size, self.device)
        self.checkpoints.on_written = self._written
        self.gauge = gauge.Gauge(dataset, self.run, order.plan, self.ranks.rank, self.ranks.world_size, self.device)
        self.warnings = self._resume()
        if self.ranks.rank == 0:
            for sentence in cautions.of(self.run, self.ranks.world_size):
                logger.warning("%s: %s", self.name, sentence)

    def _resume(self) -> list[str]:
        path, warnings = self.checkpoints.newest_good(self.run.max_steps)
        if path is None:
            if before := self._trained_before():
                raise ValueError(
                    f"{self.name} was at step {before} already, and {self.checkpoints.folder} has no checkpoint:"
                    f" restore one, or move {self.folder} away to start anew"
                )
            return warnings
        state = checkpoint.read_state(path)
        steps_left = state["step"] < self.run.max_steps
        recipe.check(f"checkpoint {path.name} was", state.get("recipe", {}), self.made_of, steps_left)
        self._check_layout(path, state)
        self._take_order_of_masks(state.get("recipe", {}))
        self.checkpoints.load(path, self.backend.state())
        self.backend.loaded(state["updates"])
        known = {name: state[name] for name in ("step", "micro_batches", "samples", "skipped", "unreadable")}
        self.progress = Progress(**known)
        if state["order"] == self.order.without_buckets:
            self.order.identity = self.dataset.identity = state["order"]  # it goes on in the order that it began
        if state["order"] != self.order.identity:
            if self.settings.new_dataset == "refuse":
                raise ValueError(
                    f"checkpoint {path.name} was made with another dataset, bucket plan or seed: restore them, start"
                    " a run of another name, or set train.new_dataset: fresh_order to keep its weights"
                )
            if not steps_left:
                raise ValueError(
                    f"the dataset, bucket plan or seed changed after {path.name}, the last step: restore them, raise"
                    " max_steps, or start a run of another name"
                )
            self.progress.micro_batches = 0
            warnings.append(f"the dataset, bucket plan or seed changed after {path.name}: a fresh order starts")
        logger.info("%s: continuing from %s", self.name, path.name)
        return warnings

    def _trained_before(self) -> int:
        """The last step that final weights or an earlier attempt are known to have had in a checkpoint."""
        about = self.folder / "final" / final.ABOUT
        finished = files.read_json(about)["step"] if about.is_file() else 0
        rows = tables.read_log("attempts", self.folder / "attempts.jsonl").to_pylist()
        begun = [row["first_step"] - 1 for row in rows if row["first_step"]]
        ended = [row["last_step"] for row in rows if row["last_step"] and row["outcome"] != "failed"]
        return max([finished, *begun, *ended])

    def _take_order_of_masks(self, stored: Mapping[str, Any]) -> None:
        """A draw takes strategies in their order, and settings files are sorted: go on in the order that it began."""
        if "mask_ratios" in stored:
            self.run = self.run.model_copy(update={"mask_ratios": dict(stored["mask_ratios"])})
            self.made_of = {**self.made_of, "mask_ratios": [list(item) for item in self.run.mask_ratios.items()]}

    def _check_layout(self, path: Path, state: Mapping[str, Any]) -> None:
        """Raise ValueError when the checkpoint's tensors are flat and the backend's are not, or the other way round."""
        if bool(state.get("shapes")) != bool(self.backend.shapes()):
            raise ValueError(
                f"checkpoint {path.name} was written by another kind of backend: ddp and fsdp2 continue each other's"
                " checkpoints, colossalai only its own. Set the backend back, or start a run of another name"
            )

    def fit(self) -> None:
        """Train to the last step. Raises Interrupted when asked to stop, with a checkpoint written."""
        trackers = Trackers(self.settings.trackers if self.ranks.rank == 0 else (), self.name, self.folder)
        left = max(0, self.run.max_steps - self.progress.step)
        batches = self._batches(left)
        try:
            with noticed() as request, Bar(f"train {self.name}", left, "steps") as bar:
                if self.progress.step == 0:
                    self._gauge()
                self.clock.read()
                for _ in range(left):
                    row = self._step(batches, request)
                    if self.ranks.rank == 0 and row["step"] % self.settings.track_every == 0:
                        trackers.write(row["step"], _curves(row))
                    bar.advance(note=f"loss {row['loss']:.4f}" if row["loss"] is not None else "skipped")
        except torch.OutOfMemoryError as error:
            if self.progress.step > 0:
                raise  # it did fit: memory may be in pieces, and another attempt begins with all of it
            raise ValueError(self._too_large()) from error
        finally:
            batches.close()  # type: ignore[attr-defined]
            trackers.close()
            self.checkpoints.close()

    def _too_large(self) -> str:
        what = self.at_work
        if isinstance(what, Batch):
            what = f"{len(what.ids)} clips of {what.frames} x {what.height} x {what.width}"
        return (
            f"the GPU has not enough memory for {what} in step 1: set grad_checkpoint: true, give the"
            " bucket fewer clips per micro-batch (data.buckets), or take backend: fsdp2 on more GPUs"
        )

    def _batches(self, steps: int) -> Iterator[Batch]:
        """This rank's micro-batches of the next steps, read ahead."""
        first, count = self.progress.micro_batches, self.run.micro_batches
        rank, world_size = self.ranks.rank, self.ranks.world_size
        numbers = (
            share.number for step in range(steps) for share in deal(first + step * count, count, rank, world_size)
        )
        make = lambda number: self.dataset.batch(self.order.micro_batch(number))  # noqa: E731
        return prefetched(make, numbers, self.settings.loader_threads, self.settings.prefetch)

    def _step(self, batches: Any, request: StopRequest) -> dict[str, Any]:
        step, count = self.progress.step + 1, self.run.micro_batches
        expected = self.order.samples(self.progress.micro_batches, count)
        shares = deal(self.progress.micro_batches, count, self.ranks.rank, self.ranks.world_size)
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        shown = _Shown()
        for place, share in enumerate(shares):
            batch = self.at_work = self._next(batches)
            sums += self._micro_batch(batch, share.weight, expected, last=place == len(shares) - 1)
            if share.weight:
                shown.count(batch, self.arithmetic)
        outcome = self._agree(sums, request)
        lr = learning_rate(self.run.schedule, step)
        norm = math.sqrt(outcome.gradient_square) if outcome.gradient_square >= 0 else math.nan
        self._apply(outcome, expected, lr, norm)
        self.progress.step = step
        self.progress.micro_batches += count
        self.progress.samples += expected
        self.progress.unreadable += outcome.unreadable
        beyond = self._beyond_limits()
        if not beyond:
            # A checkpoint of such a step would end every later attempt too.
            self._between_steps(outcome, request)
        row = {
            "step": step,
            "samples": shown.samples,
            "sample_ids": shown.ids,
            "tokens": shown.tokens,
            "flops": shown.flops,
            "loss": outcome.loss if outcome.finite else None,
            "grad_norm": norm if outcome.finite else None,
            "weight_norm": math.sqrt(outcome.weight_square),
            "lr": lr,
            "skipped": not outcome.finite,
        }
        self.log.write(self._seconds(), row)
        for sentence in shown.problems:
            logger.warning("%s: %s; it counts as absent", self.name, sentence)
        if beyond:
            self._give_up(shown)
        if outcome.stop and step < self.run.max_steps:
            self.checkpoints.wait()
            raise Interrupted(f"stopped on request after step {step} of {self.run.max_steps}, with a checkpoint")
        return row

    def _next(self, batches: Any) -> Batch:
        since = time.perf_counter()
        batch = next(batches)
        self.clock.add("data", time.perf_counter() - since)
        return batch

    def _micro_batch(self, batch: Batch, weight: float, expected: int, last: bool) -> torch.Tensor:
        """Forward and backward; sum of losses, number of samples, number of unreadable ones: float64 [3]."""
        with self.backend.round(last):
            mark = self.clock.mark()
            drawn = objective.draw(batch, self.run, self.device)
            counted = batch.valid.to(self.device) * weight
            found = objective.losses(self.kind, self.backend.wrapped, batch, drawn, self.backend.autocast)
            total = (found * objective.weights(self.kind, self.run, drawn.t) * counted).sum()
            mark = self.clock.span("forward", mark)
            self.backend.backward(total / expected)
            self.clock.span("backward", mark)
        unreadable = (weight - counted).sum() if weight else counted.sum()
        return torch.stack([total.detach(), counted.sum(), unreadable]).double()

    def _agree(self, sums: torch.Tensor, request: StopRequest) -> Outcome:
        """Bring the step's numbers together: where the host waits for the device's numbers."""
        squares = self.backend.squares()
        flag = torch.tensor([float(bool(request))], dtype=torch.float64, device=self.device)
        mine = torch.cat([sums, flag, squares])
        self.clock.add("local", time.perf_counter() - self.clock.begun - self.backend.comm_s)  # a GPU tells its own
        mark = self.clock.mark()
        if self.ranks.world_size > 1:
            summed = mine if self.backend.sharded else mine[:4]
            dist.all_reduce(summed)
        self.clock.span("comm", mark)
        loss, samples, unreadable, stop, gradient, weights = mine.tolist()
        mean = loss / samples if samples else math.nan
        return Outcome(mean, samples, gradient, weights, int(unreadable), stop > 0)

    def _apply(self, outcome: Outcome, expected: int, lr: float, norm: float) -> None:
        mark = self.clock.mark()
        if outcome.finite:
            # The backward pass divided by the samples of the plan; unreadable ones leave fewer.
            scale = expected / outcome.samples
            clip = min(1.0, self.run.clip_norm / (norm * scale + 1e-6))
            self.backend.update(lr, scale * clip)
            self.skipped_in_a_row = 0
        else:
            self.backend.skip()
            self.progress.skipped += 1
            what = "step %d is not finite and is skipped"
            if outcome.samples:
                self.skipped_in_a_row += 1
            else:
                what = "none of the samples of step %d could be read: it is skipped"
            logger.warning(f"%s: {what}", self.name, self.progress.step + 1)
        self.clock.span("optimizer", mark)

    def _between_steps(self, outcome: Outcome, request: StopRequest) -> None:
        """Held-out loss and checkpoint, where they are due."""
        step, last = self.progress.step, self.progress.step == self.run.max_steps
        if step % self.run.gauge_every == 0 or last:
            self._gauge()
        if step % self.run.checkpoint_every == 0 or last or outcome.stop:
            self._save(wait=last or outcome.stop or not self.settings.async_checkpoints)

    def _gauge(self) -> None:
        """Read the held-out loss with raw and EMA weights; at step 0 they are the same."""
        since = time.perf_counter()
        before, self.at_work = self.at_work, "the held-out clips"
        if self.gauge.questions:
            readings = {"raw": self._read_gauge()}
            if self.progress.step == 0:
                readings["ema"] = readings["raw"]
            else:
                self.backend.swap_ema()
                readings["ema"] = self._read_gauge()
                self.backend.swap_ema()
            if self.ranks.rank == 0:
                gauge.write(self.folder / "gauge.jsonl", self.attempt, self.progress.step, readings, self.gauge.asked)
        self.at_work = before
        self.clock.add("gauge", time.perf_counter() - since)

    def _read_gauge(self) -> list[list[float]]:
        found = self.gauge.read(self.backend.model, self.backend.autocast)
        self.backend.rest()
        return found

    def _save(self, wait: bool) -> None:
        since = time.perf_counter()
        state = vars(self.progress) | {
            "order": self.order.identity,
            "recipe": self.made_of,
            "updates": self.backend.updates(),
            "world_size": self.ranks.world_size,
            "shapes": self.backend.shapes(),
        }
        self.checkpoints.save(self.progress.step, self.backend.state(), state, wait)
        self.clock.add("checkpoint", time.perf_counter() - since)

    def _written(self, step: int, path: Path) -> None:
        losses = gauge.mean_losses(self.folder / "gauge.jsonl")
        self.checkpoints.prune(self.run.keep_last, self.run.keep_every, self.run.keep_best, losses, step)

    def _seconds(self) -> dict[str, float | None]:
        seconds: dict[str, float | None] = dict(self.clock.read(self.backend.comm_s))
        self.backend.comm_s = 0.0
        # A number that is not known would be read as a small one.
        if not self.backend.tells_comm:
            seconds["comm"] = None
        if not self.backend.tells_local:
            seconds["local"] = None
        return seconds

    def _beyond_limits(self) -> bool:
        return self.skipped_in_a_row >= self.run.max_skipped or self.progress.unreadable >= self.run.max_unreadable

    def _give_up(self, shown: "_Shown") -> NoReturn:
        # The ranks stop together: what one of them knows decides whether trying again makes sense.
        if passing := next(filter(None, sweep.gather(shown.passing, self.ranks)), ""):
            raise ConnectionError(f"the dataset is out of reach: {passing}")
        if self.skipped_in_a_row >= self.run.max_skipped:
            raise ValueError(
                f"{self.skipped_in_a_row} steps in a row were not finite (max_skipped): lower schedule.lr, or look at"
                f" the samples of the last steps in {self.log.path}"
            )
        raise ValueError(
            f"{self.progress.unreadable} samples could not be read (max_unreadable): delete the files that the"
            " warnings above name, and run encode"
        )


class _Shown:
    """What this rank showed in one step."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.problems: list[str] = []
        self.passing = ""
        self.samples = self.tokens = 0
        self.flops = 0.0

    def count(self, batch: Batch, arithmetic: Arithmetic) -> None:
        """Add a micro-batch. Tokens are latent patches of one frame and 2 x 2 latent pixels."""
        frames, rows, columns = batch.grid
        self.ids += batch.ids
        self.problems += batch.problems
        self.passing = batch.passing or self.passing
        self.samples += len(batch.ids)
        self.tokens += len(batch.ids) * frames * -(-rows // 2) * -(-columns // 2)
        self.flops += sum(arithmetic.training_flops(*batch.grid, length) for length in batch.lengths)


def _curves(row: dict[str, Any]) -> dict[str, float]:
    names = {"loss": "train/loss", "grad_norm": "train/grad_norm", "weight_norm": "train/weight_norm", "lr": "train/lr"}
    return {title: row[name] for name, title in names.items() if row[name] is not None}
