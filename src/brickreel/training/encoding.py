"""From a clip's file to posterior and text embedding: what `encode` does once, and online training at every step."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from brickreel.config import Base, Encode
from brickreel.films import video
from brickreel.models import load
from brickreel.training import showing
from brickreel.training.assignment import Shape
from brickreel.training.latents import Sample

View = tuple[NDArray[np.int64], Shape, float]


class Encoder:
    """The frozen autoencoder and text encoder on one device."""

    def __init__(self, autoencoder: Any, text_encoder: Any, settings: Encode, device: torch.device) -> None:
        self.autoencoder, self.text_encoder = autoencoder, text_encoder
        self.settings, self.device = settings, device

    @classmethod
    def load(cls, base: Base, settings: Encode, device: torch.device | None = None) -> "Encoder":
        """Load both parts of the base model onto the device that the settings name."""
        device = device or choose_device(settings.device)
        dtype = torch.float32 if device.type == "cpu" else getattr(torch, settings.dtype)
        images, words = base.autoencoder, base.text_encoder
        batch = settings.frames_per_batch
        autoencoder = load.autoencoder(images.path, images.revision, images.subfolder, dtype, frames_per_batch=batch)
        text_encoder = load.text_encoder(words.path, words.revision, words.subfolder, dtype)
        return cls(autoencoder.to(device), text_encoder.to(device), settings, device)

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> list[Tensor]:
        """Embeddings [tokens, channels] in bf16, unpadded, one per prompt."""
        found = self.text_encoder.encode(list(prompts), max_tokens=self.settings.text_tokens)
        return [embedding.to("cpu", torch.bfloat16) for embedding in found]

    def clip(self, clip: Mapping[str, Any], views: Mapping[str, View], text: Tensor) -> dict[str, Sample]:
        """Encode every view of one clip or still, decoding its file once.

        Raises ValueError or OSError when the file cannot be read, or the posterior or the text is not finite.
        """
        if not torch.isfinite(text).all():
            raise ValueError(f"{clip['path']}: the text encoder's output is not finite{self._advice()}")
        if clip["kind"] == "still":
            frames = {0: read_still(clip["path"])}
        else:
            wanted = sorted({int(frame) for view in views.values() for frame in view[0]})
            frames = dict(zip(wanted, video.read(clip["path"], wanted), strict=True))
        samples = {}
        for name, (indices, shape, place) in views.items():
            shown = np.stack([frames[int(index)] for index in indices])
            mean, logvar = self.posterior(shown, shape, place, still=clip["kind"] == "still")
            if not (torch.isfinite(mean).all() and torch.isfinite(logvar).all()):
                raise ValueError(f"{clip['path']}: the autoencoder's output is not finite{self._advice()}")
            samples[name] = Sample(mean, logvar, text)
        return samples

    def _advice(self) -> str:
        # Its largest number is 65,504, which T5 is known to exceed.
        return ": set encode.dtype to bfloat16 or float32" if self.settings.dtype == "float16" else ""

    @torch.inference_mode()
    def posterior(
        self, frames: NDArray[np.uint8], shape: Shape, place: float, still: bool = False
    ) -> tuple[Tensor, Tensor]:
        """uint8 [T, H, W, 3] to mean and log-variance [C, T, h, w], bf16 on the CPU."""
        if still:
            frames = resize_still(frames[0], shape)[None]
        means, logvars = [], []
        for part in showing.to_tensor(frames).split(self.settings.frames_per_batch):
            pixels = showing.fill_and_crop(part.to(self.device), shape.height, shape.width, place)
            mean, logvar = self.autoencoder.encode(pixels)
            means.append(mean.to("cpu", torch.bfloat16))
            logvars.append(logvar.to("cpu", torch.bfloat16))
        return torch.cat(means).transpose(0, 1).contiguous(), torch.cat(logvars).transpose(0, 1).contiguous()


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """`auto` is this process's GPU where there is one. Raises ValueError when `cuda` is asked for in vain."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ValueError("device: cuda is set, but torch finds no GPU: use auto or cpu")
    if not available or wanted == "cpu":
        return torch.device("cpu")
    # With --gpus-per-task each rank sees one GPU, numbered 0.
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def read_still(path: str) -> NDArray[np.uint8]:
    """A picture as RGB [H, W, 3], upright as cameras note it. Raises OSError when it cannot be read."""
    with Image.open(path) as picture:
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


def resize_still(picture: NDArray[np.uint8], shape: Shape) -> NDArray[np.uint8]:
    """Scale a still to fill the shape, bicubic as the base model's training did; cropping comes later."""
    rows, columns = showing.filled(picture.shape[0], picture.shape[1], shape.height, shape.width)
    return np.array(Image.fromarray(picture).resize((columns, rows), Image.Resampling.BICUBIC))
