"""Launching a stage on many processes: `brickreel launch STAGE` waits until the job has ended and ends as it did.

What a rule must pass, all from its `resources:` so that the profile alone decides (empty means Slurm's default):

    exec python -m brickreel launch train --run {wildcards.run} --config SETTINGS --log {log}
        --executor {resources.launcher}                local, slurm or inline
        --nodes {resources.nodes} --tasks-per-node {resources.tasks_per_node}
        --min-nodes {resources.min_nodes}              after a lost node it may go on with so many; 0: with all
        --cpus-per-task {resources.cpus_per_task}      default 1
        --gres '{resources.gres}'                      per node: gpu:h100:8
        --partition '{resources.slurm_partition}' --account '{resources.slurm_account}'
        --runtime '{resources.runtime}'                minutes
        --mem-mb '{resources.mem_mb}'                  per node; 0 is all of it
        --slurm-extra '{resources.slurm_extra}'        further options of sbatch, in its words

`exec`, so that the launcher is Snakemake's own child: interrupted with it, the job is cancelled; when Snakemake was
killed, the launcher leaves the job running, and the next launcher of the same run finds it again.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from brickreel.cluster import job_record, lock, site_env
from brickreel.cluster.submission import Resources

logger = logging.getLogger("brickreel")

Executor = Literal["slurm", "local", "inline"]


def launch(
    stage: str,
    settings: Sequence[str],
    nodes: int = 1,
    tasks_per_node: int = 1,
    executor: Executor = "local",
    *,
    run: str | None = None,
    shard: str | None = None,
    resources: Resources | None = None,
    log_file: str | None = None,
) -> None:
    """Run a stage on nodes x tasks_per_node ranks and return when it has ended well.

    `settings` are the stage's configuration files. `slurm` submits one job and follows it over requeues, `local`
    starts the ranks on this machine, `inline` runs the stage in this process. Every rank's output is kept under
    logs/STAGE/RUN/. Raises ValueError with a sentence when the job can not start or did not end well.
    """
    # Imported late: a helper of the launch command must not pay for submitit.
    from brickreel.cluster.job import Job, run_inline, run_local, run_slurm

    scope = {key: value for key, value in {"run": run, "shard": shard}.items() if value is not None}
    if not scope:
        raise ValueError(f"launch {stage}: give --run NAME, --shard INDEX/COUNT or --shard all/COUNT")
    part = "-".join(scope.values()).replace("/", "-of-")
    asked = resources or Resources()
    job = Job(
        stage=stage,
        scope=scope,
        part=part,
        settings=tuple(str(name) for name in settings),
        resources=Resources(**{**vars(asked), "nodes": nodes, "tasks_per_node": tasks_per_node}),
        log_file=Path(log_file) if log_file else None,
        fingerprint=job_record.fingerprint(settings),
    )
    with lock.only_launcher(stage, part) as held:
        if executor == "inline":
            run_inline(job)
        elif executor == "local":
            run_local(job, held.fileno())
        else:
            run_slurm(job, site_env.read())


@click.command("launch")
@click.argument("stage")
@click.option("--run", help="Name of the run in `runs:`.")
@click.option("--shard", help="INDEX/COUNT of the work to do; all/COUNT: dealt to the ranks.")
@click.option("--config", "configs", multiple=True, default=["config.yaml"], type=click.Path(dir_okay=False))
@click.option("--log", "log_file", type=click.Path(dir_okay=False), help="What rank 0 and the launcher say.")
@click.option("--executor", type=click.Choice(["slurm", "local", "inline"]), default="local", show_default=True)
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True)
@click.option("--tasks-per-node", type=click.IntRange(1), default=1, show_default=True, help="One per GPU.")
@click.option(
    "--min-nodes", type=click.IntRange(0), default=0, help="After a lost node the job may go on with so many."
)
@click.option("--cpus-per-task", type=click.IntRange(1), default=1, show_default=True)
@click.option("--gres", default="", help="GPUs per node, such as gpu:h100:8.")
@click.option("--partition", default="")
@click.option("--account", default="")
@click.option("--runtime", default="", help="Minutes; then the job is requeued, preflight fails.")
@click.option("--mem-mb", default="", help="Memory per node; 0 is all of it.")
@click.option("--slurm-extra", default="", help="Further options of sbatch, in its words.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(
    stage: str,
    run: str | None,
    shard: str | None,
    configs: tuple[str, ...],
    log_file: str | None,
    executor: Executor,
    nodes: int,
    tasks_per_node: int,
    min_nodes: int,
    cpus_per_task: int,
    gres: str,
    partition: str,
    account: str,
    runtime: str,
    mem_mb: str,
    slurm_extra: str,
    debug: bool,
) -> None:
    """Run a STAGE on many processes and wait for it: as a Slurm job, on this machine, or in this process.

    Started again while its job still runs, it follows that job instead of starting another.
    """
    from brickreel import running
    from brickreel.cluster.job import Stopped

    running.set_up_logging(log_file)

    def call() -> None:
        _check_stage(stage)
        resources = Resources(
            min_nodes=min_nodes,
            cpus_per_task=cpus_per_task,
            gres=gres,
            slurm_partition=partition,
            slurm_account=account,
            runtime=_number("--runtime", runtime),
            mem_mb=_number("--mem-mb", mem_mb),
            slurm_extra=slurm_extra,
        )
        launch(
            stage,
            configs,
            nodes,
            tasks_per_node,
            executor,
            run=run,
            shard=shard,
            resources=resources,
            log_file=log_file,
        )

    try:
        running.guarded(f"launch {stage}", debug, call)
    except Stopped as stopped:
        os._exit(128 + stopped.signal)  # stdout may be closed: nothing is flushed


def _check_stage(stage: str) -> None:
    from brickreel.stages import BY_NAME

    if stage not in BY_NAME:
        raise ValueError(f"there is no stage '{stage}': choose from {', '.join(BY_NAME)}")


def _number(option: str, text: str) -> int | None:
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{option} takes a whole number, not '{text}'") from None
