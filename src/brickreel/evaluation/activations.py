"""How much memory a training step's activations take, counted on the model itself without computing anything.

A forward and a backward pass run on fake tensors, which have shapes and no data. What is alive at the worst moment,
other than weights and their gradients, is what they need at once: tensors kept for the backward pass, and those of the
operations at work. Each storage counts once, however it is kept. A model of one block and one of two give the rest:
blocks are alike.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
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
    """Bytes at the worst moment of a forward and a backward pass."""

    plain: float
    """Everything kept, in all blocks."""
    checkpointed: float
    """With a checkpoint at every block: each block's input, and the inside of the one that is recomputed."""
    parameters: int
    trained: int
    """Parameters that have a gradient: all but those that LoRA froze."""
    saved: float
    """What a checkpoint at one block saves."""

    def at(self, blocks: int) -> float:
        """With a checkpoint at this many blocks: at worst where the backward pass begins, or inside one of them."""
        return max(self.checkpointed if blocks else 0, self.plain - blocks * self.saved)


class Precision(NamedTuple):
    """What a backend computes in."""

    weights: torch.dtype
    products: torch.dtype | None = None
    """Under autocast, which makes narrow copies of the weights; None without autocast."""


def activations(
    build: Build, depth: int, shape: Shape, precision: Precision, gradients_stand: bool = True
) -> Activations:
    """Count the activations of a model with `depth` blocks on one micro-batch.

    With `gradients_stand` the gradients have their memory before, as from a step's second micro-batch on, and are not
    counted. Without, they come while activations go, and those that are there at the worst moment are counted too.
    """

    def counted(checkpointed: bool) -> tuple[float, float, float, float]:
        """What _peak tells of the whole model, and the bytes of one block more."""
        one, two = (_peak(build, blocks, shape, precision, checkpointed, gradients_stand) for blocks in (1, 2))
        peak, parameters, trained = (a + (depth - 1) * (b - a) for a, b in zip(one, two, strict=True))
        return peak, parameters, trained, two[0] - one[0]

    plain, parameters, trained, kept = counted(checkpointed=False)
    checkpointed, _, _, kept_checkpointed = counted(checkpointed=True)
    return Activations(plain, checkpointed, int(parameters), int(trained), kept - kept_checkpointed)


def _peak(
    build: Build, blocks: int, shape: Shape, precision: Precision, checkpointed: bool, gradients_stand: bool
) -> tuple[float, float, float]:
    """(most bytes alive at once in a forward and a backward pass, parameters, parameters with a gradient)."""
    with torch.device("meta"), _default(precision.weights):
        model = build(blocks).train()
    # Fake tensors take the way that real ones take on their device, as meta tensors do not (attention is fused on real
    # ones); but a model cannot be built of them where peft moves its parts.
    with FakeTensorMode(), _default(precision.weights), _places():
        _fake(model)
        if checkpointed:
            model.enable_gradient_checkpointing()  # type: ignore[operator]
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained if gradients_stand else ():
            parameter.grad = torch.empty_like(parameter)
        video = torch.empty(shape.batch, shape.channels, shape.frames, shape.latent_height, shape.latent_width)
        text = torch.empty(shape.batch, 1, shape.text_tokens, shape.text_channels)
        scalars = {
            "num_frames": torch.full((shape.batch,), float(shape.frames)),
            "height": torch.full((shape.batch,), float(shape.height)),
            "width": torch.full((shape.batch,), float(shape.width)),
            "fps": torch.full((shape.batch,), 8.0),
        }
        with Made() as made:
            # As in training, the backward pass is outside: autocast keeps its narrow copies of weights until here.
            with torch.autocast("cpu", precision.products, enabled=precision.products is not None):
                drop = torch.zeros(shape.batch, dtype=torch.bool)
                output = model(video, torch.zeros(shape.batch), text, drop_text=drop, **scalars)
                loss = output.float().square().mean()
            loss.backward()
        parameters, with_gradient = (sum(one.numel() for one in some) for some in (model.parameters(), trained))
        return float(made.peak), parameters, with_gradient


def _fake(model: nn.Module) -> None:
    """Put fake tensors in the place of all weights and buffers."""
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            fresh = nn.Parameter(torch.empty(value.shape, dtype=value.dtype), requires_grad=value.requires_grad)
            module.register_parameter(name, fresh)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


@contextmanager
def _places() -> Iterator[None]:
    """Give fake tensors a place of their data: the model tells its tensors apart by it, and it would be 0 for all."""

    def place(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata + tensor.storage_offset() * tensor.element_size()

    FakeTensor.data_ptr = place  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del FakeTensor.data_ptr


class Made(TorchDispatchMode):
    """Notes every storage that is made meanwhile, without keeping it, and the most bytes alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note what it returns; a view brings the storage of what it looks at."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # Fake tensors are asked for their device in this way, more often than for anything else.
        made = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)] if not func.is_view else []
        if made:
            # What an operation writes in place, such as a weight's gradient, was there before.
            given = (tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor))
            known = {tensor.untyped_storage()._cdata for tensor in given}
            for tensor in made:
                storage = tensor.untyped_storage()
                if storage._cdata not in known:
                    reference = StorageWeakRef(storage)
                    self.storages[reference.cdata] = (reference, storage.nbytes())
            self.peak = max(self.peak, self.alive())
        return result

    def alive(self) -> int:
        """Bytes of those that something still holds."""
        self.storages = {key: entry for key, entry in self.storages.items() if not entry[0].expired()}
        return sum(size for _, size in self.storages.values())


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """Make new tensors of this type: parameters on fake tensors cannot be converted afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
