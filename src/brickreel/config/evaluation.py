"""Settings of what a run is judged by: sample, evaluate, export."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from brickreel.config.section import Positive, Section


class Sample(Section):
    """What is generated, and how."""

    prompts: tuple[str, ...] | Path = ()
    """Prompts, or a text file with one per line."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    """Videos per prompt. The noise depends on seed and prompt alone, not on ranks or order."""
    weights: tuple[Literal["raw", "ema"], ...] = ("ema",)
    """Which weights of every checkpoint are sampled; the first are those of the before/after grid."""
    checkpoints: Literal["all", "final"] = "all"
    """`all` samples every kept checkpoint, `final` only the last; the base model comes first in either case."""
    unconditional: bool = True
    """Sample the base model and the final weights without their prompts too: the noise of condition-free generation."""
    lengths: tuple[Positive, ...] = (1, 2, 4)
    """Multiples of `frames` for the final weights, 1 among them; 2 and 4 show drift in videos longer than the trained
    ones."""
    steps: Positive = 100
    """Sampler steps."""
    sampler: Literal["iddpm", "dpm-solver++"] = "iddpm"
    """`iddpm` is the origin's ancestral sampler; `dpm-solver++` needs about a quarter of its steps."""
    guidance: float = 7.0
    """Classifier-free guidance scale: 1 is none, more follows the prompt more closely and varies less."""
    guidance_channels: Positive | None = None
    """Latent channels that guidance acts on. When absent the objective's own: 3 for `iddpm`, as the origin left the
    fourth alone, and all for `rectified-flow`."""
    resolution: tuple[Positive, Positive] = (360, 640)
    """Height, width in pixels."""
    frames: Positive = 32
    """Poses per video."""
    pose_rate: Annotated[float, Field(gt=0)] = 8.0
    """What the model's fps input is told, and the rate of the written video in poses per second."""
    hold: Positive = 1
    """Video frames per pose when the video is written: 2 plays on twos."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one."""

    @model_validator(mode="after")
    def _asks_for_something_once(self) -> "Sample":
        for name in ("seeds", "weights", "lengths"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name}: {list(given)} must name at least one, and each once")
        if 1 not in self.lengths:
            raise ValueError(f"lengths: {list(self.lengths)} must contain 1: that is how steps are compared")
        return self


class Evaluate(Section):
    """How samples are scored."""

    features: Literal["transnetv2", "dinov2", "videomae"] = "transnetv2"
    """Feature network of the Frechet distance and of drift. `transnetv2` comes with its weights and works offline;
    `videomae` sees a video as a whole, so that drift is not measured."""
    dinov2: Path | None = None
    """Folder with DINOv2 weights for subject consistency; not measured without."""
    clip: Path | None = None
    """Folder with CLIP weights for prompt agreement; not measured without."""
    videomae: Path | None = None
    """Folder with VideoMAE weights, for `features: videomae`."""
    max_clips: Annotated[int, Field(ge=2)] = 128
    """Held-out windows that samples are compared with, at most; more take longer and give narrower intervals."""
    max_training_clips: Annotated[int, Field(ge=2)] = 2000
    """Training clips searched for the nearest one of every sample, at most."""

    @model_validator(mode="after")
    def _network_has_weights(self) -> "Evaluate":
        if self.features != "transnetv2" and getattr(self, self.features) is None:
            raise ValueError(f"features: {self.features} needs the folder of its weights in evaluate.{self.features}")
        return self


class Export(Section):
    """The folder for diffusers."""

    weights: Literal["ema", "raw"] = "ema"
    """The moving average of the weights, or the last step's own."""
    dataset: bool = True
    """Lay the run's clips with their captions beside the model, as links where the file system can."""
    push: str | None = None
    """Repository of a hub, such as `owner/name`, that the model is sent to; nothing is sent when absent."""
    push_dataset: str | None = None
    """The same for the clips: mind their licences."""
