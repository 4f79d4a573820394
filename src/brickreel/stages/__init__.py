"""The stages of the graph, in order: the one list that rules, commands, settings and scripts follow.

Each stage is a module here with `run(config, **scope)`. A stage works on the whole project, on one shard of its films
or clips, or for one named training run; its scope says which keyword `run` takes besides the configuration.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from brickreel.files import shard_of

Scope = Literal["project", "shard", "run"]


class Stage(NamedTuple):
    """One word of the pipeline."""

    name: str
    scope: Scope
    purpose: str
    heavy: bool = False
    """Has an sbatch script of its own under `slurm/`."""
    launched: bool = False
    """Is one job of many ranks, one per GPU, which `brickreel launch` starts and holds."""


STAGES = (
    Stage("ingest", "project", "List the films: probe, hash, download, licence"),
    Stage("analyze", "shard", "Read every signal off one decode pass per film", heavy=True),
    Stage("curate", "project", "Choose clips in pose time, with a reason for every decision"),
    Stage("cut", "shard", "Write clip videos and middle-frame stills", heavy=True),
    Stage("caption", "shard", "Describe clips and stills", heavy=True),
    Stage("encode", "shard", "Encode latents and text embeddings once", heavy=True),
    Stage("plan", "run", "Forecast steps, memory, GPU-hours and money"),
    Stage("preflight", "run", "Prove that the nodes and their network are fit", heavy=True, launched=True),
    Stage("train", "run", "Fine-tune on one process or many nodes", heavy=True, launched=True),
    Stage("sample", "run", "Generate the evaluation prompts with fixed seeds", heavy=True),
    Stage("evaluate", "run", "Score samples against held-out clips in pose time", heavy=True),
    Stage("export", "run", "Write a folder that diffusers loads, with its cards"),
    Stage("report", "project", "Say where every GPU-hour went, on one page"),
)

BY_NAME = {stage.name: stage for stage in STAGES}
LAUNCHED = tuple(stage.name for stage in STAGES if stage.launched)


@dataclass(frozen=True)
class Shard:
    """One part of a stage's work: `index` of `count`, chosen by a stable hash of the film's or clip's id."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read `3/16`. Raises ValueError for anything else."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ValueError(f"--shard takes INDEX/COUNT with INDEX from 0, such as 3/16, or all/COUNT, not '{text}'")
        return cls(int(index), int(count))

    @classmethod
    def dealt(cls, text: str, rank: int, world_size: int) -> "list[Shard]":
        """The shards of one process: `3/16` is that shard, `all/16` deals all of them to the processes of a job."""
        which, slash, count = text.partition("/")
        if not (which == "all" and slash and count.isdecimal() and int(count)):
            return [cls.parse(text)]
        return [cls(index, int(count)) for index in range(rank, int(count), world_size)]

    @property
    def name(self) -> str:
        """`03`: stands in file names."""
        return f"{self.index:02d}"

    def owns(self, key: str) -> bool:
        """Whether this shard does the work of the film or clip with this id."""
        return shard_of(key, self.count) == self.index
