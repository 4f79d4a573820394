"""A run that no longer takes steps: stacks and collectives of all ranks are kept, and the job starts anew."""

import ctypes
import logging
import re
import sys
import time
from contextlib import suppress
from pathlib import Path

from brickreel import files
from brickreel.cluster import flight, slurm

logger = logging.getLogger("brickreel")


STARTUP_S = 900.0
"""An attempt without its first step: reading the model, the data and a checkpoint may take longer than a step."""
FINAL_S = 6 * 3600.0
"""After the last step: as long as the ranks of `train` wait for the final weights, which are written without a step."""
KEEP_S = 600.0
"""For a look at the queue and for keeping what the ranks do."""


def outlasting_s(limit_s: float) -> float:
    """How long ranks wait for each other in a collective: until a guard with this limit has kept what they do.

    What NCCL ends earlier leaves nothing to look at. Without a guard (`sbatch`, `torchrun`) it is all that ends a hang.
    """
    return max(limit_s, STARTUP_S) + KEEP_S


class Guard:
    """Watches the step logs of a running job."""

    def __init__(self, steps: Path, limit_s: float, expected: bool = False) -> None:
        """`expected`: steps will come; else a job without any step log is of a stage that takes none."""
        self.steps, self.limit_s, self.expected = steps, limit_s, expected
        self.running_since: float | None = None

    def hangs(self, state: str) -> bool:
        """Whether the job has been running for longer than the limit without writing a step.

        Stages that write no step log never hang in this sense. A job that waits or starts again starts its time anew,
        and has `STARTUP_S` for its first step, and `FINAL_S` for the final weights.
        """
        if state != "RUNNING":
            self.running_since = None
            return False
        now = time.time()
        self.running_since = self.running_since or now
        logs = list(self.steps.glob("*.jsonl")) if self.steps.is_dir() else []
        if not self.limit_s or not (logs or self.expected):
            return False
        latest = max((path.stat().st_mtime for path in logs), default=0.0)
        started = latest > self.running_since
        quiet = now - max(latest, self.running_since)
        if quiet <= (self.limit_s if started else max(self.limit_s, STARTUP_S)):
            return False
        if quiet <= FINAL_S and self._took_all_steps():
            return False
        self.running_since = now  # the next complaint comes after another full time
        return True

    def _took_all_steps(self) -> bool:
        """Whether there is a checkpoint of the run's last step."""
        run = self.steps.parent
        try:
            last = files.read_json(run / "settings.json")["max_steps"]
        except (OSError, ValueError, KeyError):
            return False
        names = [path.name.removeprefix("step-") for path in run.glob("checkpoints/step-*")]
        return any(name.isdecimal() and int(name) >= last for name in names)


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


PR_SET_PTRACER = 0x59616D61
PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)


def let_stacks_be_read() -> None:
    """Let py-spy, which is not this process's parent, read its stacks. Call in every rank.

    Under Yama's ptrace_scope 1, Ubuntu's default, a process must allow that (prctl(2)); elsewhere nothing is needed.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)


ANSWERS_S = 5.0
"""How long the ranks have to write what they remember of their collectives."""


def restart(job_id: str, folder: Path, tasks_per_node: int, max_requeues: int) -> None:
    """Dump stacks and last collectives of every rank of a Slurm job into `folder`, then requeue it.

    Raises ValueError, with the job cancelled, when it was put back `max_requeues` times already: its batch script,
    which counts otherwise, does not live to see the end of an attempt that hangs.
    """
    logger.info("Slurm job %s takes no steps: dumping the stacks of its ranks to %s", job_id, folder)
    times = slurm.restarts(job_id)  # of the attempt that hangs: the job may start anew while stacks are dumped
    _dump(job_id, folder, tasks_per_node)
    if times is None:
        logger.info("Slurm does not say how often job %s was put back: it is left as it is for now", job_id)
    elif times >= max_requeues:
        slurm.cancel(job_id)
        raise ValueError(
            f"Slurm job {job_id} takes no steps, and it was put back {times} times already (BRICKREEL_MAX_REQUEUES is"
            f" {max_requeues}): it was cancelled; the stacks of its ranks are in {folder}"
        )
    elif slurm.requeue(job_id):
        logger.info("Slurm job %s is put back into the queue", job_id)
    else:
        logger.info("Slurm would not requeue job %s", job_id)


def _dump(job_id: str, folder: Path, tasks_per_node: int) -> None:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    nodes = slurm.node_count(job_id) or 1  # after a loss it may run on fewer than were asked for
    ranks = nodes * tasks_per_node
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
