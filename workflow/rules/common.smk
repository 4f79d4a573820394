# The configuration, checked once, and each stage's own settings file: a stage reruns when its settings change.
import errno
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from brickreel import config as brickreel_config, files
from brickreel.films import sources, withdrawn
from brickreel.stages import LAUNCHED, STAGES

try:
    CONFIG = brickreel_config.load(config)
except ValueError as error:
    raise WorkflowError(str(error)) from None


def check_lists():
    """Raise WorkflowError for a list that is not there. Snakemake misses it only where its stage has no results yet."""
    lists = {
        "ingest.sources": "" if CONFIG.cut.adopt else CONFIG.ingest.sources,
        "cut.adopt": CONFIG.cut.adopt,
        "caption.corrections": CONFIG.caption.corrections,
    }
    for setting, path in lists.items():
        has_results = Path("results", setting.partition(".")[0]).exists()
        if path and has_results and not Path(path).is_file():
            raise WorkflowError(f"there is no {path} in {Path.cwd()} (`{setting}`)")


if workflow.is_main_process:
    check_lists()

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
        told = f"this folder cannot be written ({error.strerror}): choose another with --directory"
        raise WorkflowError(
            told if error.errno in (errno.EACCES, errno.EROFS) else str(error)
        ) from None


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
SERVED = bool(CONFIG.caption.server.command)
# Through submitit, whose jobs read slurm/ of this folder.
NEED_SCRIPTS = {*LAUNCHED, *(["caption"] if SERVED else [])}


def check_what_is_needed(rules):
    """Raise WorkflowError that says what is missing for these rules: Slurm, the key for captions, prompts, weights."""
    if workflow.executor_plugin.name == "slurm" and not shutil.which("sbatch"):
        raise WorkflowError(
            "Slurm's programs are not on this machine: start on a login node, or without --profile slurm"
        )
    try:
        if workflow.executor_plugin.name == "slurm" and rules & NEED_SCRIPTS:
            from brickreel.cluster import submission

            submission.check_folder()
        if "caption" in rules and CONFIG.caption.captioner == "openai":
            from brickreel.captions import client

            client.api_key(CONFIG.caption)
        if "sample" in rules:
            from brickreel.evaluation import prompts

            prompts.read(CONFIG.sample)
        if rules & NEED_WEIGHTS:
            from brickreel.models import load

            for part in ("transformer", "autoencoder", "text_encoder"):
                where = getattr(CONFIG.base, part).model_dump()
                load.locate(part, **where, weights=True)
    except (FileNotFoundError, ValueError) as error:
        raise WorkflowError(str(error)) from None


def last_words(snakemakes_logs):
    """The last line of the log of every job that failed for good, as Snakemake's own logs name them."""
    told = "".join(Path(path).read_text(errors="replace") for path in snakemakes_logs)
    failed = re.findall(
        r"^ +jobid: (\d+)\n(?: +\w+:.*\n)*? +log: (.+?)(?:, .+)? \(check log",
        told,
        re.M,
    )
    names = dict.fromkeys(
        name
        for job, name in failed
        if f"Finished jobid: {job} " not in told and Path(name).is_file()
    )
    ends = [
        (name, Path(name).read_text(errors="replace").strip().splitlines())
        for name in names
    ]
    return "\n".join(f"{name} ends with: {lines[-1]}" for name, lines in ends if lines)


def films_here(wildcards):
    """A digest of the films that the list means: one that comes, goes or gets another size is a reason to look again."""
    return sources.state(Path(CONFIG.ingest.sources))


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
# Resources of a rule beat the profile's default-resources, which say for all rules where jobs go and who pays.
for name in ("slurm_partition", "slurm_account", "slurm_extra"):
    if name in (workflow.resource_settings.default_resources or {}):
        del LAUNCH_RESOURCES[name]

LAUNCH_OPTIONS = (
    " --executor {resources.launcher} --nodes {resources.nodes} --tasks-per-node {resources.tasks_per_node}"
    " --min-nodes {resources.min_nodes} --cpus-per-task {resources.cpus_per_task} --gres='{resources.gres}'"
    " --partition='{resources.slurm_partition}'"
    " --account='{resources.slurm_account}' --runtime {resources.runtime} --mem-mb {resources.mem_mb}"
    " --slurm-extra='{resources.slurm_extra}'"
)
