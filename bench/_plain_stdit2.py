"""STDiT2's forward pass written down formula by formula, on a state dict: what the model is compared with.

Attention matrices are materialised, text is packed by its mask with a block-diagonal bias, and with frame masks
everything that depends on the timestep is computed for both timesteps and chosen by frame, as Open-Sora 1.1's code
does without its optional kernels. Numbers of steps in the comments are those of the model's description.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def forward(
    state: State, heads: int, x: Tensor, t: Tensor, y: Tensor, mask: Tensor, x_mask: Tensor | None,
    num_frames: Tensor, height: Tensor, width: Tensor, ar: Tensor, fps: Tensor, input_sq_size: int = 512,
) -> Tensor:  # fmt: skip
    """x [B, 4, T, h, w], t [B], y [B, 1, L, c], mask [B, L], x_mask bool [B, T]; the rest [B]: [B, 8, T, h, w]."""
    B, _, T, rows, columns = x.shape
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    # 1 patches
    x = F.pad(x, (0, columns % 2, 0, rows % 2))
    H, W = x.shape[3] // 2, x.shape[4] // 2
    S = H * W
    x = F.conv3d(x, state["x_embedder.proj.weight"], state["x_embedder.proj.bias"], stride=(1, 2, 2))
    x = x.flatten(2).transpose(1, 2)
    C = x.shape[-1]
    # 2 positions
    scale = math.sqrt(float(height[0]) * float(width[0])) / input_sq_size
    base = round(math.sqrt(S))
    x = (x.view(B, T, S, C) + positions(H, W, C, scale, base)).reshape(B, T * S, C)
    # 3, 4 scalars and modulation
    E = embedding
    csize = torch.cat([E(state, "csize_embedder", height), E(state, "csize_embedder", width)], 1)
    info = torch.cat([csize, E(state, "ar_embedder", ar)], 1)
    tmp = E(state, "fl_embedder", num_frames) + E(state, "fps_embedder", fps)

    def modulation(steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        e = E(state, "t_embedder", steps)
        return e, linear(state, "t_block.1", F.silu(e + info)), linear(state, "t_block_temp.1", F.silu(e + tmp))

    e, m6, m3 = modulation(t)
    e0 = m6_0 = m3_0 = None
    if x_mask is not None:
        e0, m6_0, m3_0 = modulation(torch.zeros_like(t))
    # 5 text
    y = linear(
        state, "y_embedder.y_proj.fc2", F.gelu(linear(state, "y_embedder.y_proj.fc1", y[:, 0]), approximate="tanh")
    )
    lengths = mask.sum(1).tolist()
    y = y[mask.bool()][None]
    # 6 blocks
    for number in range(depth):
        x = block(state, f"blocks.{number}", heads, x, y, lengths, m6, m3, m6_0, m3_0, x_mask, T, S)
    # 8 the last layer
    table = state["final_layer.scale_shift_table"]
    out = layer_norm(x) * (1 + (table[1] + e)[:, None]) + (table[0] + e)[:, None]
    if x_mask is not None:
        e0 = e0 + info
        clean = layer_norm(out) * (1 + (table[1] + e0)[:, None]) + (table[0] + e0)[:, None]
        out = choose(x_mask, out, clean, T, S)
    out = linear(state, "final_layer.linear", out)
    out = out.view(B, T, H, W, 2, 2, -1).permute(0, 6, 1, 2, 4, 3, 5).reshape(B, -1, T, 2 * H, 2 * W)
    return out[..., :rows, :columns].float()


def block(
    state: State, name: str, heads: int, x: Tensor, y: Tensor, lengths: list[int], m6: Tensor, m3: Tensor,
    m6_0: Tensor | None, m3_0: Tensor | None, x_mask: Tensor | None, T: int, S: int,
) -> Tensor:  # fmt: skip
    """x [B, T S, C] to the same."""
    B, _, C = x.shape
    table, table_time = state[f"{name}.scale_shift_table"], state[f"{name}.scale_shift_table_temporal"]
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (table + m6.view(B, 6, C)).chunk(6, 1)
    shift_t, scale_t, gate_t = (table_time + m3.view(B, 3, C)).chunk(3, 1)
    if x_mask is not None:
        zero = (table + m6_0.view(B, 6, C)).chunk(6, 1)
        zero_t = (table_time + m3_0.view(B, 3, C)).chunk(3, 1)

    def modulate(scales: Tensor, shifts: Tensor, zero_scales: Tensor | None, zero_shifts: Tensor | None) -> Tensor:
        normed = layer_norm(x)
        noisy = normed * (1 + scales) + shifts
        return noisy if x_mask is None else choose(x_mask, noisy, normed * (1 + zero_scales) + zero_shifts, T, S)

    def gated(value: Tensor, gates: Tensor, zero_gates: Tensor | None) -> Tensor:
        return gates * value if x_mask is None else choose(x_mask, gates * value, zero_gates * value, T, S)

    none = [None] * 6
    z, zt = (zero, zero_t) if x_mask is not None else (none, none)
    a = modulate(scale, shift, z[1], z[0]).view(B * T, S, C)
    a = self_attention(state, f"{name}.attn", heads, a, False).reshape(B, T * S, C)
    x = x + gated(a, gate, z[2])
    a = modulate(scale_t, shift_t, zt[1], zt[0]).view(B, T, S, C).transpose(1, 2).reshape(B * S, T, C)
    a = self_attention(state, f"{name}.attn_temp", heads, a, True).view(B, S, T, C).transpose(1, 2).reshape(B, T * S, C)
    x = x + gated(a, gate_t, zt[2])
    x = x + cross_attention(state, f"{name}.cross_attn", heads, x, y, lengths)
    a = linear(state, f"{name}.mlp.fc1", modulate(scale_mlp, shift_mlp, z[4], z[3]))
    a = linear(state, f"{name}.mlp.fc2", F.gelu(a, approximate="tanh"))
    return x + gated(a, gate_mlp, z[5])


def self_attention(state: State, name: str, heads: int, x: Tensor, temporal: bool) -> Tensor:
    """7: [batch, tokens, C] to the same."""
    N, L, C = x.shape
    q, k, v = linear(state, f"{name}.qkv", x).view(N, L, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    if temporal:
        q, k = rotated(q, state["rope.freqs"]), rotated(k, state["rope.freqs"])
    q, k = rms_norm(q, state[f"{name}.q_norm.weight"]), rms_norm(k, state[f"{name}.k_norm.weight"])
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    out = scores.softmax(-1) @ v
    return linear(state, f"{name}.proj", out.transpose(1, 2).reshape(N, L, C))


def cross_attention(state: State, name: str, heads: int, x: Tensor, y: Tensor, lengths: list[int]) -> Tensor:
    """Every patch of a sample to that sample's text, through one matrix with a block-diagonal bias."""
    B, N, C = x.shape
    q = linear(state, f"{name}.q_linear", x).view(1, B * N, heads, -1).transpose(1, 2)
    k, v = linear(state, f"{name}.kv_linear", y).view(1, -1, 2, heads, C // heads).permute(2, 0, 3, 1, 4).unbind(0)
    bias = torch.full((B * N, sum(lengths)), -math.inf)
    start = 0
    for sample, length in enumerate(lengths):
        bias[sample * N : (sample + 1) * N, start : start + length] = 0
        start += length
    out = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
    return linear(state, f"{name}.proj", out.transpose(1, 2).reshape(B, N, C))


def choose(x_mask: Tensor, noisy: Tensor, clean: Tensor, T: int, S: int) -> Tensor:
    """Frames of `noisy` where x_mask is True, of `clean` elsewhere."""
    B, _, C = noisy.shape
    picked = torch.where(x_mask[:, :, None, None], noisy.view(B, T, S, C), clean.view(B, T, S, C))
    return picked.view(B, T * S, C)


def positions(H: int, W: int, C: int, scale: float, base: int) -> Tensor:
    """2: [S, C], width first."""
    inverse = 10000 ** (-2 * torch.arange(C // 4).float() / (C / 2))
    down = torch.outer(torch.arange(H) / scale * base / H, inverse)
    across = torch.outer(torch.arange(W) / scale * base / W, inverse)
    down = torch.cat([down.sin(), down.cos()], 1)[:, None].expand(H, W, -1)
    across = torch.cat([across.sin(), across.cos()], 1)[None].expand(H, W, -1)
    return torch.cat([across, down], 2).reshape(H * W, C)


def embedding(state: State, name: str, values: Tensor) -> Tensor:
    """3: [B] to [B, channels]."""
    angles = values[:, None] * torch.exp(-math.log(1e4) * torch.arange(128) / 128)
    waves = torch.cat([angles.cos(), angles.sin()], 1)
    return linear(state, f"{name}.mlp.2", F.silu(linear(state, f"{name}.mlp.0", waves)))


def rotated(x: Tensor, freqs: Tensor) -> Tensor:
    """Interleaved pairs of x [..., L, d] turned by their position."""
    angles = (torch.arange(x.shape[-2])[:, None] * freqs).repeat_interleave(2, 1)
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * angles.cos() + turned * angles.sin()


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / rms(x) over the last dimension, times the weight."""
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def layer_norm(x: Tensor) -> Tensor:
    """Over channels, without parameters."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """x W^T + b."""
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
