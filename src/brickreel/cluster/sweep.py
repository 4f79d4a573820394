"""Measuring network candidates inside a running job: each in fresh processes with a clean environment and a deadline.

Every rank of the job starts one child per candidate and repeat; the children form a process group of their own, so
that variables which a library reads once, at its start, take effect. A candidate that crashed or hung is not retried.
Run as a program, this module is such a child.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from brickreel.cluster import distributed
from brickreel.cluster.checks.inherited import PREFIXES
from brickreel.cluster.ranks import Ranks
from brickreel.cluster.tuning import REPEATS, Call, Candidate, score

DEADLINE_S = 90.0
FIRST_PORT, PORTS = 12000, 7000
"""Meeting ports of the children, below those of the jobs themselves."""


def measure(
    tried: Sequence[Candidate],
    calls: Sequence[Call],
    ranks: Ranks,
    device: str,
    base: Mapping[str, str],
    deadline_s: float = DEADLINE_S,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds per step by candidate and repeat, interleaved; and why others failed. A collective call of all ranks.

    `base` holds variables that every candidate gets: what the fabric asks for.
    """
    order = json.dumps({"calls": [list(call) for call in calls], "device": device})
    words = [sys.executable, "-m", "brickreel.cluster.sweep", order]
    scores: dict[str, list[float]] = {candidate.name: [] for candidate in tried}
    failed: dict[str, str] = {}
    for repeat in range(REPEATS):
        for place, candidate in enumerate(tried):
            if candidate.name in failed:
                continue
            port = FIRST_PORT + (ranks.world_size * 131 + repeat * len(tried) + place + _salt()) % PORTS
            answer, problem = everywhere(words, {**base, **candidate.variables}, ranks, port, deadline_s)
            if problem:
                failed[candidate.name] = problem
            else:
                scores[candidate.name].append(score(calls, answer["seconds"]))
    return {name: found for name, found in scores.items() if name not in failed}, failed


def everywhere(
    words: Sequence[str], variables: Mapping[str, str], ranks: Ranks, port: int, deadline_s: float
) -> tuple[Any, str]:
    """Run a child on every rank at once; rank 0's answer (JSON, its last line) and the first problem, everywhere."""
    answer, problem = child(words, environment(variables, ranks, port), deadline_s)
    found = gather((answer, problem), ranks)
    problems = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(found) if text]
    return found[0][0], problems[0] if problems else ""


def environment(variables: Mapping[str, str], ranks: Ranks, port: int) -> dict[str, str]:
    """A child's environment: nothing inherited about networks, this rank's place, a meeting point of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(PREFIXES)}
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    place = {
        "RANK": ranks.rank,
        "WORLD_SIZE": ranks.world_size,
        "LOCAL_RANK": ranks.local_rank,
        "LOCAL_WORLD_SIZE": ranks.local_world_size,
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
    }
    return clean | {name: str(value) for name, value in place.items()} | dict(variables)


def child(words: Sequence[str], environment: Mapping[str, str], deadline_s: float) -> tuple[Any, str]:
    """Run a program in a session of its own; its answer, or why there is none. Its whole group ends at the deadline."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            words,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return None, f"no answer in {deadline_s:.0f} s"
        if process.returncode:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()
            return None, f"status {process.returncode}: {last[-1] if last else 'no message'}"
    lines = output.decode().strip().splitlines()
    return (json.loads(lines[-1]) if lines else None), ""


def gather(mine: Any, ranks: Ranks) -> list[Any]:
    """What every rank has, by rank, on every rank."""
    if ranks.world_size == 1:
        return [mine]
    import torch.distributed as dist

    everyone: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(everyone, mine, group=distributed.words())
    return everyone


def _salt() -> int:
    """Other jobs on the same nodes meet elsewhere."""
    return int(os.environ.get("SLURM_JOB_ID", os.environ.get("MASTER_PORT", "0"))) * 37


def main(order: str) -> None:
    """The child: time each collective and print the slowest rank's medians, from rank 0."""
    from brickreel.cluster.checks import collective

    asked = json.loads(order)
    ranks = distributed.start(timeout_s=DEADLINE_S)
    timings = [collective.measure(name, mib, asked["device"]) for name, mib, _ in asked["calls"]]
    if not all(timing.right for timing in timings):
        raise ValueError("a collective gave a wrong result")
    if ranks.rank == 0:
        print(json.dumps({"seconds": [timing.seconds for timing in timings]}))
    distributed.stop()


if __name__ == "__main__":
    main(sys.argv[1])
