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


def picture_options(steps: int, lr: float) -> Callable[[Callable], Callable]:
    """The options of a training on stills."""
    options = (
        out_option,
        work_option,
        minutes_option,
        click.option("--steps", default=steps, show_default=True),
        click.option("--batch", default=16, show_default=True),
        click.option("--lr", default=lr, show_default=True),
        click.option("--pictures", default=10000, show_default=True),
        click.option("--unseen", default=256, show_default=True, help="Pictures that the figures are read on."),
        click.option("--seed", default=0, show_default=True),
    )
    return lambda command: reduce(lambda decorated, option: option(decorated), reversed(options), command)


@main.command("autoencoder")
@picture_options(steps=7000, lr=2e-3)
def make_autoencoder(out: Path, work: Path, minutes: float | None, **settings: Any) -> None:
    """Train the autoencoder on stills of shapes and bricks."""
    from brickreel.training.tiny import autoencoder, footage, resuming

    steps, batch, lr, seed = (settings[name] for name in ("steps", "batch", "lr", "seed"))
    torch.manual_seed(seed)
    model = autoencoder.build()
    loss = autoencoder.loss_on(model, _stills(work, settings), batch, seed)
    rows = resuming.train("tiny autoencoder", model, loss, steps, lr, work / "autoencoder", minutes)
    if rows is None:
        return _say_unfinished()
    unseen = footage.stills(settings["unseen"], seed + UNSEEN)
    autoencoder.set_scaling_factor(model, unseen)
    autoencoder.save(model, out / "autoencoder")
    _record(out, "autoencoder", settings, rows, autoencoder.figures_on(model, unseen))


@main.command("decoder")
@picture_options(steps=4500, lr=6e-4)
def make_decoder(out: Path, work: Path, minutes: float | None, **settings: Any) -> None:
    """Train the decoder of `--out` on against a critic, with the encoder frozen: a transformer stays valid."""
    from brickreel.models import load
    from brickreel.training.tiny import autoencoder, decoder, footage, resuming

    steps, batch, lr, seed = (settings[name] for name in ("steps", "batch", "lr", "seed"))
    model = load.autoencoder(str(out / "autoencoder")).vae.train()
    torch.manual_seed(seed)
    contest = decoder.Contest(model)
    loss = decoder.loss_on(contest, _stills(work, settings), batch, seed)
    rows = resuming.train("tiny decoder", contest, loss, steps, lr, work / "decoder", minutes, betas=(0.5, 0.95))
    if rows is None:
        return _say_unfinished()
    unseen = footage.stills(settings["unseen"], seed + UNSEEN)
    autoencoder.save(model, out / "autoencoder")
    _record(out, "decoder", settings, rows, autoencoder.figures_on(model, unseen))


def _stills(work: Path, settings: Mapping[str, Any]) -> Any:
    """The stills to train on, drawn once."""
    from brickreel.training.tiny import footage

    count, seed = settings["pictures"], settings["seed"]
    path = work / f"stills-{count}-{seed}.npy"
    if not path.exists():
        with files.replacing(path) as temporary:
            np.save(temporary, footage.stills(count, seed), allow_pickle=False)
    return np.load(path, allow_pickle=False)


@main.command("transformer")
@out_option
@work_option
@minutes_option
@click.option("--steps", default=18000, show_default=True)
@click.option("--stills-until", default=7000, show_default=True, help="Steps on stills alone, which cost little.")
@click.option("--batch", default=8, show_default=True, help="Clips per step.")
@click.option("--stills-batch", default=48, show_default=True, help="Stills per step before clips come.")
@click.option("--lr", default=1.5e-3, show_default=True)
@click.option("--clips", default=3000, show_default=True)
@click.option("--stills", default=20000, show_default=True)
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
    settings = {"steps": steps, "stills_until": stills_until, "batch": batch, "stills_batch": stills_batch, "lr": lr}
    settings |= {"clips": clips, "stills": stills, "unseen": unseen, "seed": seed}
    others = pool(unseen, footage.FRAMES, seed + UNSEEN)
    figures = {
        "heldout_loss": transformer.heldout(model, others, scale, seed),
        "heldout_loss_others_captions": transformer.heldout(model, others, scale, seed, swapped=True),
        "heldout_loss_fresh": transformer.heldout(transformer.Conditioned(len(tokenizer)), others, scale, seed),
        "parameters": transformer.summary(model),
    }
    _record(out, "transformer", settings, rows, figures)


def _say_unfinished() -> None:
    click.echo("There are steps left: the same command goes on from here.")


def _record(
    out: Path, part: str, settings: Mapping[str, Any], rows: list[dict[str, Any]], figures: Mapping[str, Any]
) -> None:
    """Add a part's settings, log and figures to `log.json` beside the weights."""
    options = (option for option in main.commands[part].params if option.name in settings)
    path = out / "log.json"
    log = files.read_json(path) if path.exists() else {}
    log[part] = {
        "command": f"python -m brickreel.training.tiny {part} "
        + " ".join(f"{option.opts[0]} {settings[option.name]}" for option in options),
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
