"""Linear layers that multiply in fp32 on a CPU through oneDNN, which torch has but asks for narrow types only.

torch's own choice for fp32 is MKL, whose kernels for wide vectors run on one maker's processors; oneDNN looks at what a
core can do, and is about twice as fast on an AMD EPYC with AVX-512 (`bench/stdit2.py`), but a tenth slower on an Intel
Xeon. So it is asked on AMD's processors alone; elsewhere, on GPUs, in other types and when compiling, these are torch's
layers.
"""

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """torch.nn.Linear, with the same parameters."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch.nn.functional.linear."""
    if _suits(x) and _suits(weight):
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def _suits(tensor: Tensor) -> bool:
    return bool(
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and _on_amd()
    )


@functools.cache
def _on_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _product(rows_MK: Tensor, columns_NK: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows times columns transposed, [M, N]; each may be a transposed view."""
    return torch.ops.mkldnn._linear_pointwise(rows_MK, columns_NK, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        for_weight, for_x = ctx.needs_input_grad[1], ctx.needs_input_grad[0]
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        ctx.shape = x.shape
        out = _product(x.reshape(-1, x.shape[-1]), weight, bias)
        return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        x_grad = weight_grad = bias_grad = None
        if weight is not None:
            x_grad = _product(grad, weight.t()).view(ctx.shape)
        if x is not None:
            value = x.reshape(-1, x.shape[-1])
            # The narrower one's columns as rows: oneDNN blocks over the other.
            if grad.shape[1] < value.shape[1]:
                weight_grad = _product(grad.t(), value.t())
            else:
                weight_grad = _product(value.t(), grad.t()).t()
        if ctx.needs_input_grad[2]:
            bias_grad = grad.sum(0)
        return x_grad, weight_grad, bias_grad
