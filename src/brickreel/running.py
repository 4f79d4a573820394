"""Running a command or a stage: its settings, its log, its recorder, and errors as one sentence.

What the command line, the launcher's jobs and the tools share; whichever way a stage is started, it comes through here.
"""

import importlib
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

from brickreel import config
from brickreel.cluster import exits, lock
from brickreel.stages import LAUNCHED, Shard

logger = logging.getLogger("brickreel")

# diffusers imports bitsandbytes where it is installed (ColossalAI asks for it), and bitsandbytes torch's compiler: a
# third of the time in which a rank starts, for kernels that nothing here uses. It is out of sight of brickreel's own
# programs until `brickreel.models` has imported diffusers; a program that uses brickreel's classes keeps all of it.
sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


def run_stage(name: str, configs: tuple[str, ...] = (), **scope: Any) -> None:
    """Load the settings and run one stage under the recorder; what every way of starting a stage comes to."""
    from brickreel.cluster import local, ranks
    from brickreel.telemetry import recorder

    local.end_with_launcher()
    settings = config.load(*(configs or _usual(name, scope.get("run"))))
    me = ranks.discover()
    scopes = [scope]
    if "shard" in scope:
        # The array of a job may be a part of all shards: only the settings know how many there are.
        which, slash, count = scope["shard"].partition("/")
        scope["shard"] = which + slash + (str(settings.project.shards) if count == "project" else count)
        scopes = [{"shard": shard} for shard in Shard.dealt(scope["shard"], me.rank, me.world_size)]
    if "run" in scope:
        settings.run(scope["run"])  # a misspelt name fails here, before anything is imported
    part = scope.get("run", "all")
    if "shard" in scope and not scope["shard"].startswith("all"):
        part = scopes[0]["shard"].name
    module = importlib.import_module(f"brickreel.stages.{name}")
    with recorder.recording(name, part, config.telemetry(settings), enabled=me.local_rank == 0):
        for one in scopes:
            # A launched job is held by its launcher, another one of several ranks by the first of them.
            with nullcontext() if name in LAUNCHED or ("shard" not in one and me.rank) else _alone(name, one):
                module.run(settings, **one)


def _usual(stage: str, run: str | None) -> tuple[Path, ...]:
    """config.yaml; where there is none, what the graph wrote down for this stage when it last ran in this folder."""
    written = config.settings_path(stage, run)
    usual = Path("config.yaml")
    return (written,) if written.exists() and not usual.exists() else (usual,)


def _alone(stage: str, scope: Mapping[str, Any]) -> TextIO:
    """Hold a shard, a run or the project for this process. Whoever is at it already is waited for: most often a job
    whose Snakemake was killed, and which leaves nothing to do."""
    what, file = "it", "all"
    if "shard" in scope:
        shard = scope["shard"]
        what, file = f"shard {shard.name}", f"shard-{shard.name}-of-{shard.count}"
    elif "run" in scope:
        what = file = "-".join(filter(None, (scope["run"], scope.get("checkpoint"))))
    where = Path("logs") / stage / f"{file}.lock"
    try:
        return lock.acquire(where, f"{stage}: {what} is worked on")
    except ValueError as error:
        logger.info("%s; waiting for it", error)
    return lock.acquire(where, "", patience_s=math.inf)


def set_up_logging(log_file: str | None = None) -> None:
    """Plain lines to stderr, and to a file when asked; libraries that are loaded later keep quiet."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file:
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers[:] = handlers
    logger.setLevel(logging.INFO)
    logger.propagate = False


def guarded(command: str, debug: bool, action: Callable[[], None]) -> None:
    """Run an action; an error becomes one sentence and exit status 1, with the traceback only when asked."""
    try:
        status = _status(command, debug, action)
    except Exception:
        if not exits.STUCK.is_set():
            raise
        traceback.print_exc()
        status = 1
    if status or exits.STUCK.is_set():
        exits.leave(status)


def _status(command: str, debug: bool, action: Callable[[], None]) -> int:
    try:
        action()
    except exits.Interrupted as stopped:
        logger.info("brickreel %s: %s", command, stopped)
        return exits.INTERRUPTED
    except (ValueError, OSError) as error:
        if debug:
            raise
        logger.error("brickreel %s: %s", command, error)
        exits.record(command, error)
        return 1
    except KeyboardInterrupt:
        logger.error("brickreel %s: interrupted; what is finished is kept, and the same command continues", command)
        return 130
    except Exception as error:
        if debug:
            raise
        logger.error(
            "brickreel %s: unexpected %s: %s (run with --debug for the traceback)", command, type(error).__name__, error
        )
        return 1
    return 0
