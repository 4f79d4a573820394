"""Attention of STDiT2: within a frame, across time, and to the text.

Tensors stay in [B, T, S, C] from block to block, and heads are viewed: within a frame as [B*T, heads, S, d], across
time as [B, S*heads, T, d], for which only the values are copied.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brickreel.models.stdit2.embeddings import rotate
from brickreel.models.stdit2.fused import head_norm, linear_of, made_again, modulated_norm
from brickreel.models.stdit2.products import Linear


class HeadNorm(nn.Module):
    """RMS norm of each head's queries or keys, before or after their rotation."""

    def __init__(self, dim: int, norm_first: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.norm_first = norm_first

    def bound(self, rope: tuple[Tensor, Tensor] | None) -> Callable[[Tensor], Tensor]:
        """The norm with this rotation, as a function of [B, T, S, heads, d] to the same."""
        return partial(head_norm, weight=self.weight, rope=rope, norm_first=self.norm_first)


class Rotation(nn.Module):
    """What is left of HeadNorm without the norm."""

    def bound(self, rope: tuple[Tensor, Tensor] | None) -> Callable[[Tensor], Tensor]:
        """As HeadNorm.bound."""
        return (lambda x: rotate(x, *rope)) if rope else (lambda x: x)


class Text(NamedTuple):
    """Projected text of a batch, as cross-attention reads it."""

    tokens: Tensor
    """[B, L, C]; or [1, total, C] when packed."""
    mask: Tensor | None = None
    """True where a token counts, [B, 1, 1, L]; None when all do."""
    lengths: tuple[int, ...] | None = None
    """Tokens per sample when packed for the variable-length kernel."""


class SelfAttention(nn.Module):
    """Multi-head attention within each frame, or across the frames of each location."""

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: bool, norm_first: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_dim = hidden_size // num_heads
        self.qkv = Linear(hidden_size, 3 * hidden_size)
        # The original rotates first; its weights rely on it, since the norm's weights differ within a pair.
        self.q_norm = HeadNorm(head_dim, norm_first) if qk_norm else Rotation()
        self.k_norm = HeadNorm(head_dim, norm_first) if qk_norm else Rotation()
        self.proj = Linear(hidden_size, hidden_size)

    def forward(
        self, x_BTSC: Tensor, shift: Tensor, scale: Tensor, rope: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """[B, T, S, C] to the same, normed and modulated first.

        Across time when `rope` (cosines and sines [T, d]) is given, else within frames.
        """
        B, T, S, C = x_BTSC.shape
        qkv = linear_of(modulated_norm, (x_BTSC, shift, scale), self.qkv)
        q, k, v = qkv.view(B, T, S, 3, self.num_heads, -1).unbind(3)
        shape: tuple[int, ...] = (B * T, S, self.num_heads, -1) if rope is None else (B, T, S * self.num_heads, -1)
        angles = None
        if rope is not None:
            cos, sin = (part.to(q.dtype)[:, None, None, :] for part in rope)
            angles = cos, sin

        def per_head(part: Tensor) -> Tensor:
            return part.reshape(shape).transpose(1, 2)

        # Backward makes the normed heads again from the product above, which is kept.
        norm_q, norm_k, kept = (
            self.q_norm.bound(angles),
            self.k_norm.bound(angles),
            (q.detach(), k.detach(), v.detach()),
        )
        makes = (
            lambda: per_head(norm_q(kept[0])),
            lambda: per_head(norm_k(kept[1])),
            lambda: per_head(kept[2]),
        )
        q, k, v = per_head(norm_q(q)), per_head(norm_k(k)), per_head(v)
        with made_again((q, k, v), makes):
            out = scaled_dot_product(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(B, T, S, C))


MOST_HEADS = 65_535
"""Of one call: CUDA's kernels put heads into a grid's second or third dimension, and there are no more places in it."""


def scaled_dot_product(q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor) -> Tensor:
    """Attention without a mask, some heads at a time where there are too many: across time each place has its own."""
    if q_BhNd.shape[1] <= MOST_HEADS:
        return F.scaled_dot_product_attention(q_BhNd, k_BhNd, v_BhNd)
    parts = zip(*(part.split(MOST_HEADS, dim=1) for part in (q_BhNd, k_BhNd, v_BhNd)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part) for part in parts], dim=1)


class CrossAttention(nn.Module):
    """Multi-head attention from every patch to the text; neither norms nor gate."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = Linear(hidden_size, hidden_size)
        self.kv_linear = Linear(hidden_size, 2 * hidden_size)
        self.proj = Linear(hidden_size, hidden_size)

    def forward(self, x_BTSC: Tensor, text: Text) -> Tensor:
        """[B, T, S, C] to the same."""
        B, T, S, C = x_BTSC.shape
        q = self.q_linear(x_BTSC).view(B, T * S, self.num_heads, -1)
        k, v = self.kv_linear(text.tokens).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        if text.lengths is not None:
            out = varlen_attention(q, k[0], v[0], text.lengths)
        else:
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=text.mask).transpose(1, 2)
        return self.proj(out.reshape(B, T, S, C))


def varlen_attention(q_BNhd: Tensor, k_Lhd: Tensor, v_Lhd: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Attention to packed text of several lengths with flash-attn's variable-length kernel: [B, N, heads, d]."""
    kernel = flash_kernel()
    if kernel is None:
        raise ValueError("attention 'flash' needs the flash-attn package and a CUDA device: use 'auto' or 'sdpa'")
    B, N = q_BNhd.shape[:2]
    ends_q = torch.arange(0, (B + 1) * N, N, dtype=torch.int32, device=q_BNhd.device)
    ends_k = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    ends_k = ends_k.to(q_BNhd.device, non_blocking=True)
    repeatable = torch.are_deterministic_algorithms_enabled()
    out = kernel(q_BNhd.flatten(0, 1), k_Lhd, v_Lhd, ends_q, ends_k, N, max(lengths), deterministic=repeatable)
    return out.view(q_BNhd.shape)


def flash_kernel():  # type: ignore[no-untyped-def]  # a function of a package without types
    """flash-attn's variable-length kernel, or None where it is not installed.

    The symbol is asked for, since `import flash_attn` succeeds as an empty namespace beside flash-attn 4. Without an
    import statement, since diffusers takes each of those in an exported folder for a requirement.
    """
    try:
        return getattr(import_module("flash_attn"), "flash_attn_varlen_func", None)
    except (ImportError, OSError):
        return None
