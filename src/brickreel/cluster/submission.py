"""Submitting a stage to Slurm through submitit: one task per rank, requeued by its own batch script when it fails."""

import os
import re
import shlex
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
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
NO_CHECKPOINTS = ("preflight",)
"""Stages that would only begin anew after a time-out, and meet the same limit again."""
CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS")
"""Which cluster is meant; squeue and scancel go by them too."""
WHERE = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
}
"""The user's own defaults, and the options that they stand for. To sbatch they count for more than a script's lines."""


@dataclass(frozen=True)
class Resources:
    """What a job asks Slurm for, in the words of Snakemake's resources. Empty or None: Slurm's own default."""

    nodes: int = 1
    tasks_per_node: int = 1
    min_nodes: int = 0
    """After the loss of a node the job may go on with this many; 0: only with `nodes`."""
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
    """How often the job may be put back into the queue, whatever the site's own number is."""


class TimeIsUp(BaseException):
    """The job's time is up and it will not be put back: nothing on the way may take it for an error of its own."""


class StageTask(submitit.helpers.Checkpointable):
    """One rank of a stage, as submitit calls it. A copy of itself is what submitit requeues after a time-out signal."""

    def __init__(self, stage: str, configs: tuple[str, ...], scope: dict[str, str]) -> None:
        self.stage, self.configs, self.scope = stage, configs, scope

    def __call__(self) -> None:
        """Run the stage in this process, as its command line would: ranks come from Slurm's variables."""
        import signal

        from brickreel import running
        from brickreel.cluster import hang

        # submitit ignores SIGTERM, and a cancelled job would linger until Slurm kills it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        asked = signal.getsignal(signal.SIGUSR2)

        def requeue(number: int, frame: Any) -> None:
            try:
                if callable(asked):
                    asked(number, frame)
            except submitit.core.utils.UncompletedJobError:
                raise TimeIsUp from None

        signal.signal(signal.SIGUSR2, requeue)
        hang.let_stacks_be_read()
        running.set_up_logging()
        running.guarded(self.stage, False, self._run)

    def _run(self) -> None:
        from brickreel import running

        try:
            running.run_stage(self.stage, self.configs, **self.scope)
        except TimeIsUp:
            # As a ValueError the batch script hears it.
            raise ValueError(
                f"its time was up before it had ended: raise `runtime` of {self.stage} in slurm/config.yaml"
            ) from None


def check_folder() -> None:
    """Raise ValueError where jobs cannot be started from this folder."""
    if not Path("slurm/job.sh").is_file():
        raise ValueError(
            f"there is no slurm/job.sh in {Path.cwd()}: jobs read it and slurm/site.env in the project's folder; copy"
            " brickreel's slurm/ into it"
        )


def submit(task: StageTask, resources: Resources, name: str, folder: Path) -> str:
    """Put the stage into the queue and return the job's id. `folder` takes the batch script and every rank's log.

    Raises ValueError with a sentence when Slurm refuses the job.
    """
    check_folder()
    folder.mkdir(parents=True, exist_ok=True)
    requeues = 0 if task.stage in NO_CHECKPOINTS else resources.requeues
    executor = submitit.SlurmExecutor(folder=folder.resolve(), max_num_timeout=requeues, python=PYTHON)
    asked = parameters(resources, name, task.scope.get("run"))
    executor.update_parameters(**asked)
    try:
        with _clean_env(asked.keys() | asked["additional_parameters"].keys()):
            return executor.submit(task).job_id
    except submitit.core.utils.FailedJobError as error:
        raise ValueError(f"Slurm refused the job: {slurm.explain_refusal(str(error))}") from None


@contextmanager
def _clean_env(options: Container[str]) -> Iterator[None]:
    """Nothing of a surrounding job (pipeline.sbatch) may leak into one with these options; what the user says of the
    cluster and of his account stays. Raises ValueError where jobs would go where squeue does not look for them."""
    here = set(CLUSTER)
    if "SLURM_JOB_ID" not in os.environ:
        if "SBATCH_CLUSTERS" in os.environ:
            raise ValueError(
                "SBATCH_CLUSTERS is read by sbatch alone, and its job would not be found: set SLURM_CLUSTERS"
            )
        here |= {name for name, option in WHERE.items() if option not in options}
    kept = {name: os.environ[name] for name in here & os.environ.keys()}
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        yield


def parameters(resources: Resources, name: str, run: str | None) -> dict[str, Any]:
    """The job in submitit's words."""
    extra = {"requeue": True, "distribution": "block", **parse_options(resources.slurm_extra)}
    exclude = [str(extra.pop("exclude"))] if "exclude" in extra else []
    given = {
        "partition": resources.slurm_partition,
        "account": resources.slurm_account,
        "gres": resources.gres,
        "mem": "" if resources.mem_mb is None else f"{resources.mem_mb}M",
        "exclude": ",".join([*exclude, *resources.exclude]),
    }
    setup = [f"default_python={shlex.quote(shlex.quote(sys.executable))}", ". slurm/job.sh"]
    setup.append(f"export BRICKREEL_MAX_REQUEUES={resources.requeues}")
    if 0 < resources.min_nodes < resources.nodes:
        # sbatch leaves the tasks of all nodes there for srun, also where an attempt has fewer.
        setup.append(f"export SLURM_NTASKS=$((SLURM_JOB_NUM_NODES * {resources.tasks_per_node}))")
        setup.append("export SLURM_NPROCS=$SLURM_NTASKS")
    setup += [f"use_network_of {shlex.quote(run)}"] if run else []
    return {
        "job_name": name,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "time": resources.runtime or DEFAULT_RUNTIME_MIN,
        "signal_delay_s": SIGNAL_S,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own default is refused where keys are enforced
        "setup": setup,
        "teardown": ["finish $?"],
        "srun_args": ["--kill-on-bad-exit=1"],
        "additional_parameters": extra,
        **{key: value for key, value in given.items() if value},
    }


def parse_options(text: str) -> dict[str, Any]:
    """`--qos=long --exclusive` as a mapping of names to values; an option without a value is True.

    Raises ValueError for a word that is not a long option, and for another cluster.
    """
    found: dict[str, Any] = {}
    words = shlex.split(text)
    for position, word in enumerate(words):
        if re.match(r"-M|--clusters?(=|$)", word):
            raise ValueError(
                f"slurm_extra: '{word}' would send the job where squeue does not look for it: set SLURM_CLUSTERS, which"
                " squeue reads too"
            )
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
