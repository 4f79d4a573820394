"""Ranks as processes of this machine, with the same variables that torchrun sets and the same logs as on Slurm."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

GRACE_S = 30.0
"""Seconds that ranks have between SIGTERM and SIGKILL: enough for a checkpoint of a small model."""


_LAUNCHER = "BRICKREEL_LAUNCHER"
_WATCH_S = 0.5


def end_with_launcher() -> None:
    """In a rank: when the launcher was killed, stop as if it had asked to, with a checkpoint where there is one."""
    launcher = os.environ.pop(_LAUNCHER, None)
    if launcher is None:
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(_WATCH_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


class LocalRanks:
    """`tasks` processes that run the same command. Their output goes to one file each."""

    def __init__(self, words: Sequence[str], logs: Sequence[Path], lock: int) -> None:
        """Start `python -m brickreel WORDS` once per log file; the rank is the file's position.

        `lock`: an open file that the ranks inherit.
        """
        tasks = len(logs)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        threads = str(max(1, len(os.sched_getaffinity(0)) // tasks))
        common = {"OMP_NUM_THREADS": threads} | dict(os.environ)
        common |= {"WORLD_SIZE": str(tasks), "LOCAL_WORLD_SIZE": str(tasks), "PYTHONUNBUFFERED": "1"}
        common |= {_LAUNCHER: str(os.getpid())}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if not any("nvidia" in name for name in os.listdir("/dev")):
            common.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a laptop's host name may resolve to nothing
        self.processes = []
        for rank, log in enumerate(logs):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as output:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "brickreel", *words],
                        env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        # A Ctrl-C is for the launcher, which ends its ranks in order.
                        start_new_session=True,
                        pass_fds=(lock,),
                    )
                )

    def status(self) -> int | None:
        """None while ranks work; else the first failure's exit status, or 0.

        One failed rank ends the others, which would wait for it in vain.
        """
        codes = [process.poll() for process in self.processes]
        bad = [code for code in codes if code]
        if bad:
            self.end()
            return bad[0] if bad[0] > 0 else 128 - bad[0]
        return None if None in codes else 0

    def end(self) -> None:
        """Ask the ranks to stop, wait, then make them."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline and any(process.poll() is None for process in self.processes):
            time.sleep(0.1)
        self._signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def pids(self) -> list[int]:
        """Process ids of the ranks that live."""
        return [process.pid for process in self.processes if process.poll() is None]

    def _signal(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                try:
                    # The whole group: data loader workers end with their rank.
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    continue
