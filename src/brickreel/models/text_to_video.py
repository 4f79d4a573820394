"""The text-to-video pipeline on torch, diffusers and transformers alone.

Together with the modules that it imports, and the transformer's, it is what the export stage writes beside the weights:
hence it knows no other part of brickreel.
"""

import inspect
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from torch import Tensor

from brickreel.diffusion.iddpm import IDDPM
from brickreel.diffusion.rectified_flow import euler, resolution_shift
from brickreel.diffusion.references import Placement, check_placements, parse_placements, place, prompts_by_loop
from brickreel.diffusion.sampling import Denoise, ancestral, guided, noise_like, solve
from brickreel.models.prompt import clean_prompt
from brickreel.models.text_encoder import encode_prompt

Video = NDArray[np.uint8]

SAMPLERS = ("iddpm", "dpm-solver++", "rectified-flow")


@dataclass
class TextToVideoOutput(BaseOutput):
    """What a call returns."""

    frames: list[Video]
    """One video per prompt, [T, H, W, 3]; H and W are rounded down to whole latent pixels. Empty for latents only."""
    latents: list[Tensor]
    """Scaled latents [c, T, h, w] per prompt, of the last loop."""


class TextToVideoPipeline(DiffusionPipeline):
    """Videos from prompts with STDiT2: T5 text, latents frame by frame.

    Every prompt is sampled by itself with its own generator, so that its video depends neither on the other prompts
    nor on their order.
    """

    transformer: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    model_cpu_offload_seq = "text_encoder->transformer->vae"  # type: ignore[assignment]

    def __init__(self, transformer: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any) -> None:
        """Put the parts together.

        Args:
            transformer: STDiT2.
            vae: AutoencoderKL.
            text_encoder: T5EncoderModel.
            tokenizer: its tokenizer.
            scheduler: DDPMScheduler for IDDPM's weights, FlowMatchEulerDiscreteScheduler for rectified flow's, whose
                shift comes on top of the video's own.
        """
        super().__init__()
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )

    @property
    def objective(self) -> str:
        """What the weights were trained for: "iddpm" or "rectified-flow"."""
        return "rectified-flow" if "Flow" in type(self.scheduler).__name__ else "iddpm"

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        num_frames: int = 16,
        height: int = 360,
        width: int = 640,
        fps: float = 8.0,
        num_inference_steps: int = 100,
        guidance_scale: float = 7.0,
        guidance_channels: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        sampler: str | None = None,
        conditional: bool = True,
        clean: bool = False,
        references: Sequence[Sequence[Video]] | None = None,
        mask_strategy: Sequence[str] | None = None,
        loops: int = 1,
        condition_frames: int = 4,
        frames_per_batch: int = 16,
        output_type: str = "np",
        after_step: Callable[[], None] | None = None,
    ) -> TextToVideoOutput:
        """Generate one video per prompt.

        Args:
            prompt: one or several; "|0|text|2|text" changes it from loop to loop.
            num_frames: frames per loop. height, width: pixels. fps: frames (poses) per second, told to the model.
            num_inference_steps: steps of the sampler.
            guidance_scale: 1 turns guidance off.
            guidance_channels: noise channels that guidance acts on; 3 of 4 as the original, all for rectified flow.
            generator: one per prompt; torch's global one when None. A single one serves prompt after prompt.
            sampler: "iddpm", "dpm-solver++" or "rectified-flow"; None: as the weights were trained.
            conditional: False ignores what the prompts say: samples of the null text as long as each prompt.
            clean: clean prompts as Open-Sora 1.1's inference does, though not its training; see models.prompt.
            references: per prompt, videos or images uint8 [n, height, width, 3] whose frames are given.
            mask_strategy: per prompt, where they stand (see diffusion.references); "0": the first frame as it is.
            loops: clips in a row, each beginning with the `condition_frames` last frames of the one before.
            frames_per_batch: frames that the autoencoder takes at once.
            output_type: "np" for frames, "latent" for latents alone.
            after_step: called after every step of every loop and prompt, to show progress elsewhere.

        Raises:
            ValueError: for settings that do not fit each other or the model.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        sampler = sampler or self.objective
        self._check(prompts, generator, sampler, num_frames, height, width, loops, condition_frames, output_type)
        _check_numbers(fps, guidance_scale, frames_per_batch)
        texts = [prompts_by_loop(text, loops) for text in prompts]
        strategies = [""] * len(prompts) if mask_strategy is None else list(mask_strategy)
        given = [()] * len(prompts) if references is None else list(references)
        if len(strategies) != len(prompts) or len(given) != len(prompts):
            raise ValueError("references and mask_strategy need one entry per prompt")
        placed = [
            parse_placements(strategy or ("0" if len(videos) else ""), loops)
            for strategy, videos in zip(strategies, given, strict=True)
        ]
        shape = self._latent_shape(num_frames, height, width)
        for placements, videos in zip(placed, given, strict=True):
            check_placements(placements, [self._latent_shape(*_size(video))[1:] for video in videos], shape[1:])
        if sampler == "dpm-solver++" and (loops > 1 or references is not None):
            raise ValueError(
                f"reference frames and loops need the sampler that the weights were trained for: '{self.objective}'"
            )
        channels = guidance_channels
        if channels is None:
            channels = 3 if self.objective == "iddpm" else int(self.vae.config.latent_channels)
        sizes = {"num_frames": num_frames, "height": height, "width": width, "ar": height / width, "fps": fps}

        frames, latents = [], []

        def step_done() -> None:
            bar.update()
            if after_step:
                after_step()

        with self.progress_bar(total=num_inference_steps * loops * len(prompts)) as bar:
            for number, placements in enumerate(placed):
                chance = generator[number] if isinstance(generator, Sequence) else generator or torch.default_generator
                clips: list[Video] = []
                known = [self.encode_frames(np.asarray(video), frames_per_batch) for video in given[number]]
                for loop, words in enumerate(texts[number]):
                    if loop:
                        known.append(self.encode_frames(clips[-1], frames_per_batch))
                        placements.append(Placement(loop, -1, -condition_frames, 0, condition_frames))
                    noise = torch.randn(shape, generator=chance, device=chance.device)
                    z, ratios = place(noise.to(self._execution_device), known, placements, loop)
                    words = clean_prompt(words) if clean else words
                    denoise = self._denoiser(words, guidance_scale, channels, conditional, sizes)
                    z = self._sample(denoise, z, ratios, sampler, num_inference_steps, chance, sizes, step_done)
                    if output_type != "latent" or loops > 1:
                        clips.append(self.decode_latents(z, frames_per_batch))
                latents.append(z)
                if output_type == "np":
                    frames.append(np.concatenate([c[condition_frames if i else 0 :] for i, c in enumerate(clips)]))
        self.maybe_free_model_hooks()
        return TextToVideoOutput(frames=frames, latents=latents)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """Write a folder that diffusers loads: by itself it leaves out the code.

        `kwargs` are its own. `push_to_hub` sends the folder before the code is in it: upload it afterwards instead.
        """
        super().save_pretrained(save_directory, **kwargs)
        index = Path(save_directory, "model_index.json")
        classes = json.loads(index.read_text(encoding="utf-8"))
        classes.pop("_name_or_path", None)  # where this one was loaded from
        for entry, name, kind in (
            ("_class_name", "pipeline", type(self)),
            ("transformer", "transformer/transformer", type(self.transformer)),
        ):
            shutil.copyfile(inspect.getfile(kind), index.parent / f"{name}.py")
            classes[entry] = [Path(name).name, kind.__name__]
        index.write_text(json.dumps(classes, indent=2) + "\n", encoding="utf-8")

    def encode_prompt(self, prompt: str) -> Tensor:
        """Text embedding [1, 1, L, channels], cut at the model's length and not padded."""
        limit = self.transformer.config.model_max_length
        return encode_prompt(self.tokenizer, self.text_encoder, prompt, limit, self._execution_device)[None, None]

    def encode_frames(self, frames: Video, frames_per_batch: int = 16) -> Tensor:
        """uint8 [n, H, W, 3] to scaled latents [c, n, h, w]: the mode of the posterior, so that nothing is drawn."""
        _size(frames)
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
        device, dtype = self._execution_device, self.vae.dtype
        parts = [self.vae.encode(part.to(device, dtype)).latent_dist.mode() for part in pixels.split(frames_per_batch)]
        return (torch.cat(parts).float() * self.vae.config.scaling_factor).transpose(0, 1)

    def decode_latents(self, latents: Tensor, frames_per_batch: int = 16) -> Video:
        """Scaled latents [c, T, h, w] to uint8 [T, H, W, 3]."""
        unscaled = (latents / self.vae.config.scaling_factor).transpose(0, 1).to(self.vae.dtype)
        pictures = []
        for part in unscaled.split(frames_per_batch):
            pixels = self.vae.decode(part).sample.float()
            pixels = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            pictures.append(pixels.permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(pictures)

    def _denoiser(
        self, prompt: str, scale: float, channels: int, conditional: bool, sizes: dict[str, float]
    ) -> Denoise:
        """The model with this prompt, sizes and guidance, for one sample."""
        y = self.encode_prompt(prompt).to(self.transformer.dtype)
        null = self.transformer.y_embedder.y_embedding[: y.shape[2]].to(y)[None, None]
        if not conditional:
            y = null
        told = {name: torch.tensor([float(value)], device=y.device) for name, value in sizes.items()}
        # A transformer that is still in training mode would draw which prompts to drop.
        told["drop_text"] = torch.zeros(1, dtype=torch.bool, device=y.device)
        return guided(self.transformer, y, null if conditional and scale != 1 else None, scale, channels, **told)

    def _sample(
        self,
        denoise: Denoise,
        z: Tensor,
        ratios: Tensor | None,
        sampler: str,
        steps: int,
        generator: torch.Generator,
        sizes: dict[str, float],
        after_step: Callable[[], None],
    ) -> Tensor:
        """Run one sampler from start noise [c, T, h, w] to latents of that shape."""
        x, edit = z[None], None if ratios is None else ratios[None]
        draw = noise_like(x, [generator])
        if sampler == "iddpm":
            return ancestral(denoise, x, IDDPM(steps), draw, edit, after_step)[0]
        if sampler == "rectified-flow":
            scale = float(self.scheduler.config.shift)
            shift = resolution_shift(sizes["height"], sizes["width"], z.shape[1], scale)
            return euler(denoise, x, steps, shift, draw, edit, after_step)[0]
        solver = DPMSolverMultistepScheduler.from_config(
            self.scheduler.config, algorithm_type="dpmsolver++", variance_type=None
        )
        return solve(denoise, x, solver, steps, after_step)[0]

    def _latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        reduction = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return int(self.vae.config.latent_channels), frames, height // reduction, width // reduction

    def _check(
        self,
        prompts: list[str],
        generator: Any,
        sampler: str,
        frames: int,
        height: int,
        width: int,
        loops: int,
        condition_frames: int,
        output_type: str,
    ) -> None:
        if isinstance(generator, Sequence) and len(generator) != len(prompts):
            raise ValueError(f"there are {len(generator)} generators for {len(prompts)} prompts")
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler '{sampler}' is not known: choose from {', '.join(SAMPLERS)}")
        if (sampler == "rectified-flow") != (self.objective == "rectified-flow"):
            raise ValueError(f"sampler '{sampler}' does not suit weights trained for {self.objective}")
        if frames < 1 or min(self._latent_shape(frames, height, width)) < 1:
            raise ValueError(f"{frames} frames of {height}x{width} pixels are too few or too small")
        if loops < 1 or (loops > 1 and not 1 <= condition_frames < frames):
            raise ValueError(f"loops needs at least 1, and condition_frames from 1 to {frames - 1}")
        if output_type not in ("np", "latent"):
            raise ValueError(f"output_type '{output_type}' is not known: choose from np, latent")


def _size(reference: Video) -> tuple[int, int, int]:
    """Frames, rows and columns of a reference. Raises ValueError when it is none."""
    frames = np.asarray(reference)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"a reference must be uint8 [n, height, width, 3], not {frames.dtype} {frames.shape}")
    return frames.shape[0], frames.shape[1], frames.shape[2]


def _check_numbers(fps: float, guidance_scale: float, frames_per_batch: int) -> None:
    if not 0 < fps < math.inf:
        raise ValueError(f"fps must be a number above 0, not {fps}")
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale must be a finite number, not {guidance_scale}")
    if frames_per_batch < 1:
        raise ValueError(f"frames_per_batch must be at least 1, not {frames_per_batch}")
