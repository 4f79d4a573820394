"""`brickreel generate`: videos from prompts, with a model that the export stage wrote or a base model.

Libraries are imported where they are used, so that `--help` and a wrong option answer at once.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickreel import config, files
from brickreel.progress import Bar
from brickreel.running import guarded, set_up_logging

if TYPE_CHECKING:
    from brickreel.films.video import Frames
    from brickreel.models.pipeline import OpenSoraPipeline

logger = logging.getLogger("brickreel")

DEFAULTS = "sampling.json"
"""Beside an exported model: the settings that its run was sampled with."""
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SAMPLERS = ("iddpm", "dpm-solver++", "rectified-flow")
DTYPES = ("float32", "bfloat16", "float16")


def load_pipeline(model: str, device: str = "auto", dtype: str | None = None) -> "OpenSoraPipeline":
    """The pipeline of an exported folder, or of a base model that brickreel ships ("builtin:tiny").

    bf16 on a GPU and fp32 on a CPU unless `dtype` says otherwise.
    """
    import torch

    from brickreel.models.load import BUILTIN
    from brickreel.models.pipeline import OpenSoraPipeline
    from brickreel.training.encoding import choose_device

    place = choose_device(device)
    precision = getattr(torch, dtype or ("bfloat16" if place.type == "cuda" else "float32"))
    if model.startswith(BUILTIN):
        part = config.Component(path=model)
        base = config.Base(transformer=part, autoencoder=part, text_encoder=part)
        pipeline = OpenSoraPipeline.from_base(base, dtype=precision)
    else:
        pipeline = OpenSoraPipeline.from_pretrained(model, dtype=precision)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(place)  # type: ignore[return-value]


def defaults(model: str) -> dict[str, Any]:
    """Settings of the call that suit a model: those its run was sampled with, where the folder tells them."""
    from brickreel.models import load

    folder = load.locate("transformer", model).parent if model.startswith(load.BUILTIN) else Path(model)
    stored = folder / DEFAULTS
    return files.read_json(stored) if stored.is_file() else sampling(config.Sample())


def sampling(settings: config.Sample, objective: str = "iddpm") -> dict[str, Any]:
    """The sample stage's settings in the pipeline's words, and `hold`, the video frames that a pose is shown for."""
    return {
        # The named samplers solve IDDPM's equation; weights trained for rectified flow have one sampler.
        "sampler": settings.sampler if objective == "iddpm" else objective,
        "num_frames": settings.frames,
        "height": settings.resolution[0],
        "width": settings.resolution[1],
        "fps": settings.pose_rate,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance,
        "guidance_channels": settings.guidance_channels,
        "hold": settings.hold,
    }


def suited(stored: Mapping[str, Any], chosen: Mapping[str, Any], continues: bool) -> dict[str, Any]:
    """The model's stored settings with those that the user chose.

    The fast sampler takes no given frames. Where they are asked for and the user named no sampler, it is the one that
    the weights were trained for, with its usual steps.

    Args:
        continues: whether references or several loops are asked for.

    Raises ValueError when the user named the fast sampler all the same.
    """
    settings = {**stored, **chosen}
    if not continues or settings.get("sampler") != "dpm-solver++":
        return settings
    if "sampler" in chosen:
        raise ValueError(
            "reference frames and loops need the sampler that the weights were trained for (`--sampler iddpm`)"
        )
    own = {"sampler": "iddpm", "num_inference_steps": config.Sample().steps}
    settings = {**stored, **own, **chosen}
    logger.info(
        "generate: %d steps of iddpm, since the model's own sampler, %s, takes no reference frames and no loops",
        settings["num_inference_steps"], stored["sampler"],
    )  # fmt: skip
    return settings


def make(
    pipeline: "OpenSoraPipeline",
    prompt: str,
    seed: int,
    out: Path,
    settings: Mapping[str, Any],
    references: Sequence[Path] = (),
    after_step: Callable[[], None] | None = None,
) -> "Frames":
    """Generate one video and write it: the same for the same prompt, seed and settings, whatever else is made.

    Args:
        settings: of the pipeline's call, and `hold`.
        references: pictures or videos whose frames are given; see the pipeline's `mask_strategy`.

    Raises ValueError for settings that do not go together, or when the GPU's memory does not suffice.
    """
    import torch

    from brickreel.evaluation import prompts
    from brickreel.films import video

    given = {name: value for name, value in settings.items() if name != "hold"}
    if references:
        size = int(given["height"]), int(given["width"])
        given["references"] = [[read_reference(path, *size) for path in references]]
        given["mask_strategy"] = [given.get("mask_strategy") or ""]
    elif given.pop("mask_strategy", None):
        raise ValueError("a mask strategy says where references stand: give --reference too")
    try:
        frames = pipeline(prompt, **given, generator=[prompts.generator(prompt, seed)], after_step=after_step).frames[0]
    except torch.OutOfMemoryError:
        asked = "{num_frames} poses of {width} x {height}".format_map(given)
        raise ValueError(f"out of memory with {asked}: ask for fewer poses, or for smaller ones") from None
    hold = int(settings.get("hold", 1))
    video.write(out, frames, float(given["fps"]) * hold, [hold] * len(frames))
    return frames


def read_reference(path: Path, height: int, width: int) -> "Frames":
    """A picture or a video, upright, as uint8 [n, height, width, 3], scaled to fill and cropped at the centre."""
    from brickreel.films import video
    from brickreel.training.encoding import read_still
    from brickreel.training.showing import fill_and_crop, to_tensor

    try:
        frames = read_still(str(path))[None].copy() if path.suffix.lower() in PICTURES else video.read(path)
    except OSError as error:
        raise ValueError(f"the reference {path} cannot be read: {error}") from error
    pixels = fill_and_crop(to_tensor(frames), height, width)
    return ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def output_path(out: str | None, prompt: str, seed: int, several: bool) -> Path:
    """Where a video goes: `out` itself for a single one; in the folder `out` under its prompt and seed for several."""
    from brickreel.evaluation import prompts

    name = f"{prompts.prompt_id(prompt)}-{seed}.mp4"
    if out is None:
        return Path(name)
    if several or Path(out).is_dir() or not Path(out).suffix:
        return Path(out) / name
    return Path(out)


@click.command(name="generate")
@click.option("--model", required=True, help="Folder that `brickreel export` wrote, or builtin:tiny.")
@click.option("--prompt", "texts", multiple=True, required=True, help="What to show; may be given several times.")
@click.option("--seed", "seeds", multiple=True, type=click.IntRange(min=0), help="May be repeated.  [default: 0]")
@click.option("--out", help="An .mp4 file, or a folder for several videos.  [default: named for prompt and seed]")
@click.option("--frames", "num_frames", type=click.IntRange(min=1), help="Poses per video (per loop).")
@click.option("--height", type=click.IntRange(min=8), help="Pixels, rounded down to what the model can make.")
@click.option("--width", type=click.IntRange(min=8), help="Pixels, as the height.")
@click.option("--fps", type=click.FloatRange(min=0, min_open=True), help="Poses per second: told to the model.")
@click.option("--hold", type=click.IntRange(min=1), help="Frames of the file per pose: 2 plays on twos.")
@click.option("--steps", "num_inference_steps", type=click.IntRange(1, 1000), help="Sampler steps.")
@click.option("--guidance", "guidance_scale", type=float, help="How closely to follow the prompt; 1 turns it off.")
@click.option("--guidance-channels", type=click.IntRange(min=0), help="Latent channels that guidance acts on.")
@click.option(
    "--sampler", type=click.Choice(SAMPLERS), help="dpm-solver++ needs about 20 steps.  [default: as trained]"
)
@click.option("--reference", "references", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A picture or video that is given; the first frame unless --mask-strategy says more.")  # fmt: skip
@click.option("--mask-strategy", help="LOOP,REFERENCE,FROM,TO,LENGTH,EDIT;... where references stand.")
@click.option("--loops", type=click.IntRange(min=1), default=1, help="Clips in a row, each continuing the last.")
@click.option("--condition-frames", type=click.IntRange(min=1), default=4, help="Frames that a loop takes over.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--dtype", type=click.Choice(DTYPES), help="[default: bfloat16 on a GPU, float32 on a CPU]")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(
    model: str, texts: tuple[str, ...], seeds: tuple[int, ...], out: str | None, references: tuple[Path, ...],
    device: str, dtype: str | None, debug: bool, **chosen: Any,
) -> None:  # fmt: skip
    """Generate videos from prompts.

    Settings that are not given are those that the model's run was sampled with.

    \b
    One video:
      brickreel generate --model results/export/demo --prompt "a red tower grows" --out tower.mp4
    Faster, other seeds:
      brickreel generate --model ... --prompt ... --sampler dpm-solver++ --steps 20 --seed 1 --seed 2
    From a picture, which is the first frame:
      brickreel generate --model ... --prompt ... --reference first.jpg
    Between two pictures (loop, reference, its first frame, place in the video, length, edit ratio):
      brickreel generate ... --reference a.jpg --reference b.jpg --mask-strategy "0,0,0,0,1;0,1,0,-1,1"
    Longer than a clip, the prompt changing with the third one:
      brickreel generate ... --loops 4 --prompt "|0|a red tower grows|2|the tower falls"
    """
    set_up_logging()

    def call() -> None:
        named = {name: value for name, value in chosen.items() if value is not None}
        settings = suited(defaults(model), named, bool(references) or chosen["loops"] > 1)
        wanted = list(dict.fromkeys((text, seed) for text in texts for seed in seeds or (0,)))
        if len(wanted) > 1 and out and Path(out).suffix == ".mp4":
            raise ValueError(f"--out {out} is one file, but {len(wanted)} videos are asked for: give a folder")
        pipeline = load_pipeline(model, device, dtype)
        steps = settings["num_inference_steps"] * settings["loops"] * len(wanted)
        with Bar("generate", steps, "steps") as bar:
            for text, seed in wanted:
                path = output_path(out, text, seed, len(wanted) > 1)
                frames = make(pipeline, text, seed, path, settings, references, bar.advance)
                logger.info("generate: %s, %d poses of %d x %d", path, len(frames), *frames.shape[2:0:-1])

    guarded("generate", debug, call)
