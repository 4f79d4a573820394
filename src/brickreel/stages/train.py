"""Fine-tune one run: in one process, by torchrun, by srun or by the launcher."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

import pyarrow.compute as pc

from brickreel import files, tables
from brickreel.cluster import distributed, hang, lock, site_env, sweep
from brickreel.cluster.exits import Interrupted
from brickreel.cluster.ranks import Ranks
from brickreel.config import Config, Run, RunData

logger = logging.getLogger("brickreel")

FINISHED = "finished.json"
"""Written last, for the graph: without it a run is not over, whatever final weights an earlier end of it left."""
INDEX = Path("results/encode/index.parquet")
FINAL_WAIT_S = 6 * 3600.0
"""How long ranks wait for the final weights: of a large model on a slow file system they take more than an hour."""


def run(config: Config, run: str) -> None:
    """Train the named run to its last step, write `results/train/{run}/final/` and, last, `finished.json` beside it.

    Continues from the newest good checkpoint; a run that is finished stays as it is. Raises Interrupted when a signal
    asked to stop, with a checkpoint written, ValueError when what is there was made with other settings, OSError when
    another process is training it.
    """
    folder = Path("results/train") / run
    settings = config.run(run)
    plan = read_plan(run)
    if is_finished(folder, config, settings, plan):
        logger.info("train: %s is finished already, its final weights are kept", run)
        if not (folder / FINISHED).is_file():
            files.write_json(folder / FINISHED, {"step": settings.max_steps})
        return
    from brickreel.stages import preflight

    patience_s = hang.outlasting_s(site_env.read().hang_s)
    ranks = distributed.start(patience_s=patience_s, evidence=Path("logs/train") / run)
    try:
        with alone(folder, ranks):
            preflight.before_training(config, run, ranks)
            attempt(config, run, folder, plan, ranks)
    finally:
        distributed.stop()


@contextmanager
def alone(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the run on all ranks: rank 0 has the lock, and the launcher's own keeps other launchers away alone.

    Raises OSError on all ranks when another process trains the run.
    """
    held: TextIO | None = None
    problem: tuple[str, int | None] | None = None
    if ranks.rank == 0:
        try:
            held = lock.acquire(folder / "train.lock", f"'{folder.name}' is being trained", lock.LAUNCH_PATIENCE_S)
        except ValueError as error:
            # A lost node's lock may stand for some minutes: the next attempt may do.
            problem = str(error), errno.EBUSY
        except OSError as error:
            problem = str(error), error.errno
    if problem := sweep.gather(problem, ranks)[0]:
        told = OSError(problem[0])
        told.errno = problem[1]
        raise told
    with held or nullcontext():
        yield


def read_plan(run: str) -> Any:
    """The bucket plan that the plan stage made. Raises FileNotFoundError or ValueError with a sentence."""
    from brickreel.training.buckets import BucketPlan

    path = Path("results/plan") / run / "plan.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: run the plan stage first")
    stored = files.read_json(path)
    if "buckets" not in stored:
        raise ValueError(f"{path} has no buckets: run the plan stage again")
    return BucketPlan.from_json(stored["buckets"])


def is_finished(folder: Path, config: Config, run: Run, plan: Any) -> bool:
    """Whether the final weights are there, of the last step and of this order.

    Raises ValueError when they are, but were made by another recipe.
    """
    from brickreel.training import final, recipe
    from brickreel.training.order import Order

    about, order = final.read(folder), Order(plan, run.seed)
    if about is None or about["step"] != run.max_steps or about["order"] not in (order.identity, order.without_buckets):
        return False
    recipe.check(f"{folder / 'final'} was", about.get("recipe", {}), recipe.of(config.base, run), steps_left=False)
    return True


def attempt(config: Config, name: str, folder: Path, plan: Any, ranks: Ranks) -> None:
    """One attempt on this rank, logged whatever happens."""
    from brickreel.training import backends, encoding
    from brickreel.training.attempts import AttemptLog
    from brickreel.training.loop import Trainer

    run = config.run(name)
    device = encoding.choose_device(config.train.device, ranks.local_rank)
    share_processor(ranks, device)
    log = AttemptLog(folder, ranks, device, backends.choose(run.backend, ranks.world_size, device))
    trainer = Trainer(name, folder, run, config.train, ranks, device, log.number)
    try:
        prepare(trainer, config, plan)
        log.start(trainer.progress.step + 1, "; ".join(trainer.warnings))
        trainer.fit()
        finish(trainer, config)
    except Interrupted as stopped:
        log.end(trainer.progress.step, "dropped", str(stopped))
        distributed.barrier()  # the first rank that leaves with this status makes Slurm end the others
        raise
    except BaseException as error:
        log.end(trainer.progress.step, "failed", " ".join(str(error).split())[:500] or type(error).__name__)
        raise
    log.end(trainer.progress.step, "ok")


def prepare(trainer: Any, config: Config, plan: Any) -> None:
    """Dataset, order and model, and what is known of them beside the results."""
    from brickreel.training import lora, recipe
    from brickreel.training.buckets import read_index
    from brickreel.training.dataset import Dataset
    from brickreel.training.order import Order

    run = trainer.run
    index = read_index(INDEX, pc.field("outcome") == "ok")
    order = Order(plan, run.seed)
    model = lora.base_transformer(config.base)
    channels = (model.config.in_channels, model.config.caption_channels)
    reader = online_reader(config, run.data, trainer.device) if run.online else None
    dataset = Dataset(index, run.data, plan, order.identity, channels, reader)
    if run.lora:
        lora.inject(model, run.lora, run.seed)
    model.recompute(run.grad_checkpoint)
    trainer.prepare(model, dataset, order, recipe.of(config.base, run))
    if trainer.ranks.rank == 0:
        files.write_json(trainer.folder / "settings.json", run.model_dump(mode="json"))
        about = {"fingerprint": plan.fingerprint, "order": order.identity, "clips": plan.used, "heldout": plan.heldout}
        write_dataset(trainer.folder / "dataset.json", about, trainer.progress.step + 1)


def write_dataset(path: Path, about: dict[str, Any], first_step: int) -> None:
    """The present dataset, and under `datasets` all that the weights were trained on, each from its `first_step` on."""
    stored = files.read_json(path) if path.is_file() else {}
    known = stored.get("datasets", [stored | {"first_step": 1}] if stored else [])
    before = [row for row in known if row["first_step"] < first_step]
    if not before or before[-1]["order"] != about["order"]:
        before.append(about | {"first_step": first_step})
    files.write_json(path, about | {"datasets": before})


def online_reader(config: Config, data: RunData, device: Any) -> Any:
    """Decodes and encodes the clips themselves; `encode`'s index still says which are shown in which shape."""
    from brickreel.stages import encode
    from brickreel.training.encoding import Encoder
    from brickreel.training.online import Clips, OnlineReader

    good = pc.field("outcome") == "ok"
    cut = tables.read("cut_index", encode.CLIPS, Clips.COLUMNS, good)
    if encode.CAPTIONS.exists() or not pc.any(pc.not_equal(cut["text"], "")).as_py():
        described = good & (pc.field("text") != "")
        captions = tables.read("captions", encode.CAPTIONS, ["clip_id", "kind", "text"], described)
    else:
        captions = tables.SCHEMAS["captions"].empty_table()
    return OnlineReader(Clips(cut, captions), data, Encoder.load(config.base, config.encode, device))


def finish(trainer: Any, config: Config) -> None:
    """Rank 0 writes the final weights from the last checkpoint; the others wait."""
    from brickreel.training import checkpoint, final

    def write() -> None:
        last = trainer.run.max_steps
        kept = dict(checkpoint.list_checkpoints(trainer.folder / "checkpoints"))
        if last not in kept:
            raise ValueError(f"there is no checkpoint of step {last}, the last one: start training again")
        final.write(trainer.folder, kept[last], config.base, trainer.run)
        files.write_json(trainer.folder / FINISHED, {"step": last})
        logger.info("train: %s is finished after %d steps", trainer.name, last)

    distributed.first_alone(write, trainer.ranks, FINAL_WAIT_S)


def share_processor(ranks: Ranks, device: Any) -> None:
    """On a CPU the ranks of a node divide its cores, unless the environment says otherwise."""
    import torch

    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks.local_world_size))
