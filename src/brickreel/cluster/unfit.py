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
from brickreel.cluster import slurm
from brickreel.cluster.submission import Resources

logger = logging.getLogger("brickreel")

CHECKED = ("preflight", "train")
RECENT_S = 24 * 3600.0
"""After a day a node may have been mended: it is tried again."""
READINGS = ("earlier-*.json", "health.json", "attempt-*.json")


class Fault(NamedTuple):
    """What is wrong with a node, and which reading says so."""

    reason: str
    reading: Path


def leave_out(stage: str, run: str, settings: Sequence[str], resources: Resources) -> tuple[str, ...]:
    """The nodes that a new job of the run stays away from, told with the reasons; it is about to be submitted.

    None where checks do not count (`preflight.required: false`), and never so many that those which are left could not
    run the job; what was found last counts first.
    """
    if stage not in CHECKED or not _checks_count(stage, run, settings):
        return ()
    if stage == "preflight":
        _keep_reading(run)
    found = faults(run)
    chosen = _spare(list(found), resources) if found else []
    for node, (reason, reading) in found.items():
        if node in chosen:
            logger.info("%s is left out: %s. To take it back delete it from `exclude` in %s", node, reason, reading)
        else:
            logger.info("%s is not left out, since too few nodes would be left, although: %s", node, reason)
    return tuple(sorted(chosen))


def _checks_count(stage: str, run: str, settings: Sequence[str]) -> bool:
    """Snakemake's settings file of train holds nothing about preflight: what that was told stands in its result."""
    told = _read(Path("results/preflight") / run / "health.json") if stage == "train" else {}
    return bool(told.get("required", True) and config.load(*settings).preflight.required)


def faults(run: str) -> dict[str, Fault]:
    """The faulty nodes by the last reading of each node, the latest first.

    A reading that found something on every one of its nodes says nothing of nodes: the cause is not one of them.
    """
    folder, found = Path("logs/preflight") / run, dict[str, Fault]()
    paths = [path for pattern in READINGS for path in folder.glob(pattern)]
    for path in sorted(paths, key=os.path.getmtime):
        health = _read(path) if time.time() - os.path.getmtime(path) < RECENT_S else {}
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
        path.rename(path.with_name(time.strftime("earlier-%Y%m%d-%H%M%S.json", time.localtime(path.stat().st_mtime))))


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
    """As many of these nodes, the first ones first, as a job can do without."""
    partition = resources.slurm_partition or os.environ.get("SBATCH_PARTITION", "")
    there = slurm.nodes_in_order(partition, "gpu" in resources.gres) if partition else None
    if there is None:
        return nodes
    needed = [node for node in nodes if node in there]
    kept = needed[max(0, len(there) - resources.nodes) :]
    return [node for node in nodes if node not in kept]
