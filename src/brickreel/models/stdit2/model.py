"""STDiT2, the spatial-temporal diffusion transformer of Open-Sora 1.1, checkpoint-compatible with it.

Written for one device; brickreel.training.backends shard it from outside. Shape suffixes: B samples, T latent frames, S
patches of a frame, L text tokens, C channels, h and w the latent's rows and columns.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from brickreel.models.stdit2.attention import Text, flash_kernel
from brickreel.models.stdit2.blocks import Block, FinalLayer
from brickreel.models.stdit2.embeddings import (
    PatchEmbedder,
    RotaryEmbedding,
    ScalarEmbedder,
    TextEmbedder,
    position_embedding,
)
from brickreel.models.stdit2.fused import as_recomputed

PRESETS: dict[str, dict[str, Any]] = {
    "XL/2": {"depth": 28, "hidden_size": 1152, "num_heads": 16, "caption_channels": 4096, "model_max_length": 200},
    "tiny": {
        "depth": 4,
        "hidden_size": 144,
        "num_heads": 3,
        "caption_channels": 64,
        "model_max_length": 64,
        "in_channels": 8,
    },
}
"""Open-Sora 1.1's released size, and one that a laptop trains."""

DEVIATIONS = {
    "norm-before-rope": "normalise queries and keys before rotating them, as Open-Sora 1.2 does: attention across time"
    " then depends on distance alone; in the other order a common shift of both frames changes a logit by 5 %"
    " of the logits' spread",
    "single-final-norm": "norm and modulate clean frames once in the final layer, with the plain embedding of t = 0:"
    " noised frames, all that is trained on, come out the same to the bit",
    "exact-scalars": "do not round timestep, size and rate to bf16 before their sinusoid: rounded, 507 of 1,000"
    " timesteps are told apart, and 23.976 is 24",
}
"""Named departures from the original's arithmetic, off unless asked for: each changes what given weights compute, and
released weights were trained without them. The figures are from `bench/deviations.py`. A fourth departure belongs to
the data: `fps_input` of a run, by which the model is told the rate of the poses and not the film's."""

ATTENTION = ("auto", "sdpa", "flash")
COUNTS = ("depth", "hidden_size", "num_heads", "caption_channels", "model_max_length", "in_channels", "input_sq_size")
"""Settings that are whole numbers of at least 1."""


class STDiT2(ModelMixin, ConfigMixin):  # type: ignore[misc]  # the two disagree on config_name, as all of diffusers
    """Predicts the noise in a latent video and, with `pred_sigma`, the interpolation of its variance."""

    _supports_gradient_checkpointing = True
    _gradient_checkpointing_func: Any
    config: Any  # type: ignore[assignment]  # diffusers declares a plain dict but gives attributes
    _no_split_modules = ("Block",)  # type: ignore[assignment]

    @register_to_config
    def __init__(
        self,
        depth: int = 28,
        hidden_size: int = 1152,
        num_heads: int = 16,
        caption_channels: int = 4096,
        model_max_length: int = 200,
        in_channels: int = 4,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        qk_norm: bool = True,
        pred_sigma: bool = True,
        input_sq_size: int = 512,
        class_dropout_prob: float = 0.1,
        compat: str = "opensora-1.1",
        deviations: tuple[str, ...] = (),
        attn_implementation: str = "auto",
    ) -> None:
        """Build a freshly initialised model.

        Args:
            depth: number of blocks.
            hidden_size: channels C; a multiple of 12 (positions need 4, the three size embeddings 3) and of num_heads.
            num_heads: attention heads; C / num_heads must be even.
            caption_channels: channels of the text encoder.
            model_max_length: most text tokens per prompt.
            in_channels: channels of the latent.
            patch_size: frames, rows and columns of a patch; only one frame is supported.
            qk_norm: RMS-normalise queries and keys of self-attention.
            pred_sigma: predict variances beside noise (twice the output channels).
            input_sq_size: pixels; positions have steps of one at this side length squared.
            class_dropout_prob: share of prompts replaced by the null embedding while training.
            compat: whose arithmetic to follow; only "opensora-1.1" is known.
            deviations: names from DEVIATIONS.
            attn_implementation: "sdpa"; "flash" for cross-attention through flash-attn's variable-length kernel; "auto"
                takes flash where it is installed and usable.

        Raises:
            ValueError: for sizes that are none or do not divide, and for names that are not known.
        """
        super().__init__()
        _check_settings(self.config)
        self.out_channels = in_channels * (2 if pred_sigma else 1)
        self.patch_size = (1, int(patch_size[1]), int(patch_size[2]))
        self.gradient_checkpointing = False
        self.recomputed_blocks = depth
        self.x_embedder = PatchEmbedder(self.patch_size, in_channels, hidden_size)
        self.t_embedder = ScalarEmbedder(hidden_size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.t_block_temp = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 3 * hidden_size))
        self.y_embedder = TextEmbedder(caption_channels, hidden_size, model_max_length)
        self.rope = RotaryEmbedding(hidden_size // num_heads)
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, qk_norm, "norm-before-rope" in deviations) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, math.prod(self.patch_size) * self.out_channels)
        self.csize_embedder = ScalarEmbedder(hidden_size // 3)
        self.ar_embedder = ScalarEmbedder(hidden_size // 3)
        self.fl_embedder = ScalarEmbedder(hidden_size)
        self.fps_embedder = ScalarEmbedder(hidden_size)
        self._initialise()

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """A freshly initialised model of a known size. Raises ValueError that lists the names."""
        if name not in PRESETS:
            raise ValueError(f"there is no STDiT2 preset '{name}': choose from {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    def recompute(self, share: float) -> None:
        """Recompute this share of the blocks in backward, from the first on, instead of keeping what they made.

        The trade: a block that is recomputed keeps 1 vector of the hidden size per token instead of about 21, and
        costs a third more products; the one at work needs about 30. `enable_gradient_checkpointing()` is a share of 1,
        until this is called.

        Raises ValueError for a share that is not within 0 and 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"the share of blocks to recompute must be from 0 to 1, not {share}")
        self.recomputed_blocks = round(share * len(self.blocks))
        self.enable_gradient_checkpointing()

    def _initialise(self) -> None:
        """Xavier for all products; small normals where text and time enter; zeros where a block starts as identity."""
        small = ("t_embedder.", "t_block.", "t_block_temp.", "y_embedder.")
        zero = ("attn_temp.proj", "cross_attn.proj", "final_layer.linear")
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            nn.init.zeros_(module.bias)
            if name.endswith(zero):
                nn.init.zeros_(module.weight)
            elif name.startswith(small):
                nn.init.normal_(module.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(module.weight)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.config.hidden_size, -1))

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | Sequence[int] | None = None,
        x_mask: Tensor | None = None,
        num_frames: Tensor | None = None,
        height: Tensor | None = None,
        width: Tensor | None = None,
        ar: Tensor | None = None,
        fps: Tensor | None = None,
        drop_text: Tensor | None = None,
    ) -> Tensor:
        """Predict noise and variance of a noised latent video.

        Args:
            x: noised latents [B, in_channels, T, h, w]; odd sizes are padded inside.
            timestep: [B], 0 to 999.
            y: text embeddings [B, 1, L, caption_channels], padded to any L up to model_max_length.
            mask: which tokens count, [B, L] or [B/2, L] (then used for both halves); or the number of tokens of each
                sample as Python integers, which lets the variable-length kernel run; None: all tokens.
            x_mask: bool [B, T], False for frames that are given clean; None: all are noised.
            num_frames: frames of the video [B]. height, width: pixels [B]. ar: height / width [B]; computed when None.
                fps: rate [B] in frames (here: poses) per second.
            drop_text: bool [B], True where the null embedding replaces the prompt. When None and the model is in
                training mode, drawn with `class_dropout_prob`.

        Returns:
            [B, out_channels, T, h, w] in fp32.

        Raises:
            ValueError: when shapes do not fit.
        """
        if num_frames is None or height is None or width is None or fps is None:
            raise ValueError("STDiT2 needs num_frames, height, width (pixels) and fps, each of shape [B]")
        _check_inputs(self, x, y)
        _check_flags("x_mask", x_mask, (x.shape[0], x.shape[2]), "frame")
        _check_flags("drop_text", drop_text, (x.shape[0],), "sample")
        _check_text_mask(y, mask)
        for name, value in {
            "timestep": timestep,
            "num_frames": num_frames,
            "height": height,
            "width": width,
            "ar": ar,
            "fps": fps,
        }.items():
            _check_scalar(name, value, x.shape[0])
        # Autocast leaves the weights in fp32; what runs between the products, the positions, and the scalars that the
        # model is told are in the precision of the products all the same, as in a model that is kept in it.
        kind = x.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else self.x_embedder.proj.weight.dtype
        rows, columns = x.shape[-2:]
        scalars = [timestep, num_frames, height, width, height / width if ar is None else ar, fps]
        if "exact-scalars" not in self.config.deviations:
            scalars = [value.to(dtype) for value in scalars]
        timestep, num_frames, height, width, ar, fps = scalars

        text = self._text(y.to(dtype), mask, drop_text)
        x_BTSC, H, W = self.x_embedder(x.to(dtype))
        area = height[0].double() * width[0].double()
        x_BTSC = x_BTSC + position_embedding(H, W, x_BTSC.shape[-1], area, self.config.input_sq_size, dtype)
        rope = self.rope(x.shape[2], dtype)

        size_BC = torch.cat([self.csize_embedder(torch.stack([height, width], 1)), self.ar_embedder(ar)], dim=1)
        pace_BC = self.fl_embedder(num_frames) + self.fps_embedder(fps)
        e_BC = self.t_embedder(timestep)
        m, m_temporal = self._modulation(e_BC, size_BC, pace_BC)
        if x_mask is not None:
            e_clean_BC = self.t_embedder(torch.zeros_like(timestep))
            clean, clean_temporal = self._modulation(e_clean_BC, size_BC, pace_BC)
            noised = x_mask[:, :, None, None]
            m, m_temporal = torch.where(noised, m, clean), torch.where(noised, m_temporal, clean_temporal)

        for number, block in enumerate(self.blocks):
            if self.gradient_checkpointing and number < self.recomputed_blocks and torch.is_grad_enabled():
                # A compiler follows modules here, and no functions.
                way = (block,) if torch.compiler.is_compiling() else (as_recomputed, block)
                x_BTSC = self._gradient_checkpointing_func(*way, x_BTSC, text, m, m_temporal, rope)
            else:
                x_BTSC = block(x_BTSC, text, m, m_temporal, rope)

        if x_mask is None:
            out_BTSC = self.final_layer(x_BTSC, e_BC[:, None])
        elif "single-final-norm" in self.config.deviations:
            out_BTSC = self.final_layer(x_BTSC, torch.where(x_mask[..., None], e_BC[:, None], e_clean_BC[:, None]))
        else:
            out_BTSC = self.final_layer.forward_masked(x_BTSC, e_BC[:, None], (e_clean_BC + size_BC)[:, None], x_mask)
        return self._unpatchify(out_BTSC, H, W)[..., :rows, :columns].float()

    def _modulation(self, e_BC: Tensor, size_BC: Tensor, pace_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors for all blocks: [B, 1, 6, C] within frames, [B, 1, 3, C] across time."""
        m = self.t_block(e_BC + size_BC).unflatten(1, (1, 6, -1))
        return m, self.t_block_temp(e_BC + pace_BC).unflatten(1, (1, 3, -1))

    def _text(self, y: Tensor, mask: Tensor | Sequence[int] | None, drop_text: Tensor | None) -> Text:
        """Project the text, and bring its mask into the form that attention reads."""
        if drop_text is None and self.training and self.config.class_dropout_prob > 0:
            drop_text = torch.rand(y.shape[0], device=y.device) < self.config.class_dropout_prob
        tokens = y.squeeze(1) if y.dim() == 4 else y
        if mask is None:
            return Text(self.y_embedder(tokens, drop_text))
        if isinstance(mask, Tensor):
            mask = mask != 0
            if mask.device.type == "cpu" and not torch.compiler.is_compiling():
                # Columns that no sample uses are cut; on a GPU, looking for them would wait for the device.
                if not mask.any(1).all():
                    raise ValueError("mask leaves a sample without any text token: an empty prompt has its end mark")
                used = int(mask.any(0).nonzero().max()) + 1
                tokens, mask = tokens[:, :used], mask[:, :used]
            mask = mask.repeat(tokens.shape[0] // mask.shape[0], 1)
            return Text(self.y_embedder(tokens, drop_text), mask[:, None, None, :])
        lengths = tuple(mask) * (tokens.shape[0] // len(mask))
        tokens = self.y_embedder(tokens[:, : max(lengths)], drop_text)
        if self._use_flash(tokens):
            return Text(torch.cat([row[:n] for row, n in zip(tokens, lengths, strict=True)])[None], lengths=lengths)
        if min(lengths) == max(lengths):
            return Text(tokens)
        counts = torch.tensor(lengths).to(tokens.device, non_blocking=True)
        valid = torch.arange(tokens.shape[1], device=tokens.device) < counts[:, None]
        return Text(tokens, valid[:, None, None, :])

    def _use_flash(self, tokens: Tensor) -> bool:
        wanted = self.config.attn_implementation
        if wanted == "flash":
            return True
        half = tokens.dtype in (torch.float16, torch.bfloat16)
        return wanted == "auto" and tokens.is_cuda and half and flash_kernel() is not None

    def _unpatchify(self, x_BTSC: Tensor, H: int, W: int) -> Tensor:
        """Patches [B, T, H*W, ph*pw*c] back to [B, c, T, H*ph, W*pw]; channels are last within a patch."""
        B, T = x_BTSC.shape[:2]
        _, ph, pw = self.patch_size
        x = x_BTSC.view(B, T, H, W, ph, pw, self.out_channels).permute(0, 6, 1, 2, 4, 3, 5)
        return x.reshape(B, self.out_channels, T, H * ph, W * pw)


def _check_settings(settings: Any) -> None:
    for name in COUNTS:
        if not isinstance(settings[name], int) or settings[name] < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {settings[name]!r}")
    width, heads, patch = settings.hidden_size, settings.num_heads, tuple(settings.patch_size)
    if width % 12 or width % heads or (width // heads) % 2:
        raise ValueError(f"hidden_size {width} must be a multiple of 12, and of num_heads {heads} with even quotient")
    if len(patch) != 3 or patch[0] != 1 or not all(isinstance(size, int) and size > 0 for size in patch):
        raise ValueError(f"patch_size {patch} must be (1, rows, columns), each at least 1")
    if not 0 <= settings.class_dropout_prob <= 1:
        raise ValueError(f"class_dropout_prob must be from 0 to 1, not {settings.class_dropout_prob}")
    if settings.compat != "opensora-1.1":
        raise ValueError(f"compat '{settings.compat}' is not known: only 'opensora-1.1' is")
    unknown = sorted(set(settings.deviations) - DEVIATIONS.keys())
    if unknown:
        raise ValueError(f"deviations {unknown} are not known: choose from {', '.join(DEVIATIONS)}")
    attention = settings.attn_implementation
    if attention not in ATTENTION:
        raise ValueError(f"attn_implementation '{attention}' is not known: choose from {', '.join(ATTENTION)}")
    if attention == "flash" and flash_kernel() is None:
        raise ValueError("attn_implementation 'flash' needs the flash-attn package: install it, or use 'auto'")


def _check_inputs(model: STDiT2, x: Tensor, y: Tensor) -> None:
    settings = model.config
    if x.dim() != 5 or x.shape[1] != settings.in_channels or not x.numel():
        raise ValueError(f"x must be [B, {settings.in_channels}, T, h, w], none of them 0, not {list(x.shape)}")
    B = x.shape[0]
    single = y.dim() == 3 or (y.dim() == 4 and y.shape[1] == 1)
    if not single or y.shape[0] != B or y.shape[-1] != settings.caption_channels:
        raise ValueError(f"y must be [{B}, 1, L, {settings.caption_channels}], not {list(y.shape)}")
    if not 1 <= y.shape[-2] <= settings.model_max_length:
        raise ValueError(f"y has {y.shape[-2]} text tokens, the model takes 1 to {settings.model_max_length}")


def _check_flags(name: str, flags: Tensor | None, shape: tuple[int, ...], what: str) -> None:
    if flags is not None and (flags.shape != shape or flags.dtype != torch.bool):
        found = f"{flags.dtype} {list(flags.shape)}"
        raise ValueError(f"{name} must be bool {list(shape)}, one flag per {what} of x, not {found}")


def _check_text_mask(y: Tensor, mask: Tensor | Sequence[int] | None) -> None:
    if mask is None:
        return
    B, L = y.shape[0], y.shape[-2]
    if isinstance(mask, Tensor):
        if mask.dim() != 2 or mask.shape[1] != L or not mask.shape[0] or B % mask.shape[0]:
            raise ValueError(f"mask must be [{B}, {L}], one flag per text token of y, not {list(mask.shape)}")
    elif not mask or B % len(mask) or min(mask) < 1 or max(mask) > L:
        raise ValueError(f"mask must count 1 to {L} text tokens for each of {B} samples, not {list(mask)}")


def _check_scalar(name: str, value: Tensor | None, samples: int) -> None:
    if value is not None and value.shape != (samples,):
        raise ValueError(f"{name} must be [{samples}], one per sample of x, not {list(value.shape)}")
