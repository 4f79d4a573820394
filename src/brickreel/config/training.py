"""Settings of models and runs: base, encode, runs, plan, preflight, train."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from brickreel.config.section import Fraction, Positive, Section


def _one_of(*names: str) -> AfterValidator:
    """A misspelt name is found when the settings are loaded, not after captions and latents are paid for."""

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"choose from {', '.join(names)}")
        return name

    return AfterValidator(check)


def _unquoted_no(name: Any) -> Any:
    """YAML reads a bare `no` as false, which is "false" as a key in JSON."""
    return "no" if name in (False, "false") else name


RESOLUTIONS = ("144p", "256", "240p", "360p", "512", "480p", "720p", "1024", "1080p", "4k", "64p", "32p")
"""Those that `training.assignment` has a table of."""
MASKS = (
    "no",
    *("quarter_random", "quarter_head", "quarter_tail", "quarter_head_tail"),
    *("image_random", "image_head", "image_tail", "image_head_tail"),
)
"""Those of `diffusion.masks`."""
TARGETS = ("qkv", "proj", "q_linear", "kv_linear", "fc1", "fc2", "linear")
"""Last names of the transformer's linear layers."""


class Component(Section):
    """Where one part of the base model comes from."""

    path: str
    """A folder, or a hub name."""
    revision: str | None = None
    """Pins a hub name to one commit."""
    subfolder: str | None = None
    """Folder inside the hub repository or folder."""


class Base(Section):
    """The model that is fine-tuned. `builtin:tiny` is the small one that brickreel ships."""

    transformer: Component = Component(path="hpcai-tech/OpenSora-STDiT-v2-stage3")
    """STDiT2: the part that is trained."""
    autoencoder: Component = Component(path="stabilityai/sd-vae-ft-ema")
    """Between pictures and latents; frozen."""
    text_encoder: Component = Component(path="DeepFloyd/t5-v1_1-xxl")
    """T5 encoder and its tokenizer; frozen."""


class Encode(Section):
    """Latents and text embeddings, computed once."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Precision of autoencoder and text encoder on a GPU. T5 may leave the range of float16: such clips fail. On a CPU
    float32 is always used, since bfloat16 is slower there."""
    frames_per_batch: Positive = 16
    """Frames per call of the autoencoder: bounds its memory."""
    text_tokens: Positive = 200
    """Longest prompt in tokens; what is beyond is cut."""
    offsets: Positive = 1
    """Temporal offsets encoded per clip and shape, spread over the clip; an epoch shows one of them. Costs disk."""
    crops: Positive = 1
    """Spatial crops encoded per offset: 1 is the centre, more are spread along the longer side. Costs disk."""
    file_mib: Positive = 256
    """Tensors are written in files of about this size; what is written survives an interruption."""
    max_failed_share: Fraction = 0.05
    """The stage fails when a larger share of its clips cannot be read."""


class RunData(Section):
    """What a run is shown: only this part of a run concerns `encode`."""

    time: Literal["poses", "frames"] = "poses"
    """Count and sample in poses (recommended for stop motion) or in frames of the film, as the origin did."""
    stride: Positive = 1
    """Every how-manieth pose or frame is shown."""
    buckets: Mapping[Annotated[str, _one_of(*RESOLUTIONS)], Mapping[int, tuple[Fraction, Positive]]] = {
        "360p": {32: (1.0, 8)}
    }
    """Resolution -> frames -> (share kept, clips per micro-batch)."""
    assignment: Literal["full", "opensora-1.1"] = "full"
    """`full` loses no clip that fits anywhere; `opensora-1.1` assigns exactly as the origin does."""
    fps_input: Literal["shown", "source"] = "shown"
    """The rate the model is told: of the poses or frames it is `shown`, or the film's own as the origin told it,
    which its samples at 8 frames per second never matched."""
    share_seed: int = 42
    """Decides which clips a share below 1 keeps."""

    @model_validator(mode="after")
    def _frames_positive(self) -> "RunData":
        if not self.buckets or not all(self.buckets.values()):
            raise ValueError("name at least one resolution with at least one length")
        if any(frames < 1 for lengths in self.buckets.values() for frames in lengths):
            raise ValueError("a length is a number of frames, at least 1")
        return self


class Schedule(Section):
    """Learning rate over steps."""

    kind: Literal["constant", "cosine_const", "1cycle"] = "constant"
    """`constant` after an optional linear warm-up; `cosine_const` rises as half a cosine and stays; `1cycle` rises,
    falls and stays, both as half a cosine."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """The plateau of `constant` and `cosine_const`, the peak of `1cycle`."""
    start_lr: Annotated[float, Field(ge=0)] = 1e-7
    """Where the warm-up begins."""
    final_lr: Annotated[float, Field(ge=0)] = 1e-5
    """Where `1cycle` ends and stays."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps until `lr` is reached."""
    cooldown_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of `1cycle` from `lr` down to `final_lr`: it needs some."""

    @model_validator(mode="after")
    def _cycle_comes_down(self) -> "Schedule":
        if self.kind == "1cycle" and not self.cooldown_steps:
            raise ValueError(
                "1cycle needs cooldown_steps above 0: without them all steps after the warm-up have final_lr"
            )
        return self


class Lora(Section):
    """Fine-tuning of low-rank additions instead of all weights."""

    rank: Positive = 16
    """Width of the additions: more learns more and costs more memory."""
    alpha: Positive = 16
    """The additions are scaled by alpha / rank."""
    targets: tuple[Annotated[str, _one_of(*TARGETS)], ...] = ("qkv", "proj", "q_linear", "kv_linear")
    """Last names of the linear layers that get additions."""


class P2(Section):
    """Training's loss at a timestep counts (k / (k + SNR)) ** gamma, where SNR is signal over noise (Choi et al. 2022).

    The unweighted loss is nearly all about details: a small model, or one with few steps, learns them first and may
    never come to the layout. The held-out loss stays unweighted.
    """

    gamma: Annotated[float, Field(gt=0, le=1)] = 0.5
    """How strongly: 1 counts what the picture shows alike at all timesteps with more signal than k."""
    k: Annotated[float, Field(gt=0)] = 0.01
    """Timesteps with less signal than this keep their weight: from t = 680 on for 0.01, from t = 250 for 1."""


class Run(Section):
    """One training run."""

    data: RunData = RunData()
    """What the run is shown."""
    schedule: Schedule = Schedule()
    """Learning rate over steps. It may change while the run has steps to take, which then follow the new one; other
    settings that the weights depend on may not, once there is a checkpoint."""
    max_steps: Positive = 2000
    """Optimizer steps. Raising it continues a finished run; it can be lowered to the step of a kept checkpoint."""
    micro_batches: Positive = 32
    """Micro-batches per step, dealt to however many ranks there are: the step is the same on 1 and on 32 GPUs. More
    ranks than micro-batches make it no faster."""
    seed: int = 42
    """Decides the order of the clips and, per showing of a clip, noise, timestep, mask and text dropout."""
    backend: Literal["auto", "ddp", "fsdp2", "colossalai"] = "auto"
    """`auto`: fsdp2 on several GPUs, ddp otherwise."""
    zero_stage: Literal[1, 2] = 2
    """Of the colossalai backend: 1 shards the optimizer, 2 the gradients as well."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of forward and backward; weights, optimizer and EMA are kept in fp32. On a CPU fp32 is the faster."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled decay, per step times the learning rate."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient over all weights; a larger one is scaled down."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Share of the moving average that each step keeps. It begins as the base model, of which ema_decay ** max_steps is
    left at the end: `plan` warns where that is more than a twentieth."""
    mask_ratios: Mapping[Annotated[str, BeforeValidator(_unquoted_no), _one_of(*MASKS)], Fraction] = {}
    """Mask strategy -> probability; the rest is unmasked."""
    text_dropout: Fraction = 0.1
    """Share of showings without their text: what guidance needs."""
    objective: Literal["iddpm", "rectified-flow"] = "iddpm"
    """`iddpm` is what the origin was trained with; `rectified-flow` makes another model of it, and needs longer: as in
    Open-Sora 1.2 timesteps are logit-normal, shifted towards noise for large videos."""
    p2: P2 | None = None
    """Weights that let layout and colours count beside details; all timesteps alike when absent, as in the origin."""
    grad_checkpoint: Fraction = 1.0
    """Share of the blocks whose activations are recomputed in the backward pass, `true` for all and `false` for none.
    All cost a third more compute for a fraction of the memory, half of them half as much for half of what is saved."""
    compile_kernels: bool = False
    """On a GPU, compile the elementwise parts of each block to one kernel each: minutes when a run first meets its
    shapes, and a C compiler on the nodes. A first form of it equalled the plain parts on an H100; as it is now it has
    not run on a GPU, and what it gains is not measured."""
    lora: Lora | None = None
    """Train low-rank additions only, merged into the final weights; all weights when absent."""
    online: bool = False
    """Decode and encode clips at every step, as the origin did, instead of reading `encode`'s latents: slower, but
    every showing is cropped and timed anew."""
    max_skipped: Positive = 20
    """The run stops after this many steps in a row whose loss or gradient is not finite. A step of which no sample can
    be read is none of them."""
    max_unreadable: Positive = 100
    """The run stops after this many samples that cannot be read; until then they count as absent."""
    checkpoint_every: Positive = 250
    """Steps between two checkpoints; one is written at the end in any case."""
    keep_last: Positive = 3
    """Newest checkpoints that are kept."""
    keep_every: Positive | None = None
    """Checkpoints at multiples of this many steps are kept for good; all others only by `keep_last`, `keep_best`."""
    keep_best: Annotated[int, Field(ge=0)] = 1
    """Checkpoints with the lowest held-out loss (EMA) that are kept, among readings of the newest one's clips and
    timesteps, and of as many clips as any."""
    gauge_every: Positive = 250
    """Steps between two readings of the held-out loss."""
    gauge_share: Fraction = 0.02
    """Largest share of the training compute that the held-out loss may take: decides how many clips it reads."""
    gauge_bins: Positive = 5
    """Equal ranges of the timestep, each reported by itself."""
    gauge_clips: Positive = 64
    """Most held-out clips that are read: stills only where there is nothing else."""
    sample_during_training: bool = False
    """With each kept checkpoint the launcher submits a job that samples the evaluation prompts, beside training."""

    @model_validator(mode="after")
    def _parts_agree(self) -> "Run":
        if sum(self.mask_ratios.values()) > 1 + 1e-9:
            raise ValueError("mask_ratios: the probabilities sum to more than 1")
        if self.p2 and self.objective != "iddpm":
            raise ValueError(f"p2 weighs the loss of iddpm, and the objective is {self.objective}")
        return self


class Plan(Section):
    """The forecast. What the machine is and costs stands in `slurm/site.env`, as BRICKREEL_* variables."""

    mfu: Annotated[float, Field(gt=0, le=1)] = 0.13
    """Assumed share of the GPU's peak FLOPs that a model gets which recomputes all blocks, where nothing was measured:
    XL/2's on one H100 (`bench/gpu.py`), when its residual stream was still fp32. A run that recomputes none
    (`grad_checkpoint`) is forecast to take three quarters of the time."""
    mfu_low: Annotated[float, Field(gt=0, le=1)] = 0.11
    """Pessimistic end of the interval: what the origin's runs reached on H100."""
    mfu_high: Annotated[float, Field(gt=0, le=1)] = 0.40
    """Optimistic end: the best published for video models of this kind on H100."""
    calibrate: bool = False
    """Time a few training steps of the run's own shapes on this machine instead of assuming `mfu`."""
    calibrate_s: Annotated[float, Field(gt=0)] = 20.0
    """Calibration ends after about this many seconds, whatever has been measured by then."""

    @model_validator(mode="after")
    def _interval_holds_value(self) -> "Plan":
        if not self.mfu_low <= self.mfu <= self.mfu_high:
            raise ValueError(f"mfu {self.mfu} must lie between mfu_low {self.mfu_low} and mfu_high {self.mfu_high}")
        return self


class Preflight(Section):
    """The check before a run."""

    quick: bool = True
    """Small sizes, at most two minutes. The long check (`false`) takes about six and adds pairs of nodes."""
    required: bool = True
    """A failed preflight ends the stage, so that nothing is trained. `false` records the verdict and goes on."""
    tune: bool = False
    """Try other network settings than NCCL's own, ten minutes once per kind of cluster; nccl.env gets what wins."""
    disk_mib: Positive = 64
    """What every rank writes to the run's folder and reads back."""
    disk_warn_mib_s: Annotated[float, Field(ge=0)] = 20.0
    """Checkpoint speed per rank that draws a warning. The 11 GiB of STDiT2-XL/2 on 32 ranks take 18 s then."""
    disk_fail_mib_s: Annotated[float, Field(ge=0)] = 5.0
    """Checkpoint speed per rank below which the check fails: the same checkpoint takes more than a minute."""


class Train(Section):
    """How training is carried out; what is trained stands in `runs:`."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one."""
    loader_threads: Positive = 2
    """Threads per rank that read micro-batches ahead."""
    prefetch: Positive = 4
    """Micro-batches per rank that are read ahead."""
    async_checkpoints: bool = True
    """Write checkpoints beside training; False stops training while they are written."""
    new_dataset: Literal["refuse", "fresh_order"] = "refuse"
    """A checkpoint of another dataset, plan or seed is refused, or its weights are kept and a fresh order starts,
    for which there must be steps left."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where curves go besides the step log. None of them can stop a run."""
    check_nodes: bool = True
    """Make preflight's quick check again inside a job of several nodes, before every attempt. A run whose preflight has
    `required: false` goes on all the same."""
    track_every: Positive = 10
    """Steps between two points of the trackers' curves."""
