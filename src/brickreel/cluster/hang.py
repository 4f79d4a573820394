"""A run that no longer takes steps: stacks and collectives of all ranks are kept, and the job starts anew."""

import logging
import re
import sys
import time
from pathlib import Path

from brickreel.cluster import flight, slurm

logger = logging.getLogger("brickreel")


STARTUP_S = 900.0
"""An attempt without its first step: reading the model, the data and a checkpoint may take longer than a step."""


class Guard:
    """Watches the step logs of a running job."""

    def __init__(self, steps: Path, limit_s: float, expected: bool = False) -> None:
        """`expected`: steps will come; else a job without any step log is of a stage that takes none."""
        self.steps, self.limit_s, self.expected = steps, limit_s, expected
        self.running_since: float | None = None

    def hangs(self, state: str) -> bool:
        """Whether the job has been running for longer than the limit without writing a step.

        Stages that write no step log never hang in this sense. A job that waits or starts again starts its time anew,
        and has `STARTUP_S` for its first step.
        """
        if state != "RUNNING":
            self.running_since = None
            return False
        now = time.time()
        self.running_since = self.running_since or now
        files = list(self.steps.glob("*.jsonl")) if self.steps.is_dir() else []
        if not self.limit_s or not (files or self.expected):
            return False
        latest = max((path.stat().st_mtime for path in files), default=0.0)
        started = latest > self.running_since
        if now - max(latest, self.running_since) <= (self.limit_s if started else max(self.limit_s, STARTUP_S)):
            return False
        self.running_since = now  # the next complaint comes after another full time
        return True


# Run on every node of the job. py-spy needs no cooperation of a process, which is the point with one that hangs; not
# even to be paused. srun's own command line names the ranks' program too.
DUMP = """
for pid in $(pgrep -f "submitit.core._submit $1"); do
    case $(cat "/proc/$pid/comm") in srun | sh | bash | slurmstepd | timeout) continue ;; esac
    echo "process $pid"
    timeout 20 "$3" -m brickreel.cluster.flight "$pid" "$4"
    timeout 20 "$2" dump --nonblocking --pid "$pid"
done
"""


ANSWERS_S = 5.0
"""How long the ranks have to write what they remember of their collectives."""


def restart(job_id: str, folder: Path, ranks: int) -> None:
    """Dump stacks and last collectives of every rank of a Slurm job into `folder`, then requeue it."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    logger.info("Slurm job %s takes no steps: dumping the stacks of its ranks to %s and requeueing it", job_id, folder)
    nodes = slurm.ask("squeue", "-h", "-j", job_id, "-o", "%D").stdout.strip() or "1"
    words = [f"--jobid={job_id}", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    words += [f"--output={folder.resolve()}/stacks-{stamp}-%N.txt", "sh", "-c", DUMP, "-"]
    spy = str(Path(sys.executable).with_name("py-spy"))
    prefix = f"flight-{stamp}"
    slurm.ask("srun", *words, re.escape(str(folder.resolve())), spy, sys.executable, str(folder.resolve() / prefix))
    deadline = time.monotonic() + ANSWERS_S
    while len(records := flight.read(folder, prefix)) < ranks and time.monotonic() < deadline:
        time.sleep(0.2)
    if told := flight.suspects(records, ranks):
        logger.info("Slurm job %s: %s", job_id, told)
    if not slurm.requeue(job_id):
        logger.info("Slurm would not requeue job %s", job_id)
