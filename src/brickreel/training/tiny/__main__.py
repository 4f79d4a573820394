"""`python -m brickreel.training.tiny`: make the tiny base model again, in three parts that may be done in slices."""

import json
import platform
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from brickreel import files
from brickreel.running import set_up_logging

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "tiny"
UNSEEN = 1  # added to the seed for footage that figures are read on

out_option = click.option("--out", type=click.Path(path_type=Path), default=ASSETS, show_default=True)
work_option = click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="Folder for drawn footage and unfinished training."
)
minutes_option = click.option(
    "--minutes", type=float, help="Stop after about as many; the same command goes on from there."
)


@click.group()
@click.option("--threads", default=1, show_default=True, help="Threads that torch uses.")
def main(threads: int) -> None:
    """Make the tiny base model that brickreel ships: `autoencoder`, then `transformer`, then `decoder`."""
    set_up_logging()
    torch.set_num_threads(threads)


def picture_options(steps: int) -> Callable[[Callable], Callable]:
    """The options of a training on stills."""
    options = (
        out_option,
        work_option,
        minutes_option,
        click.option("--steps", default=steps, show_default=True),
        click.option("--batch", default=16, show_default=True),
        click.option("--lr", default=2e-3, show_default=True),
        click.option("--pictures", default=10000, show_default=True),
        click.option("--unseen", default=256, show_default=True, help="Pictures that the figures are read on."),
        click.option("--seed", default=0, show_default=True),
    )
    return lambda command: reduce(lambda decorated, option: option(decorated), reversed(options), command)


@main.command("autoencoder")
@picture_options(steps=4500)
def make_autoencoder(out: Path, work: Path, minutes: float | None, **settings: Any) -> None:
    """Train the autoencoder on stills of shapes and bricks."""
    from brickreel.training.tiny import autoencoder

    torch.manual_seed(settings["seed"])
    _train_on_pictures("autoencoder", autoencoder.build(), out, work, minutes, settings)


@main.command("decoder")
@picture_options(steps=900)
def make_decoder(out: Path, work: Path, minutes: float | None, **settings: Any) -> None:
    """Train the decoder of `--out` on, with the encoder frozen: a finished transformer stays valid."""
    from brickreel.models import load
    from brickreel.training.tiny import autoencoder

    model = load.autoencoder(str(out / "autoencoder")).vae
    autoencoder.freeze_encoder(model)
    _train_on_pictures("decoder", model, out, work, minutes, settings)


def _train_on_pictures(
    part: str, model: Any, out: Path, work: Path, minutes: float | None, settings: Mapping[str, Any]
) -> None:
    from brickreel.training.tiny import autoencoder, footage, resuming

    steps, seed, pictures = settings["steps"], settings["seed"], settings["pictures"]
    drawn = _drawn(work / f"stills-{pictures}-{seed}.npy", lambda: footage.stills(pictures, seed))
    loss = autoencoder.loss_on(model, drawn, settings["batch"], seed)
    rows = resuming.train(f"tiny {part}", model, loss, steps, settings["lr"], work / part, minutes)
    if rows is None:
        return _say_unfinished()
    others = footage.stills(settings["unseen"], seed + UNSEEN)
    if part == "autoencoder":
        autoencoder.set_scaling_factor(model, others)
    figures = autoencoder.figures_on(model, others)
    autoencoder.save(model, out / "autoencoder")
    ordered = {name: settings[name] for name in ("steps", "batch", "lr", "pictures", "unseen", "seed")}
    _record(out, part, ordered, rows, figures)


@main.command("transformer")
@out_option
@work_option
@minutes_option
@click.option("--steps", default=7500, show_default=True)
@click.option("--stills-until", default=900, show_default=True, help="Steps on stills alone, which cost little.")
@click.option("--batch", default=6, show_default=True, help="Clips per step.")
@click.option("--stills-batch", default=24, show_default=True, help="Stills per step before clips come.")
@click.option("--lr", default=1.5e-3, show_default=True)
@click.option("--clips", default=1200, show_default=True)
@click.option("--stills", default=3000, show_default=True)
@click.option("--unseen", default=24, show_default=True, help="Clips that the figures are read on.")
@click.option("--seed", default=0, show_default=True)
def make_transformer(
    out: Path,
    work: Path,
    minutes: float | None,
    steps: int,
    stills_until: int,
    batch: int,
    stills_batch: int,
    lr: float,
    clips: int,
    stills: int,
    unseen: int,
    seed: int,
) -> None:
    """Train the transformer and its text encoder on shapes, with the autoencoder of `--out`."""
    from brickreel.models import load
    from brickreel.training.tiny import footage, resuming, text, transformer

    autoencoder = load.autoencoder(str(out / "autoencoder"))
    scale = autoencoder.scaling_factor
    made_by = transformer.encoder_digest(autoencoder)
    tokenizer = text.save_tokenizer(out / "tokenizer", text.vocabulary(text.sample_captions(300, seed)))

    def pool(count: int, frames: int, seed: int) -> Any:
        path = work / f"latents-{made_by}-{frames}-{count}-{seed}.safetensors"
        return transformer.encode(autoencoder, tokenizer, count, frames, seed, path)

    moving, still = pool(clips, footage.FRAMES, seed), pool(stills, 1, seed)
    torch.manual_seed(seed)
    model = transformer.Conditioned(len(tokenizer))
    loss = transformer.loss_on(model, moving, still, (batch, stills_batch), scale, stills_until, seed)
    rows = resuming.train("tiny transformer", model, loss, steps, lr, work / "transformer", minutes)
    if rows is None:
        return _say_unfinished()
    transformer.save(model, out)
    settings = {"steps": steps, "stills-until": stills_until, "batch": batch, "stills-batch": stills_batch, "lr": lr}
    settings |= {"clips": clips, "stills": stills, "unseen": unseen, "seed": seed}
    others = pool(unseen, footage.FRAMES, seed + UNSEEN)
    figures = {
        "heldout_loss": transformer.heldout(model, others, scale, seed),
        "heldout_loss_others_captions": transformer.heldout(model, others, scale, seed, swapped=True),
        "heldout_loss_fresh": transformer.heldout(transformer.Conditioned(len(tokenizer)), others, scale, seed),
        "parameters": transformer.summary(model),
    }
    _record(out, "transformer", settings, rows, figures)


def _drawn(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    if not path.exists():
        with files.replacing(path) as temporary:
            np.save(temporary, make(), allow_pickle=False)
    return np.load(path, allow_pickle=False)


def _say_unfinished() -> None:
    click.echo("There are steps left: the same command goes on from here.")


def _record(
    out: Path, part: str, settings: Mapping[str, Any], rows: list[dict[str, Any]], figures: Mapping[str, Any]
) -> None:
    """Add a part's settings, log and figures to `log.json` beside the weights."""
    path = out / "log.json"
    log = files.read_json(path) if path.exists() else {}
    log[part] = {
        "command": f"python -m brickreel.training.tiny {part} "
        + " ".join(f"--{name} {value}" for name, value in settings.items()),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "figures": figures,
        "log": rows,
    }
    files.write_json(path, log)
    click.echo(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
