"""Submitting a stage to Slurm through submitit: one task per rank, requeued by its own batch script when it fails."""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit

from brickreel.cluster import slurm

DEFAULT_RUNTIME_MIN = 60
PYTHON = '"${python[@]}"'
"""The interpreter as slurm/job.sh prepares it: the site's container, or the one that launched."""
SIGNAL_S = 120
"""Seconds before the time limit at which every rank gets SIGUSR2: enough for a step and a checkpoint."""


@dataclass(frozen=True)
class Resources:
    """What a job asks Slurm for, in the words of Snakemake's resources. Empty or None: Slurm's own default."""

    nodes: int = 1
    tasks_per_node: int = 1
    min_nodes: int = 0
    """After a loss the job may go on with this many nodes; 0: only with `nodes`."""
    cpus_per_task: int = 1
    gres: str = ""
    """Per node, such as `gpu:h100:8`."""
    slurm_partition: str = ""
    slurm_account: str = ""
    runtime: int | None = None
    """Minutes."""
    mem_mb: int | None = None
    """Per node; 0 is all of it."""
    slurm_extra: str = ""
    """Further options of sbatch, in its words."""
    exclude: tuple[str, ...] = ()
    """Nodes to stay away from."""
    requeues: int = field(default=10, compare=False)


class StageTask(submitit.helpers.Checkpointable):
    """One rank of a stage, as submitit calls it. A copy of itself is what submitit requeues after a time-out signal."""

    def __init__(self, stage: str, configs: tuple[str, ...], scope: dict[str, str]) -> None:
        self.stage, self.configs, self.scope = stage, configs, scope

    def __call__(self) -> None:
        """Run the stage in this process, as its command line would: ranks come from Slurm's variables."""
        import signal

        from brickreel import running

        # submitit ignores SIGTERM, and a cancelled job would linger until Slurm kills it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        running.set_up_logging()
        running.guarded(self.stage, False, lambda: running.run_stage(self.stage, self.configs, **self.scope))


def submit(task: StageTask, resources: Resources, name: str, folder: Path) -> str:
    """Put the stage into the queue and return the job's id. `folder` takes the batch script and every rank's log.

    Raises ValueError with a sentence when Slurm refuses the job.
    """
    if not Path("slurm/job.sh").is_file():
        raise ValueError("there is no slurm/job.sh here: start from the project's folder, which has slurm/ in it")
    folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(folder=folder.resolve(), max_num_timeout=resources.requeues, python=PYTHON)
    executor.update_parameters(**parameters(resources, name, task.scope.get("run")))
    try:
        # Nothing of a surrounding job (pipeline.sbatch) may leak into this one.
        with submitit.helpers.clean_env():
            return executor.submit(task).job_id
    except submitit.core.utils.FailedJobError as error:
        raise ValueError(f"Slurm refused the job: {slurm.explain_refusal(str(error))}") from None


def parameters(resources: Resources, name: str, run: str | None) -> dict[str, Any]:
    """The job in submitit's words."""
    extra = {"requeue": True, "distribution": "block", **parse_options(resources.slurm_extra)}
    if 0 < resources.min_nodes < resources.nodes:
        extra["nodes"] = f"{resources.min_nodes}-{resources.nodes}"
    given = {
        "partition": resources.slurm_partition,
        "account": resources.slurm_account,
        "gres": resources.gres,
        "mem": "" if resources.mem_mb is None else f"{resources.mem_mb}M",
        "exclude": ",".join(resources.exclude),
    }
    network = [f"use_network_of {shlex.quote(run)}"] if run else []
    return {
        "job_name": name,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "time": resources.runtime or DEFAULT_RUNTIME_MIN,
        "signal_delay_s": SIGNAL_S,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own default is refused where keys are enforced
        "setup": [f"default_python={shlex.quote(shlex.quote(sys.executable))}", ". slurm/job.sh", *network],
        "teardown": ["finish $?"],
        "srun_args": ["--kill-on-bad-exit=1"],
        "additional_parameters": extra,
        **{key: value for key, value in given.items() if value},
    }


def parse_options(text: str) -> dict[str, Any]:
    """`--qos=long --exclusive` as a mapping of names to values; an option without a value is True.

    Raises ValueError for a word that is not a long option.
    """
    found: dict[str, Any] = {}
    words = shlex.split(text)
    for position, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            following = words[position + 1] if position + 1 < len(words) else "--"
            found[name] = value if equals else True if following.startswith("--") else following
        elif position == 0 or "=" in words[position - 1] or not words[position - 1].startswith("--"):
            raise ValueError(f"slurm_extra: '{word}' is not an option of sbatch in its long form (--name=value)")
    return found


def log_path(folder: Path, job_id: str, rank: int) -> Path:
    """Where submitit lets a rank write what it prints, over all attempts."""
    return submitit.core.utils.JobPaths(folder.resolve(), job_id, rank).stdout
