"""Random numbers that belong to a showing of a clip, not to a rank or a moment.

Philox counts: key and counter give the numbers directly (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
2011). The same showing draws the same noise, timestep, mask and text dropout on any number of ranks, in any order.
"""

import hashlib
import os

import numpy as np
import torch

# One stream per use, so that a new use never shifts the numbers of the others.
STREAMS = ("variant", "timestep", "mask", "text", "posterior", "noise")


class Showing:
    """The random numbers of one showing: `occurrence` under a run's `identity` (seed and dataset)."""

    def __init__(self, identity: str, occurrence: int) -> None:
        self.key = np.frombuffer(hashlib.blake2b(identity.encode(), digest_size=16).digest(), dtype="<u8")
        self.occurrence = occurrence

    def generator(self, stream: str) -> np.random.Generator:
        """A generator of one stream. Raises ValueError for an unknown one."""
        counter = np.array([0, 0, STREAMS.index(stream), self.occurrence], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=self.key, counter=counter))

    def normal(self, stream: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Standard normal numbers, float32, drawn on the device: the same on every machine with such a device."""
        if device.type == "cuda":
            seed = int(self.generator(stream).integers(2**63))
            return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)
        return torch.from_numpy(self.generator(stream).standard_normal(shape, dtype=np.float32))


def repeat_exactly(device: torch.device) -> None:
    """On a GPU, ask for sums in one order: a resumed run must find the same last bits.

    Attention's backward pass otherwise adds as its blocks happen to finish. What has no such form runs all the same,
    with torch's warning.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It finds bugs only, and costs a pass over each new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
