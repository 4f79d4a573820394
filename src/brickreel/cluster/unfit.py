"""Nodes that a run's jobs stay away from: those in which its last checks found a fault.

Every check of a run leaves a reading in logs/preflight/RUN/: health.json, what preflight said last, and attempt-*.json,
what train's own jobs said. They count for a day; then a node is tried again.
"""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from brickreel import config, files
from brickreel.cluster import site_facts, slurm
from brickreel.cluster.submission import Resources, parse_options
from brickreel.stages import LAUNCHED

logger = logging.getLogger("brickreel")

RECENT_S = 24 * 3600.0
"""After a day a node may have been mended: it is tried again."""
CHOOSING = {"reservation", "nodelist", "nodefile", "constraint"}
"""Options of sbatch by which a job may use some nodes of its partition alone."""
GPUS = ("gpus", "gpus-per-node", "gpus-per-task")
READINGS = ("earlier-*.json", "health.json", "attempt-*.json")


class Fault(NamedTuple):
    """What is wrong with a node, and which reading says so."""

    reason: str
    reading: Path


def leave_out(stage: str, run: str, settings: Sequence[str], resources: Resources) -> tuple[str, ...]:
    """`chosen` for a job that is about to be submitted, told with the reasons."""
    if stage == "preflight":
        _keep_reading(run)
    left_out = chosen(stage, run, settings, resources)
    for node, (reason, reading) in faults(run).items() if stage in LAUNCHED else ():
        if node in left_out:
            logger.info("%s is left out: %s. To take it back delete it from `exclude` in %s", node, reason, reading)
        else:
            logger.info("%s is not left out, since the job may need it, although: %s", node, reason)
    return left_out


def chosen(stage: str, run: str, settings: Sequence[str], resources: Resources) -> tuple[str, ...]:
    """The nodes that a job of the run stays away from.

    None where checks do not count (`preflight.required: false`), and never so many that those which are left could not
    run the job; what was found last counts first.
    """
    if stage not in LAUNCHED or not _checks_count(stage, run, settings):
        return ()
    found = list(faults(run))
    return tuple(sorted(_spare(found, resources))) if found else ()


def _checks_count(stage: str, run: str, settings: Sequence[str]) -> bool:
    """Snakemake's settings file of train holds nothing about preflight: what that was told stands in its result."""
    told = _read(Path("results/preflight") / run / "health.json") if stage == "train" else {}
    return bool(told.get("required", True) and config.load(*settings).preflight.required)


def faults(run: str) -> dict[str, Fault]:
    """The faulty nodes by the last reading of each node, the latest first.

    A reading that found something on every one of its nodes says nothing of nodes: the cause is not one of them.
    """
    folder, found = Path("logs/preflight") / run, dict[str, Fault]()
    readings = [(path, _read(path)) for pattern in READINGS for path in folder.glob(pattern)]
    # Not the file's age: whoever takes a node back edits it.
    dated = sorted((health["time_s"], path, health) for path, health in readings if "time_s" in health)
    for when, path, health in dated:
        if time.time() - when > RECENT_S:
            continue
        seen, faulty = set(health.get("nodes", ())), set(health.get("exclude", ()))
        if faulty < seen:
            for node in seen:
                found.pop(node, None)
            found |= {node: Fault(_reason(health, node), path) for node in sorted(faulty)}
    return dict(reversed(found.items()))


def _keep_reading(run: str) -> None:
    """Keep what preflight said last under another name: the next one, elsewhere, says nothing of its nodes."""
    path = Path("logs/preflight") / run / "health.json"
    if path.is_file():
        path.rename(path.with_name(f"earlier-{_read(path).get('time_s', 0):.3f}.json"))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = files.read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _reason(health: dict[str, Any], node: str) -> str:
    failed = (
        check for check in health.get("checks", ()) if check.get("node") == node and check.get("result") == "fail"
    )
    return next((str(check.get("reason")) for check in failed), "it failed a check")


def _spare(nodes: list[str], resources: Resources) -> list[str]:
    """As many of these nodes, the first ones first, as a job can do without; none where its options choose nodes."""
    options = parse_options(resources.slurm_extra)
    if CHOOSING & options.keys() or any(f"SBATCH_{name.upper()}" in os.environ for name in CHOOSING):
        return []
    partition = resources.slurm_partition or os.environ.get("SBATCH_PARTITION", "")
    gpus = f"{resources.gres},{options.get('gres', '')}" + "".join(f",gpu:{options.get(name, 0)}" for name in GPUS)
    there = slurm.nodes_in_order(partition, *site_facts.gpus_of(gpus))
    if there is None:
        return nodes
    there -= slurm.names(str(options.get("exclude", "")))
    needed = [node for node in nodes if node in there]
    kept = needed[max(0, len(there) - resources.nodes) :]
    return [node for node in nodes if node not in kept]
