"""The elementwise parts of a block, with backward passes that keep little: what is cheap is made again, not stored.

No matrix product is ever computed twice here; that is what gradient checkpointing does, if it is asked for. On GPUs,
where moving the numbers takes longer than computing with them, each part can be one kernel. Models that are compiled
as a whole take the plain formulas: the compiler chooses by itself what to keep.
"""

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from brickreel.models.stdit2.embeddings import rotate

EPS = 1e-6
MOST_SHAPES = 256
"""For which one function is compiled; more of them run as they are."""


Rope = tuple[Tensor, Tensor] | None
"""Cosines and sines that broadcast over heads."""
P = ParamSpec("P")
R = TypeVar("R")


class Kernels:
    """Of this process: whether `one_kernel` compiles."""

    compiled = False


def one_kernel(function: Callable[P, R]) -> Callable[P, R]:
    """On a GPU, and where `Kernels.compiled`, the function as one kernel: its operations take one pass over memory, or
    a few, instead of one each. Without a C compiler, which triton asks for, the function as it is, with a warning.

    Its first argument is a tensor. It is called without autocast, which would have norms and sums write fp32 on GPUs.
    """
    made: list[Callable[P, R]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        with _as_typed(args[0]):
            return run(*args, **kwargs)

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not (Kernels.compiled and _on_gpu(args[0])):
            return function(*args, **kwargs)
        if not made:
            # How sums are cut is decided by rule and for each shape alone, not by a race or by the shapes before: a
            # resumed run, which may meet them in another order, must find the same last bits.
            made.append(torch.compile(function, dynamic=False, options={"deterministic": True}))
            # Every bucket's clips and stills, masked and not, have a kernel of their own.
            settings = torch._dynamo.config
            settings.recompile_limit = max(MOST_SHAPES, settings.recompile_limit)
            settings.accumulated_recompile_limit = max(8 * MOST_SHAPES, settings.accumulated_recompile_limit)
        try:
            return made[0](*map(_plain, args), **kwargs)  # type: ignore[arg-type]
        except torch._dynamo.exc.TorchDynamoException as error:
            Kernels.compiled = False
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            warnings.warn(f"kernels are not compiled, and steps take longer: {reason}", stacklevel=2)
            return function(*args, **kwargs)

    return call


def _on_gpu(value: object) -> bool:
    return type(value) is Tensor and value.is_cuda


def _as_typed(value: Any) -> AbstractContextManager[Any]:
    """Operations keep the types of their inputs, whatever autocast says."""
    kind = value.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _plain(value: object) -> object:
    """What makes a kernel of its own necessary is taken away: that an input has a gradient, and, of modulation vectors,
    that they are pieces of a larger tensor.
    """
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    is_vector = value.dim() == 4 and value.shape[2] == 1
    return value.clone(memory_format=torch.contiguous_format) if is_vector else value


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x) (1 + scale) + shift: a layer norm without parameters, then shift and scale, which broadcast alike."""
    if torch.compiler.is_compiling():
        return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift
    return _ModulatedNorm.apply(x, shift, scale)


def gated(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """x + gate branch, the gate per sample or per frame."""
    return torch.addcmul(x, gate, branch) if torch.compiler.is_compiling() else _Gated.apply(x, gate, branch)


def head_norm(x: Tensor, weight: Tensor, rope: Rope, norm_first: bool) -> Tensor:
    """RMS norm over the last dimension in fp32 (Zhang and Sennrich 2019), its input or output rotated by `rope`.

    Args:
        x: [B, T, S, heads, d]. weight: [d]. rope: cosines and sines that broadcast over x, or None.
        norm_first: norm, then rotate; else rotate, then norm.
    """
    if torch.compiler.is_compiling():
        return _head_norm(x, weight, rope, norm_first)[0]
    cos, sin = rope or (None, None)
    return _HeadNorm.apply(x, weight, cos, sin, norm_first)


def linear_of(make: Callable[..., Tensor], inputs: tuple[Tensor, ...], layer: Callable[[Tensor], Tensor]) -> Tensor:
    """layer(make(*inputs)), where backward makes the layer's input again instead of keeping it.

    Args:
        make: cheap, and a function of `inputs` alone.
        layer: linear layers, or a function of such.
    """
    kept = tuple(tensor.detach() for tensor in inputs)
    value = make(*inputs)
    with made_again([value], [lambda: make(*kept)]):
        return layer(value)


class _Mode(threading.local):
    """Of this thread: backward recomputes blocks in a thread of its own where there are GPUs."""

    recomputed = False


_mode = _Mode()


def as_recomputed(block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """block(*inputs) for activation checkpointing, within which nothing is made again by the block itself.

    Checkpointing leaves out all that is kept, and only the innermost of such arrangements is asked: within `made_again`
    tensors would be kept past it.
    """
    before, _mode.recomputed = _mode.recomputed, True
    try:
        return block(*inputs)
    finally:
        _mode.recomputed = before


def made_again(values: Sequence[Tensor], makes: Sequence[Callable[[], Tensor]]) -> AbstractContextManager[Any]:
    """Within it, what is kept for backward of `values` is left out; each is made by its function when it is needed.

    The functions must not hold the values, and are called without gradients.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or _mode.recomputed:
        return nullcontext()
    known = {(value.data_ptr(), value.numel(), value.dtype): index for index, value in enumerate(values)}
    layouts = [(value.shape, value.stride(), value.is_contiguous()) for value in values]

    def pack(tensor: Tensor) -> Tensor | tuple[int, torch.Size]:
        index = known.get((tensor.data_ptr(), tensor.numel(), tensor.dtype))
        if index is None:
            return tensor
        shape, stride, contiguous = layouts[index]
        alike = (tensor.shape == shape and tensor.stride() == stride) or (contiguous and tensor.is_contiguous())
        return (index, tensor.shape) if alike else tensor

    def unpack(packed: Tensor | tuple[int, torch.Size]) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        index, shape = packed
        with torch.no_grad():
            value = makes[index]()
        return value if value.shape == shape else value.view(shape)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def sum_to(value: Tensor, like: Tensor) -> Tensor:
    """Sum over the dimensions along which `like`, of as many dimensions, was broadcast."""
    dims = [dim for dim, size in enumerate(like.shape) if size == 1 and value.shape[dim] != 1]
    return value.sum(dims, keepdim=True) if dims else value


class _ModulatedNorm(torch.autograd.Function):
    """Keeps the input and two numbers per token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        out, mean, rstd = _modulated(x, shift, scale)
        ctx.save_for_backward(x, mean, rstd, scale)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _modulated_gradient(grads[0].contiguous(), *ctx.saved_tensors, *ctx.needs_input_grad)


@one_kernel
def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The value of modulated_norm, with each token's mean and inverse deviation."""
    normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, EPS)
    return torch.addcmul(shift, normed, 1 + scale), mean, rstd


@one_kernel
def _modulated_gradient(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, for_x: bool, for_shift: bool, for_scale: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, shift and scale, None where they are not asked for."""
    x_grad = shift_grad = scale_grad = None
    wide = x.to(grad.dtype)
    if for_shift:
        shift_grad = sum_to(grad, scale).to(scale.dtype)
    if for_scale:
        scale_grad = sum_to((wide - mean).mul_(rstd).mul_(grad), scale).to(scale.dtype)
    if for_x:
        x_grad = torch.ops.aten.native_layer_norm_backward(
            grad * (1 + scale), wide, x.shape[-1:], mean, rstd, None, None, [True, False, False]
        )[0].to(x.dtype)
    return x_grad, shift_grad, scale_grad


class _HeadNorm(torch.autograd.Function):
    """Keeps the input and one number per head."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, norm_first: bool
    ) -> Tensor:
        rope = None if cos is None or sin is None else (cos, sin)
        out, inverse = _head_norm(x, weight, rope, norm_first)
        ctx.save_for_backward(x, weight, cos, sin, inverse)
        ctx.norm_first = norm_first
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cos, sin, inverse = ctx.saved_tensors
        rope = None if cos is None else (cos, sin)
        found = _head_norm_gradient(grads[0], x, weight, rope, inverse, ctx.norm_first, ctx.needs_input_grad[1])
        return *found, None, None, None


@one_kernel
def _head_norm(x: Tensor, weight: Tensor, rope: Rope, norm_first: bool) -> tuple[Tensor, Tensor]:
    """The value of head_norm, and the inverse of the root mean square."""
    if rope and not norm_first:
        x = turned(x, *rope)
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    out = weight.to(x.dtype) * (wide * inverse).to(x.dtype)
    return (turned(out, *rope) if rope and norm_first else out), inverse


@one_kernel
def _head_norm_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    rope: Rope,
    inverse: Tensor,
    norm_first: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of input and weight, None where it is not asked for."""
    back = rope and (rope[0], -rope[1])
    value = x
    if back and norm_first:
        grad = turned(grad, *back)
    elif rope:
        value = turned(x, *rope)
    normed = value.float() * inverse
    weight_grad = (grad.float() * normed).flatten(0, -2).sum(0).to(weight.dtype) if for_weight else None
    grad = grad.float() * weight.float()
    inner = (grad * normed).mean(-1, keepdim=True)
    x_grad = grad.addcmul_(normed, inner, value=-1).mul_(inverse).to(x.dtype)
    if back and not norm_first:
        x_grad = turned(x_grad, *back)
    return x_grad, weight_grad


class _Gated(torch.autograd.Function):
    """Keeps the gate, and the branch where the gate is trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
        ctx.save_for_backward(gate, branch if ctx.needs_input_grad[1] else None)
        ctx.for_branch = branch.dtype if ctx.needs_input_grad[2] else None
        return torch.addcmul(x, gate, branch)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, branch = ctx.saved_tensors
        return grads[0], *_gated_gradient(grads[0], gate, branch, ctx.for_branch)


@one_kernel
def _gated_gradient(
    grad: Tensor, gate: Tensor, branch: Tensor | None, for_branch: torch.dtype | None
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of gate and, in that type, branch; None where they are not asked for."""
    gate_grad = None if branch is None else sum_to(grad * branch, gate).to(gate.dtype)
    return gate_grad, None if for_branch is None else (grad * gate).to(for_branch)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """embeddings.rotate; in fp32 on a CPU as one complex product, which takes a third of the passes."""
    if x.dtype != torch.float32 or x.is_cuda or torch.compiler.is_compiling() or x.stride(-1) != 1:
        return rotate(x, cos, sin)
    factors = torch.complex(cos[..., ::2].float(), sin[..., ::2].float())
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * factors).flatten(-2)
