"""The blocks of STDiT2 and its final layer. Shape suffixes as in embeddings.py; m is one modulation vector each."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brickreel.models.stdit2.attention import CrossAttention, SelfAttention, Text
from brickreel.models.stdit2.fused import gated, linear_of, modulated_norm
from brickreel.models.stdit2.products import Linear


class MLP(nn.Module):
    """Two linear layers with a tanh-approximated GELU between."""

    def __init__(self, hidden_size: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.fc1 = Linear(hidden_size, mlp_ratio * hidden_size)
        self.fc2 = Linear(mlp_ratio * hidden_size, hidden_size)

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """[B, T, S, C] to the same, normed and modulated first."""
        return linear_of(gelu, (linear_of(modulated_norm, (x, shift, scale), self.fc1),), self.fc2)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh approximation."""
    return F.gelu(x, approximate="tanh")


class Block(nn.Module):
    """Attention within frames, across time and to the text, then an MLP; adaLN-single modulation (Chen et al. 2023)."""

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: bool, norm_first: bool) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, hidden_size) / math.sqrt(hidden_size))
        self.scale_shift_table_temporal = nn.Parameter(torch.randn(3, hidden_size) / math.sqrt(hidden_size))
        self.attn = SelfAttention(hidden_size, num_heads, qk_norm)
        self.attn_temp = SelfAttention(hidden_size, num_heads, qk_norm, norm_first)
        self.cross_attn = CrossAttention(hidden_size, num_heads)
        self.mlp = MLP(hidden_size)

    def forward(
        self, x_BTSC: Tensor, text: Text, m_BTmC: Tensor, m_temporal_BTmC: Tensor, rope: tuple[Tensor, Tensor]
    ) -> Tensor:
        """One block. Modulation [B, T, 6, C] and [B, T, 3, C], with T = 1 where all frames share it."""
        x = x_BTSC
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = vectors(self.scale_shift_table + m_BTmC, x)
        shift_time, scale_time, gate_time = vectors(self.scale_shift_table_temporal + m_temporal_BTmC, x)
        x = gated(x, gate, self.attn(x, shift, scale))
        x = gated(x, gate_time, self.attn_temp(x, shift_time, scale_time, rope))
        x = x + self.cross_attn(x, text)
        return gated(x, gate_mlp, self.mlp(x, shift_mlp, scale_mlp))


def vectors(m_BTmC: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """Modulation [B, T, m, C] as m tensors [B, T, 1, C] in `like`'s type; they broadcast over a frame's patches."""
    return m_BTmC.to(like.dtype).unsqueeze(3).unbind(2)


class FinalLayer(nn.Module):
    """Modulated norm and projection to the patches of noise and variance."""

    def __init__(self, hidden_size: int, out_features: int) -> None:
        super().__init__()
        self.linear = Linear(hidden_size, out_features)
        self.scale_shift_table = nn.Parameter(torch.randn(2, hidden_size) / math.sqrt(hidden_size))

    def forward(self, x_BTSC: Tensor, e_BTC: Tensor) -> Tensor:
        """[B, T, S, C] and the timestep's embedding [B, T or 1, C] to [B, T, S, out_features]."""
        return self.linear(self.modulated(x_BTSC, e_BTC))

    def forward_masked(self, x_BTSC: Tensor, e_BTC: Tensor, e_clean_BTC: Tensor, x_mask_BT: Tensor) -> Tensor:
        """The same where some frames are clean (`x_mask_BT` False), as the original has it: clean frames are normed
        and modulated twice, first as if they were noisy."""
        noisy = self.modulated(x_BTSC, e_BTC)
        clean = self.modulated(noisy, e_clean_BTC)
        return self.linear(torch.where(x_mask_BT[:, :, None, None], noisy, clean))

    def modulated(self, x_BTSC: Tensor, e_BTC: Tensor) -> Tensor:
        """The norm with the table's shift and scale, each moved by the embedding."""
        shift, scale = vectors(self.scale_shift_table + e_BTC[:, :, None], x_BTSC)
        return modulated_norm(x_BTSC, shift, scale)
