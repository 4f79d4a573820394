"""Samples during training: with each kept checkpoint the launcher submits a small job, and training goes on.

The training job knows nothing of it. What goes wrong here is a warning: samples that are missing at the end are made
by the sample stage, which takes those that are there as finished.
"""

import logging
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from brickreel import config, files
from brickreel.cluster import slurm, unfit
from brickreel.cluster.submission import Resources, StageTask, parse_options, submit

logger = logging.getLogger("brickreel")

PROFILE = Path("slurm/config.yaml")


def one_gpu(gres: str) -> str:
    """What a job of one rank asks for where a node's ranks ask for `gres`: gpu:h100:1 of gpu:h100:8."""
    return re.sub(r"\b(gpu(?::[\w.-]+)?:)\d+(?=$|[(,])", r"\g<1>1", gres)


def one_gpu_of(options: str) -> str:
    """What a job of one rank asks for where training asks sbatch for these further options: no node of its own, and
    one GPU for whatever says `gpus`."""
    found = parse_options(options)
    gpus = [str(found.pop(name)) for name in list(found) if re.fullmatch(r"gpus(-per-\w+)?", name)]
    for name in ("exclusive", "nodelist"):
        found.pop(name, None)
    if "gres" in found:
        found["gres"] = one_gpu(str(found["gres"]))
    elif gpus:
        found["gpus"] = re.sub(r"(^|:)\d+$", r"\g<1>1", gpus[0])
    return " ".join(f"--{name}" if value is True else f"--{name}={shlex.quote(value)}" for name, value in found.items())


def profiled(stage: str) -> dict[str, int]:
    """The memory and time that the profile gives a stage's job, as far as it has them as numbers.

    Snakemake tells a rule only what is its own.
    """
    try:
        section = yaml.safe_load(PROFILE.read_text(encoding="utf-8")) if PROFILE.is_file() else None
    except yaml.YAMLError as error:
        logger.warning("%s cannot be read (%s): sample jobs ask for what training asks for", PROFILE, error)
        section = None
    for name in ("set-resources", stage):
        section = section.get(name) if isinstance(section, dict) else None
    found = section if isinstance(section, dict) else {}
    return {name: found[name] for name in ("mem_mb", "runtime") if isinstance(found.get(name), int)}


def began(run: str) -> dict[str, Any]:
    """The row of the attempt that began a run's training: the newest that started from step 1, else the oldest.

    A run that was started anew in its folder keeps the attempts of the training before. Empty without any attempt.
    """
    rows = files.read_json_lines(Path("results/train", run, "attempts.jsonl"))
    anew = [row for row in rows if row.get("first_step") == 1]
    return (anew[-1:] or rows[:1] or [{}])[0]


class SampleJobs:
    """Submits a sample job for each complete checkpoint of a run that has none yet.

    That of the `last` step becomes the final weights, which the sample stage itself samples at once.
    """

    def __init__(self, run: str, settings: Sequence[str], resources: Resources, last: int | None = None) -> None:
        self.run, self.last = run, last and f"step-{last:08d}"
        # The training job's own settings file holds nothing about samples; the stage's stands beside it.
        own = config.settings_path("sample", run)
        self.settings = (str(own),) if config.settings_path("train", run) in map(Path, settings) else tuple(settings)
        kept = ("cpus_per_task", "slurm_partition", "slurm_account", "runtime", "exclude")
        own_share = {
            "gres": one_gpu(resources.gres),
            "slurm_extra": one_gpu_of(resources.slurm_extra),
            "requeues": 0,
        }
        asked = {name: getattr(resources, name) for name in kept} | own_share | profiled("sample")
        self.resources = Resources(**asked)
        self.asked: set[str] = set()

    @classmethod
    def of(
        cls, stage: str, scope: dict[str, str], settings: Sequence[str], resources: Resources
    ) -> "SampleJobs | None":
        """For a training job whose run wants samples; None for all others."""
        run = scope.get("run", "")
        if stage != "train":
            return None
        trained = config.load(*settings).run(run)
        if not trained.sample_during_training:
            return None
        # Of a job that is followed again, the resources say nothing of faulty nodes.
        faulty = unfit.chosen("train", run, settings, resources)
        away = tuple(dict.fromkeys((*resources.exclude, *faulty)))
        return cls(run, settings, replace(resources, exclude=away), trained.max_steps)

    def look(self) -> None:
        """Submit what is due. Never raises for what Slurm says."""
        for path in sorted(Path("results/train", self.run, "checkpoints").glob("step-*[0-9]/manifest.json")):
            step = path.parent.name
            if step in self.asked or step == self.last or self._is_sampled(step):
                continue
            self.asked.add(step)
            name = f"sample-{self.run}-{step}"
            try:
                if slurm.user_jobs(name):
                    continue  # an earlier launcher's
                scope = {"run": self.run, "checkpoint": step}
                task = StageTask("sample", self.settings, scope)
                job_id = submit(task, self.resources, name, Path("logs/sample", self.run))
                logger.info("submitted Slurm job %s, which samples %s", job_id, step)
            except ConnectionError:
                self.asked.discard(step)  # the controller is away: the next look asks again
            except (ValueError, OSError) as error:
                logger.warning("no samples of %s during training: %s", step, error)

    def _is_sampled(self, step: str) -> bool:
        """Whether there are samples of this training: of an earlier one of that name they are made anew."""
        table = Path("results/sample", self.run, step, "samples.parquet")
        return table.exists() and table.stat().st_mtime >= began(self.run).get("time_s", 0.0)
