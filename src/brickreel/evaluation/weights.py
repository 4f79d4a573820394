"""Which weights of a run there are to sample from: base model, kept checkpoints, final ones."""

import hashlib
from pathlib import Path

from torch import Tensor

from brickreel import config
from brickreel.evaluation import jobs
from brickreel.evaluation.jobs import Weights
from brickreel.models import load as load_part
from brickreel.training import checkpoint
from brickreel.training import final as trained

RESULTS = Path("results/train")
# Of a large file this many blocks of this many bytes are read.
_BLOCKS, _BLOCK = 256, 1 << 14


def available(
    run: str, settings: config.Sample, run_settings: config.Run, base: config.Base, results: Path = RESULTS
) -> list[Weights]:
    """Base model first, then by step, the final weights last: they stand for the checkpoint of their step.

    Raises FileNotFoundError when the run has no final weights.
    """
    final = results / run / "final"
    missing = [kind for kind in settings.weights if not (final / kind).is_dir()]
    if missing:
        raise FileNotFoundError(f"{final / missing[0]} does not exist: run `brickreel train --run {run}` to its end")
    kept = checkpoint.list_checkpoints(results / run / "checkpoints")
    told = trained.read(results / run)
    last = told["step"] if told else kept[-1][0] if kept else run_settings.max_steps
    objective, of_base = run_settings.objective, _parts(base)
    found = [
        Weights(step, kind, folder, identity=_identity(folder) + of_base, objective=objective)
        for step, folder in (kept if settings.checkpoints == "all" else ())
        # A run that was told to go on, or to stop earlier, has checkpoints beyond its final weights.
        if 0 < step < last
        for kind in settings.weights
    ]
    found += [
        Weights(last, kind, final / kind, final=True, identity=_identity(final / kind) + of_base, objective=objective)
        for kind in settings.weights
    ]
    before = load_part.objective_of(load_part.locate("transformer", **base.transformer.model_dump()))
    ordered = sorted(found, key=lambda weights: weights.step)
    return [Weights(0, "base", None, identity=of_base, objective=before), *ordered]


def during(
    run: str,
    settings: config.Sample,
    run_settings: config.Run,
    base: config.Base,
    checkpoint_name: str,
    results: Path = RESULTS,
) -> list[Weights]:
    """The weights of one checkpoint while training goes on; none where they are the final ones, which `available` has.

    Raises FileNotFoundError when it is not there any more.
    """
    told = trained.read(results / run)
    if told and checkpoint_name == jobs.folder(run, told["step"]).name:
        return []
    kept = {folder.name: (step, folder) for step, folder in checkpoint.list_checkpoints(results / run / "checkpoints")}
    if checkpoint_name not in kept:
        raise FileNotFoundError(f"{results / run}/checkpoints/{checkpoint_name} is not there, or not any more")
    step, folder = kept[checkpoint_name]
    identity, objective = _identity(folder) + _parts(base), run_settings.objective
    return [Weights(step, kind, folder, identity=identity, objective=objective) for kind in settings.weights]


def load(weights: Weights) -> dict[str, Tensor]:
    """The state dict of weights other than the base model's. Raises ValueError when a file is damaged."""
    if weights.folder is None:
        raise ValueError("the base model is loaded from its own folder")
    if weights.final:
        from brickreel.models.stdit2.weights import read_safetensors

        return read_safetensors(weights.folder)
    return checkpoint.load_weights(weights.folder, weights.kind)


def _parts(base: config.Base) -> str:
    """Tells the base model from another one at the same place.

    Of every set of weights: a checkpoint may hold additions to the transformer only, and all videos are made with the
    same autoencoder and text encoder.
    """
    parts = {name: getattr(base, name).model_dump() for name in ("transformer", "autoencoder", "text_encoder")}
    return "".join(f";{name}:{load_part.fingerprint(name, **part)}" for name, part in parts.items())


def _identity(folder: Path) -> str:
    """A checkpoint's manifest, which has the hashes of its files; else sizes and blocks at even distances in the files.

    Reading gigabytes whole would take longer than it is worth. Times say nothing: Snakemake sets them anew. The ends
    alone do not either: LoRA leaves the tensors there as they are.
    """
    found = hashlib.sha256()
    manifest = folder / checkpoint.MANIFEST
    for path in [manifest] if manifest.is_file() else sorted(filter(Path.is_file, folder.rglob("*"))):
        size = path.stat().st_size
        found.update(f"{path.name} {size} ".encode())
        with path.open("rb") as stream:
            for place in range(0, size, max(_BLOCK, -(-size // _BLOCKS))):
                stream.seek(place)
                found.update(stream.read(_BLOCK))
    return found.hexdigest()
