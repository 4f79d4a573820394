"""Videos of a few bricks, drawn in a moment."""

import cv2
import numpy as np


def draw_scene(seed: int, poses: int = 16, size: int = 64) -> np.ndarray:
    """Bricks of a few colours gliding over a floor: [poses, size, size, 3], smooth motion, steady light."""
    rng = np.random.default_rng(seed)
    top, floor = rng.integers(90, 220, 3), rng.integers(40, 140, 3)
    bricks = [
        (rng.uniform(0.1, 0.9, 2), rng.uniform(-0.3, 0.3, 2), rng.uniform(0.1, 0.22, 2), rng.integers(20, 255, 3))
        for _ in range(4)
    ]
    frames = []
    for pose in range(poses):
        frame = np.empty((size, size, 3), np.uint8)
        frame[: size * 2 // 3], frame[size * 2 // 3 :] = top, floor
        for place, speed, extent, colour in bricks:
            x, y = (place + speed * pose / 15) * size
            width, height = extent * size
            corners = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
            cv2.fillConvexPoly(frame, (corners * 16).astype(np.int32), colour.tolist(), cv2.LINE_AA, 4)
            cv2.circle(frame, (int((x + width / 2) * 16), int(y * 16)), int(width * 3), colour.tolist(), -1, 16, 4)
        frames.append(frame)
    return np.stack(frames)
