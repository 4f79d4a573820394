"""The pipeline at work for the sample stage: loaded once, its transformer's weights exchanged."""

from collections.abc import Sequence
from typing import Any, cast

import torch

from brickreel import config
from brickreel.evaluation import metrics, prompts, weights
from brickreel.evaluation.jobs import Weights
from brickreel.evaluation.metrics import Frames
from brickreel.models import load
from brickreel.training import lora
from brickreel.training.encoding import choose_device


class Generation:
    """One process's pipeline, on its GPU in bf16 or on the CPU in fp32."""

    def __init__(self, base: config.Base, settings: config.Sample, run: config.Run, local_rank: int) -> None:
        from brickreel.models.pipeline import OpenSoraPipeline

        self.settings, self.lora = settings, run.lora
        self.sampler: str = settings.sampler
        device = choose_device(settings.device, local_rank)
        self.pipeline = cast(Any, OpenSoraPipeline.from_base(base, run.objective))
        self.pipeline.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        self.base = {
            name: tensor.detach().cpu().clone() for name, tensor in self.pipeline.transformer.state_dict().items()
        }

    def use(self, chosen: Weights) -> str | None:
        """Put weights into the transformer. Returns the reason why they cannot be sampled from, None if they can.

        The base model may have been trained for another objective than the run: each has the sampler that suits it.
        """
        self.pipeline.scheduler = load.scheduler(chosen.objective)
        self.sampler = chosen.sampler(self.settings)
        try:
            # A checkpoint holds what is trained; the rest is the base model's.
            trained = weights.load(chosen) if chosen.folder else {}
            state = lora.whole(self.base, trained, None if chosen.final else self.lora)
            self.pipeline.transformer.load_state_dict(state)
        except (OSError, ValueError, RuntimeError) as error:
            return f"the weights cannot be loaded: {_first_line(error)}"
        if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
            return "the weights hold NaN or infinity: the training diverged"
        return None

    def videos(
        self, asked: Sequence[tuple[str, int]], conditional: bool, length: int
    ) -> tuple[list[Frames | None], list[str | None]]:
        """Generate (prompt, seed) pairs together: uint8 [T, H, W, 3] each, or None and the reason."""
        settings = self.settings
        try:
            result = self.pipeline(
                prompt=[prompt for prompt, _ in asked],
                num_frames=settings.frames * length,
                height=settings.resolution[0],
                width=settings.resolution[1],
                fps=settings.pose_rate,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                guidance_channels=settings.guidance_channels,
                generator=[prompts.generator(prompt, seed) for prompt, seed in asked],
                sampler=self.sampler,
                conditional=conditional,
            ).frames
        except torch.OutOfMemoryError:
            reason = f"out of memory with {len(asked)} videos at once: lower sample.batch_size"
            return [None] * len(asked), [reason] * len(asked)
        except RuntimeError as error:
            return [None] * len(asked), [f"generation failed: {_first_line(error)}"] * len(asked)
        videos: list[Frames | None] = []
        reasons: list[str | None] = []
        for frames in result:
            try:
                metrics.check(frames)
            except ValueError as error:
                videos.append(None)
                reasons.append(str(error))
            else:
                videos.append(frames)
                reasons.append(None)
        return videos, reasons


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
