# The configuration, checked once, and each stage's own settings file: a stage reruns when its settings change.
import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from brickreel import config as brickreel_config, files
from brickreel.films import withdrawn
from brickreel.stages import STAGES

try:
    CONFIG = brickreel_config.load(config)
except ValueError as error:
    raise WorkflowError(str(error)) from None

RUNS = list(CONFIG.selected_runs)
# Films that were taken out of the dataset since the last run: `brickreel withdraw` writes the list.
WITHDRAWN = [str(withdrawn.LIST)] if withdrawn.LIST.exists() else []
SHARDS = [f"{index:02d}" for index in range(CONFIG.project.shards)]

# How stages are recorded is no setting of a stage, which would run anew when it changes. Braces are names to it.
TELEMETRY = shlex.quote(CONFIG.telemetry.model_dump_json())
TELEMETRY = TELEMETRY.replace("{", "{{").replace("}", "}}")

# Rules call `brickreel`: the one that stands beside the Python that runs Snakemake, whatever the caller's PATH says.
shell.prefix(
    f"set -euo pipefail; export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
    f" {brickreel_config.TELEMETRY}={TELEMETRY}; "
)


def hold():
    """Lock this folder for this Snakemake. Its own lock survives kill -9 and must then be removed by hand."""
    try:
        return files.hold(".snakemake/brickreel.lock")
    except BlockingIOError:
        raise
    except OSError as error:
        raise WorkflowError(str(error)) from None


def write_settings():
    """Each stage's settings file, unless a run is at work here: its jobs go on with what it was started with."""
    if not workflow.is_main_process:
        return
    try:
        os.close(hold())
    except BlockingIOError:
        print(
            "A run is at work in this folder: changed settings count when it has ended.",
            file=sys.stderr,
        )
        return
    for stage in STAGES:
        for run in RUNS if stage.scope == "run" else [None]:
            brickreel_config.write_settings(CONFIG, stage.name, run)


write_settings()


# Captions alone need none: who only makes a dataset, with --until caption, is not held up.
NEED_WEIGHTS = {"encode", "plan", "preflight", "train", "sample", "export"}


def missing_weights():
    """Raise WorkflowError, with what to download and where to put it, when a part of the base model is not here."""
    from brickreel.models import load

    try:
        for part in ("transformer", "autoencoder", "text_encoder"):
            load.locate(part, **getattr(CONFIG.base, part).model_dump(), weights=True)
    except (FileNotFoundError, ValueError) as error:
        raise WorkflowError(str(error)) from None


wildcard_constraints:
    shard=r"\d+",
    run=r"[A-Za-z0-9][A-Za-z0-9._-]*",


# preflight and train start their own job: what it asks for are resources too, so that the profile alone decides.
LAUNCH_RESOURCES = dict(
    launcher="local",
    nodes=1,
    tasks_per_node=1,
    min_nodes=0,
    cpus_per_task=1,
    gres="",
    slurm_partition="",
    slurm_account="",
    runtime=1440,
    mem_mb=0,
    slurm_extra="",
)
LAUNCH_OPTIONS = (
    " --executor {resources.launcher} --nodes {resources.nodes} --tasks-per-node {resources.tasks_per_node}"
    " --min-nodes {resources.min_nodes} --cpus-per-task {resources.cpus_per_task} --gres='{resources.gres}'"
    " --partition='{resources.slurm_partition}'"
    " --account='{resources.slurm_account}' --runtime {resources.runtime} --mem-mb {resources.mem_mb}"
    " --slurm-extra='{resources.slurm_extra}'"
)
