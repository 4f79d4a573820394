"""How much memory a training step's activations take, counted on the model itself without computing anything.

The forward pass runs on fake tensors, which have shapes and no data. What is still alive after it, other than the
weights, waits for the backward pass: each storage counts once, however it is kept. A model of one block and one of two
give the rest: blocks are alike.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Builds the model with this many blocks, freshly initialised, on whatever device is current.
Build = Callable[[int], nn.Module]


class Shape(NamedTuple):
    """One micro-batch: clips, latent frames, latent rows and columns, text tokens, and pixels."""

    batch: int
    frames: int
    latent_height: int
    latent_width: int
    text_tokens: int
    text_channels: int
    height: int
    width: int
    channels: int = 4


class Activations(NamedTuple):
    """Bytes that wait for the backward pass."""

    plain: float
    """Everything kept, in all blocks."""
    checkpointed: float
    """With a checkpoint at every block: each block's input, and the inside of the one that is recomputed."""
    parameters: int


def activations(build: Build, depth: int, shape: Shape, dtype: torch.dtype) -> Activations:
    """Count the activations of a model with `depth` blocks on one micro-batch, computing in `dtype`."""
    one, two = (_kept(build, blocks, shape, dtype) for blocks in (1, 2))
    block, rest = two[0] - one[0], 2 * one[0] - two[0]
    entrance = two[2]
    parameters = one[1] + (depth - 1) * (two[1] - one[1])
    return Activations(rest + depth * block, rest + depth * entrance + block, parameters)


def _kept(build: Build, blocks: int, shape: Shape, dtype: torch.dtype) -> tuple[float, int, float]:
    """(bytes kept by a forward pass, parameters, bytes of one block's input)."""
    with FakeTensorMode(), _default(dtype):
        model = build(blocks).train()
        entrance = [0.0]

        def measure(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            entrance[0] = float(inputs[0].nbytes)

        model.blocks[0].register_forward_pre_hook(measure)  # type: ignore[index,union-attr]
        video = torch.empty(shape.batch, shape.channels, shape.frames, shape.latent_height, shape.latent_width)
        text = torch.empty(shape.batch, 1, shape.text_tokens, shape.text_channels)
        scalars = {
            "num_frames": torch.full((shape.batch,), float(shape.frames)),
            "height": torch.full((shape.batch,), float(shape.height)),
            "width": torch.full((shape.batch,), float(shape.width)),
            "fps": torch.full((shape.batch,), 8.0),
        }
        with _Made() as made:
            output = model(
                video, torch.zeros(shape.batch), text, drop_text=torch.zeros(shape.batch, dtype=torch.bool), **scalars
            )
        total = float(made.alive() - output.untyped_storage().nbytes())
        del output
        return total, sum(parameter.numel() for parameter in model.parameters()), entrance[0]


class _Made(TorchDispatchMode):
    """Notes every storage that is made meanwhile, without keeping it."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note what it returns; a view brings the storage of what it looks at."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not func.is_view:
                storage = tensor.untyped_storage()
                self.storages.append((StorageWeakRef(storage), storage.nbytes()))
        return result

    def alive(self) -> int:
        """Bytes of those that something still holds."""
        held = {reference.cdata: size for reference, size in self.storages if not reference.expired()}
        return sum(held.values())


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """Make new tensors of this type: parameters on fake tensors cannot be converted afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
