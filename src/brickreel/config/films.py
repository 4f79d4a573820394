"""Settings of films and clips: ingest, analyze, curate, cut."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from brickreel.config.section import Fraction, Positive, Section


class Limits(Section):
    """What one film may take before it is given up, with a reason. The films after it are not affected."""

    seconds: Annotated[float, Field(gt=0)] = 6 * 3600
    """Time for one film."""
    stall_s: Annotated[float, Field(gt=0)] = 120
    """Seconds without a decoded frame after which a film is taken to hang."""
    memory_gib: Annotated[float, Field(gt=0)] = 4
    """Memory of the process that decodes one film."""


class Ingest(Section):
    """Which films there are."""

    sources: Path = Path("sources.csv")
    """Table of films: `path` (file, folder or glob) or `url` (film, channel or playlist), and title, channel,
    licence, rights_holder. Relative paths count from the table's folder."""
    allow_unlicensed: bool = False
    """Accept films without a licence; they stay marked `unlicensed` in every table and card."""
    max_height: Positive = 1080
    """Downloads are chosen with at most this many rows. What is downloaded already stays as it is: to have it in
    another size, delete its file in results/ingest/films."""
    limits: Limits = Limits()
    """What one film may take."""


class Analyze(Section):
    """The one decode pass."""

    height: Positive = 180
    """Frames are reduced to this many rows before any signal is read."""
    transnet: Literal["off", "candidates", "everywhere", "auto"] = "auto"
    """Where the shot network TransNetV2 runs: nowhere, in windows round doubtful cuts, on every frame, or, by `auto`,
    on every frame where there is a GPU and in windows where there is none."""
    threads: Positive = 1
    """Decoder threads per film; shards run beside each other, so that one is most economical."""
    max_failed_share: Fraction = 0.05
    """The stage fails when a larger share of a shard's films cannot be read; one may always, unless this is 0."""
    limits: Limits = Limits()
    """What one film may take."""


class Curate(Section):
    """Which clips are kept. All lengths count poses, not frames."""

    min_poses: Positive = 15
    """Shorter clips are dropped as `too_short`."""
    max_poses: Positive = 200
    """Longer shots are split into clips of at most this many poses: of nearly equal length, or, where that would leave
    none of `min_poses`, of this length with a rest that is too short. At least `min_poses`."""
    min_luma: Fraction = 0.02
    """Mean brightness below which a frame is black; clips of black frames are dropped as `black`."""
    dark_luma: Fraction = 0.08
    """Median brightness below which a clip is dropped as `too_dark`."""
    min_contrast: Fraction = 0.02
    """Deviation of brightness below which a clip is dropped as `blank`."""
    max_blur: Fraction = 0.85
    """Blur, 0 sharp to 1 featureless, above which a clip is dropped as `blurred`."""
    min_change: Annotated[float, Field(ge=0, le=255)] = 3.5
    """Grey levels by which the strongest part of the picture must change from pose to pose, on average; below it a clip
    is dropped as `static`. Noise and flicker reach 3."""
    max_text: Fraction = 0.02
    """Share of the picture covered by text above which a clip is dropped: as `title_card` where nothing moves, else as
    `on_screen_text`."""
    freeze_s: Annotated[float, Field(gt=0)] = 1.0
    """In a shot that is not shot in holds, a repetition longer than this is a freeze frame and not one pose. A clip
    ends before a gap longer than this, as damage leaves one, or a camera that writes nothing where nothing changes."""
    duplicate_bits: Annotated[float, Field(ge=0, le=32)] = 8.0
    """Clips of different films whose poses differ by at most this many of 64 hash bits are near-duplicates; one is
    kept. 0 keeps all but identical ones."""
    heldout_share: Fraction = 0.05
    """Share of the films, not of the clips, that training never sees; at least one of two or more."""
    seed: int = 0
    """Chooses the held-out films."""
    withdrawn: tuple[str, ...] = ()
    """Ids of films that are out of the dataset; `brickreel withdraw` adds to withdrawn.json, which counts as well."""
    audit_thumbnails: Annotated[int, Field(ge=0)] = 24
    """Thumbnails per reason on the audit page."""

    @model_validator(mode="after")
    def _lengths(self) -> "Curate":
        if self.min_poses > self.max_poses:
            raise ValueError(f"min_poses, {self.min_poses}, is more than max_poses, {self.max_poses}: no clip would do")
        return self


class Cut(Section):
    """How clips are written."""

    time: Literal["poses", "frames"] = "frames"
    """`frames` keeps the film's holds in the file; `poses` writes one frame per pose, at the pose rate."""
    short_side: Positive = 720
    """Clips are scaled down (never up) to this many rows or columns, whichever is fewer."""
    crf: Annotated[int, Field(ge=0, le=51)] = 20
    """x264 quality: lower is better and larger."""
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = "veryfast"
    """x264 effort: slower is smaller."""
    threads: Positive = 1
    """Threads that decode a film, and as many that encode it; shards run beside each other."""
    max_failed_share: Fraction = 0.05
    """The stage fails when a larger share of a shard's clips cannot be written."""
    adopt: Path | None = None
    """A CSV of finished clips (path, text, ... as Open-Sora's): the dataset enters here, without the stages before."""
    adopt_heldout_share: Fraction = 0.05
    """Share of the adopted clips' films that training never sees."""
    limits: Limits = Limits()
    """What one film may take."""
