"""Small films for tests: textured scenes in which a few sprites move, pose by pose, with known truth."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from brickreel.films import video

HEIGHT, WIDTH = 180, 320


@dataclass
class Film:
    """Frames [N, H, W, 3] with the frame at which each pose and each shot begins."""

    frames: list[np.ndarray] = field(default_factory=list)
    poses: list[int] = field(default_factory=list)
    shots: list[tuple[int, int]] = field(default_factory=list)

    def add(self, pictures: Sequence[np.ndarray], holds: Sequence[int]) -> "Film":
        start = len(self.frames)
        for picture, hold in zip(pictures, holds, strict=True):
            self.poses.append(len(self.frames))
            self.frames += [picture] * hold
        self.shots.append((start, len(self.frames)))
        return self

    def write(self, path: Path, fps: float = 24, crf: int = 18) -> Path:
        video.write(path, self.frames, fps, crf=crf)
        return path


def scene(seed: int, poses: int, step: float = 4.0, size: float = 1.0, height: int = HEIGHT, width: int = WIDTH):
    """`poses` pictures of one set: sprites of relative `size` move by about `step` pixels from pose to pose."""
    rng = np.random.default_rng(seed)
    ground = cv2.resize(
        rng.integers(40, 200, (9, 16, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )
    ground = cv2.add(ground, cv2.blur(rng.integers(0, 60, (height, width, 3), dtype=np.uint8), (3, 3)))
    sprites = [
        {
            "at": rng.uniform((0.2 * width, 0.2 * height), (0.8 * width, 0.8 * height)),
            "to": rng.uniform(0, 2 * np.pi),
            "colour": rng.integers(0, 256, 3).tolist(),
            "half": rng.uniform(9, 18, 2) * size * height / 180,
        }
        for _ in range(3 if size >= 1 else 1)
    ]
    pictures = []
    for _ in range(poses):
        picture = ground.copy()
        for sprite in sprites:
            sprite["to"] += rng.normal(0, 0.3)
            sprite["at"] = sprite["at"] + step * np.array([np.cos(sprite["to"]), np.sin(sprite["to"])])
            sprite["at"] = np.clip(sprite["at"], (20, 20), (width - 20, height - 20))
            low, high = sprite["at"] - sprite["half"], sprite["at"] + sprite["half"]
            cv2.rectangle(picture, low.astype(int).tolist(), high.astype(int).tolist(), sprite["colour"], -1)
            cv2.circle(picture, sprite["at"].astype(int).tolist(), max(2, int(4 * size)), (250, 250, 250), -1)
        pictures.append(picture)
    return pictures


def holds(cadence: str, poses: int, seed: int = 0) -> list[int]:
    rng = np.random.default_rng(seed)
    choices = {"ones": [1], "twos": [2], "threes": [3], "mixed": [1, 2, 2, 3, 4]}[cadence]
    return [int(rng.choice(choices)) for _ in range(poses)]


def turn(path: Path, degrees: int) -> None:
    """Write into an mp4 that players turn it clockwise, as a camera that was held sideways does."""
    across, up = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = struct.pack(">9i", across << 16, up << 16, 0, -up << 16, across << 16, 0, 0, 0, 1 << 30)
    data = path.read_bytes()
    place = data.find(b"tkhd") + 44
    path.write_bytes(data[:place] + matrix + data[place + 36 :])


def title(text: str, frames: int, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    picture = np.full((height, width, 3), (20, 24, 60), np.uint8)
    scale = height / 180
    cv2.putText(picture, text, (int(30 * scale), height // 2), cv2.FONT_HERSHEY_DUPLEX, 1.0 * scale, (240, 235, 220), 2)
    return [picture] * frames


def dissolve(first: np.ndarray, second: np.ndarray, frames: int) -> list[np.ndarray]:
    shares = (np.arange(frames) + 1) / (frames + 1)
    return [cv2.addWeighted(first, 1 - share, second, share, 0) for share in shares]


def flicker(frames: Sequence[np.ndarray], amount: float, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.clip(f * (1 + rng.uniform(-amount, amount)), 0, 255).astype(np.uint8) for f in frames]


def noise(frames: Sequence[np.ndarray], sigma: float, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.clip(f + rng.normal(0, sigma, f.shape), 0, 255).astype(np.uint8) for f in frames]
