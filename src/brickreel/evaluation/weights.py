"""Which weights of a run there are to sample from: base model, kept checkpoints, final ones."""

from pathlib import Path

from torch import Tensor

from brickreel import config
from brickreel.evaluation.jobs import Weights
from brickreel.training import checkpoint


def available(
    run: str, settings: config.Sample, max_steps: int, results: Path = Path("results/train")
) -> list[Weights]:
    """Base model first, then by step. The final weights stand for the checkpoint of their step.

    `max_steps` names the final step where no checkpoint is left to tell it. Raises FileNotFoundError when the run has
    no final weights.
    """
    final = results / run / "final"
    missing = [kind for kind in settings.weights if not (final / kind).is_dir()]
    if missing:
        raise FileNotFoundError(f"{final / missing[0]} does not exist: run `brickreel train --run {run}` to its end")
    kept = checkpoint.list_checkpoints(results / run / "checkpoints")
    last = kept[-1][0] if kept else max_steps
    found = [Weights(0, "base", None)]
    for step, folder in kept if settings.checkpoints == "all" else ():
        if 0 < step < last:
            found += [Weights(step, kind, folder, identity=_identity(folder)) for kind in settings.weights]
    return found + [
        Weights(last, kind, final / kind, final=True, identity=_identity(final / kind)) for kind in settings.weights
    ]


def during(
    run: str, settings: config.Sample, checkpoint_name: str, results: Path = Path("results/train")
) -> list[Weights]:
    """The weights of one checkpoint while training goes on. Raises FileNotFoundError when it is not there any more."""
    kept = {folder.name: (step, folder) for step, folder in checkpoint.list_checkpoints(results / run / "checkpoints")}
    if checkpoint_name not in kept:
        raise FileNotFoundError(f"{results / run}/checkpoints/{checkpoint_name} is not there, or not any more")
    step, folder = kept[checkpoint_name]
    return [Weights(step, kind, folder, identity=_identity(folder)) for kind in settings.weights]


def load(weights: Weights) -> dict[str, Tensor]:
    """The state dict of weights other than the base model's. Raises ValueError when a file is damaged."""
    if weights.folder is None:
        raise ValueError("the base model is loaded from its own folder")
    if weights.final:
        from brickreel.models.stdit2.weights import read_safetensors

        return read_safetensors(weights.folder)
    return checkpoint.load_weights(weights.folder, weights.kind)


def _identity(folder: Path) -> str:
    """Sizes and times of the files: reading gigabytes to hash them would take longer than it is worth."""
    stats = [(path.name, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return ";".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)
