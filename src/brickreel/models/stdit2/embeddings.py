"""Embeddings of STDiT2: patches, positions, scalars (timestep, sizes, rates) and text.

Shape suffixes: B samples, T frames, S patches of a frame, H and W patches down and across, L text tokens, C channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FREQUENCIES = 256
"""Width of the sinusoidal embedding of a scalar, before its MLP."""


class PatchEmbedder(nn.Module):
    """Cuts a latent video into patches of one frame and maps each to C channels.

    Weights are those of a Conv3d whose stride is its kernel; a matrix product of the patches is the same and faster.
    """

    def __init__(self, patch_size: tuple[int, int, int], in_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(in_channels, hidden_size, patch_size, patch_size)

    def forward(self, x_BCTHW: Tensor) -> tuple[Tensor, int, int]:
        """[B, channels, T, h, w] to [B, T, S, C], and the patch grid (H, W). Odd sizes are padded with zeros."""
        _, ph, pw = self.patch_size
        x = F.pad(x_BCTHW, (0, -x_BCTHW.shape[-1] % pw, 0, -x_BCTHW.shape[-2] % ph))
        B, c, T, h, w = x.shape
        H, W = h // ph, w // pw
        patches = x.view(B, c, T, H, ph, W, pw).permute(0, 2, 3, 5, 1, 4, 6).reshape(B, T, H * W, c * ph * pw)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias), H, W


def position_embedding(
    H: int, W: int, channels: int, pixel_area: Tensor, input_sq_size: int, dtype: torch.dtype
) -> Tensor:
    """Sines and cosines of patch positions, width first: [H*W, channels].

    Positions are scaled so that a video of `input_sq_size`^2 pixels has steps of one, and a non-square grid is
    stretched to the square with as many patches. `pixel_area` (height times width, pixels) is a scalar tensor, so that
    nothing waits for the device. Frequencies are rounded to `dtype`, as the original's buffer is.
    """
    device = pixel_area.device
    scale = pixel_area.double().sqrt() / input_sq_size
    base = round(math.sqrt(H * W))
    down = (torch.arange(H, device=device) / scale * (base / H)).float()
    across = (torch.arange(W, device=device) / scale * (base / W)).float()
    exponents = torch.arange(0, channels // 2, 2, device=device).float() / (channels // 2)
    inverse = (1.0 / 10000**exponents).to(dtype).float()
    down, across = torch.outer(down, inverse), torch.outer(across, inverse)
    across = torch.cat([across.sin(), across.cos()], dim=-1)[None, :, :].expand(H, -1, -1)
    down = torch.cat([down.sin(), down.cos()], dim=-1)[:, None, :].expand(-1, W, -1)
    return torch.cat([across, down], dim=-1).reshape(H * W, channels).to(dtype)


def sinusoid(values: Tensor, width: int = FREQUENCIES) -> Tensor:
    """Cosines, then sines, of scalars [...] at `width`/2 frequencies from 1 to 1/10000: [..., width] in fp32."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = values[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ScalarEmbedder(nn.Module):
    """A number as a vector: sinusoid, then a two-layer MLP."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, values: Tensor) -> Tensor:
        """[B] or [B, n] to [B, C] or [B, n * C], the vectors of one sample side by side."""
        first, activation, second = self.mlp
        assert isinstance(first, nn.Linear)
        return second(activation(first(sinusoid(values).to(first.weight.dtype)))).reshape(values.shape[0], -1)


class RotaryEmbedding(nn.Module):
    """Rotary position embedding over time (Su et al. 2021), pairs of neighbouring channels rotated together."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        frequencies = 1.0 / 10000 ** (torch.arange(0, head_dim, 2).float() / head_dim)
        self.freqs = nn.Parameter(frequencies, requires_grad=False)

    def forward(self, T: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Cosines and sines for positions 0..T-1, each [T, head_dim], in `dtype` or that of the frequencies."""
        frequencies = self.freqs.to(dtype or self.freqs.dtype)
        positions = torch.arange(T, device=frequencies.device).to(frequencies.dtype)
        angles = torch.outer(positions, frequencies).repeat_interleave(2, dim=-1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel pairs (2i, 2i+1) of x [..., d] by the angles behind `cos` and `sin` (broadcast)."""
    pairs = x.unflatten(-1, (-1, 2))
    crossed = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return x * cos + crossed * sin


class TextProjection(nn.Module):
    """Two-layer MLP from the text encoder's channels to the model's."""

    def __init__(self, caption_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(caption_channels, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, y: Tensor) -> Tensor:
        """[..., caption_channels] to [..., C]."""
        return self.fc2(F.gelu(self.fc1(y), approximate="tanh"))


class TextEmbedder(nn.Module):
    """Projects text and holds the embedding that stands for "no prompt".

    The null embedding replaces a prompt's tokens but never its mask: guidance and dropout see as many null tokens as
    the prompt had (a quirk of the original that its weights rely on).
    """

    y_embedding: Tensor

    def __init__(self, caption_channels: int, hidden_size: int, model_max_length: int) -> None:
        super().__init__()
        self.y_proj = TextProjection(caption_channels, hidden_size)
        null = torch.randn(model_max_length, caption_channels) / math.sqrt(caption_channels)
        self.register_buffer("y_embedding", null)

    def forward(self, y_BLC: Tensor, drop_B: Tensor | None) -> Tensor:
        """[B, L, caption_channels] to [B, L, C]; samples where `drop_B` is True get the null embedding."""
        if drop_B is not None:
            null = self.y_embedding[: y_BLC.shape[1]].to(y_BLC.dtype)
            y_BLC = torch.where(drop_B[:, None, None], null, y_BLC)
        return self.y_proj(y_BLC)
