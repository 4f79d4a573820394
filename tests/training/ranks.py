"""Several ranks on this machine, forked from a process that has imported everything once: a rank starts in no time."""

import os
import socket
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import forked


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(folder: Path, words: list[str], ranks: int = 1, **environment: str) -> list[ForkServerProcess]:
    """Start `brickreel WORDS` on that many gloo ranks in `folder`; `rank-N.log` there takes what they print."""
    port = str(free_port())
    processes = []
    for rank in range(ranks):
        place = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"} | environment
        processes.append(forked.start(_rank, folder, words, rank, place))
    return processes


def finish(processes: list[ForkServerProcess], timeout_s: float = 240) -> list[int]:
    """Wait for all; when one fails the others are ended, as a launcher does. Returns the exit statuses."""
    deadline = time.monotonic() + timeout_s
    while any(process.exitcode is None for process in processes):
        if any(process.exitcode for process in processes) or time.monotonic() > deadline:
            for process in processes:
                process.join(10.0)  # the others may be ending by themselves
                process.kill()
        time.sleep(0.01)
    return [process.exitcode for process in processes]


def run(folder: Path, words: list[str], ranks: int = 1, **environment: str) -> list[int]:
    return finish(start(folder, words, ranks, **environment))


def output(folder: Path) -> str:
    """What the ranks printed, all runs together."""
    return "\n".join(path.read_text() for path in sorted(folder.glob("rank-*.log")))


def _rank(folder: Path, words: list[str], rank: int, environment: dict[str, str]) -> None:
    import torch

    from brickreel.__main__ import main

    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ.update(environment)
    log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    main(words)
