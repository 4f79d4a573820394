from collections.abc import Callable

import cv2
import numpy as np
import pytest

from evaluation.scenes import draw_scene


@pytest.fixture(scope="session")
def scene() -> Callable[..., np.ndarray]:
    return draw_scene


@pytest.fixture(scope="session")
def damage() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """What can go wrong with a video, by name."""
    rng = np.random.default_rng(7)

    def noise(video: np.ndarray) -> np.ndarray:
        return np.clip(video + rng.normal(0, 12, video.shape), 0, 255).astype(np.uint8)

    def blur(video: np.ndarray) -> np.ndarray:
        return np.stack([cv2.GaussianBlur(frame, (0, 0), 2.5) for frame in video])

    def flicker(video: np.ndarray) -> np.ndarray:
        gain = 1 + 0.1 * rng.choice([-1, 1], len(video))
        return np.clip(video * gain[:, None, None, None], 0, 255).astype(np.uint8)

    def shuffle(video: np.ndarray) -> np.ndarray:
        return video[rng.permutation(len(video))]

    return {"noise": noise, "blur": blur, "flicker": flicker, "shuffle": shuffle}
