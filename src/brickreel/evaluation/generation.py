"""The pipeline at work for the sample stage: loaded once, its transformer's weights exchanged."""

from typing import Any, cast

import torch

from brickreel import config
from brickreel.evaluation import metrics, prompts, weights
from brickreel.evaluation.jobs import Job, Weights
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
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.pipeline = cast(Any, OpenSoraPipeline.from_base(base, run.objective, dtype=dtype))
        self.pipeline.to(device)
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

    def video(self, job: Job) -> tuple[Frames | None, str | None]:
        """Generate a job's video with the weights in use: uint8 [T, H, W, 3], or None and the reason."""
        settings = self.settings
        poses, (height, width) = settings.frames * job.length, settings.resolution
        try:
            frames = self.pipeline(
                prompt=job.prompt,
                num_frames=poses,
                height=height,
                width=width,
                fps=settings.pose_rate,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                guidance_channels=settings.guidance_channels,
                generator=[prompts.generator(job.prompt, job.seed)],
                sampler=self.sampler,
                conditional=job.conditional,
            ).frames[0]
        except torch.OutOfMemoryError:
            lower = "sample.lengths" if job.length > 1 else "sample.frames or sample.resolution"
            return None, f"out of memory with {poses} poses of {height} x {width}: lower {lower}"
        except RuntimeError as error:
            return None, f"generation failed: {_first_line(error)}"
        try:
            metrics.check(frames)
        except ValueError as error:
            return None, str(error)
        return frames, None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
