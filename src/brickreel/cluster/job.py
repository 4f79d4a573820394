"""A launched job from its start to its end: inline, on this machine, or on Slurm over requeues and re-attachment."""

import logging
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from brickreel.cluster import exits, hang, job_record, slurm, unfit
from brickreel.cluster.beside import SampleJobs
from brickreel.cluster.follow import Follower
from brickreel.cluster.local import LocalRanks
from brickreel.cluster.site_env import Site
from brickreel.cluster.submission import Resources, StageTask, check_folder, log_path, submit

logger = logging.getLogger("brickreel")

TICK_S = 0.5
SETTLED_S = 10.0
"""A reason for waiting counts once it has stood so long: Slurm's first word may be another one."""
NODES_RETURN_S = 300.0
"""Nodes that are down for a moment only, as while they start again, are back by then."""
UNKNOWN_END_S = 180.0
"""How long the launcher asks how a job ended that is no longer in the queue."""


class Stopped(BaseException):
    """The launcher itself was told to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


@dataclass(frozen=True)
class Job:
    """What is launched."""

    stage: str
    scope: dict[str, str]
    part: str
    settings: tuple[str, ...]
    resources: Resources
    log_file: Path | None
    fingerprint: str

    @property
    def name(self) -> str:
        """Its name in the queue."""
        return f"{self.stage}-{self.part}"

    @property
    def folder(self) -> Path:
        """Where the output of every rank is kept."""
        return Path("logs") / self.stage / self.part

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.resources.nodes * self.resources.tasks_per_node

    def record(self, **fields: Any) -> None:
        """Write to job.json beside the run."""
        job_record.write(self.stage, self.part, **fields)


class Watch:
    """Signals and the parent's life, looked at between two ticks.

    Handlers only take notes: a job must not be lost between its submission and its record. What is ignored already, as
    SIGHUP under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.parent, self.signal = os.getppid(), 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    @property
    def detached(self) -> bool:
        """The terminal was closed or whoever started the launcher was killed: nobody said that the job should end."""
        return self.signal == signal.SIGHUP or os.getppid() != self.parent


def run_inline(job: Job) -> None:
    """Run the stage in this process, whose environment says which rank it is."""
    from brickreel import running

    running.run_stage(job.stage, job.settings, **job.scope)


def run_local(job: Job, lock: int) -> None:
    """Run the ranks as processes of this machine; they end when the launcher does, however it ends.

    `lock`: the open launch lock, which the ranks inherit, so that no other launcher starts while one of them lives.
    """
    if job.resources.nodes != 1:
        raise ValueError(f"the executor local is one machine: nodes must be 1, not {job.resources.nodes}")
    scope = [word for key, value in job.scope.items() for word in (f"--{key}", value)]
    config = [word for name in job.settings for word in ("--config", name)]
    logs = [job.folder / f"local_{rank}.out" for rank in range(job.ranks)]
    watch = Watch()
    ranks = LocalRanks([job.stage, *scope, *config], logs, lock)
    job.record(executor="local", job_id=None, pid=os.getpid(), ranks=job.ranks, settings=job.fingerprint)
    follower = Follower(logs, job.log_file)
    try:
        while (status := ranks.status()) is None:
            if watch.signal or watch.detached:
                raise Stopped(watch.signal or signal.SIGHUP)
            follower.pump()
            time.sleep(TICK_S / 5)
    finally:
        ranks.end()
        follower.pump()
    if status == exits.INTERRUPTED:
        raise exits.Interrupted(f"{job.stage} stopped on request; the same command continues")
    if status:
        _tell_last_words(job, follower)
        raise ValueError(f"{job.stage} failed with status {status}; every rank's output is in {job.folder}")


def run_slurm(job: Job, site: Site) -> None:
    """Submit the job, or find it again, and follow it to its end."""
    if not slurm.available():
        raise ValueError("Slurm's programs (sbatch, squeue, ...) are not installed here: use `--executor local`")
    check_folder()
    if re.search(r",|^all$", os.environ.get("SLURM_CLUSTERS", "")):
        raise ValueError("SLURM_CLUSTERS names several clusters, among which a job would not be found: set it to one")
    watch = Watch()
    job_id = _patiently(find, job, watch)
    again = job_id is not None
    if job_id is None:
        job = _keeping_away(job)
        task = StageTask(job.stage, job.settings, job.scope)
        job_id = submit(task, replace(job.resources, requeues=site.max_requeues), job.name, job.folder)
    job.record(executor="slurm", job_id=job_id, pid=os.getpid(), ranks=job.ranks, settings=job.fingerprint, state="")
    logger.info("%s Slurm job %s for %s", "following" if again else "submitted", job_id, job.name)
    follower = Follower([log_path(job.folder, job_id, rank) for rank in range(job.ranks)], job.log_file, skip=again)
    try:
        end = follow(job, job_id, site, watch, follower)
    except Stopped as stopped:
        if stopped.signal == signal.SIGHUP or site.on_interrupt == "leave":
            logger.info("Slurm job %s runs on; the same command follows it again", job_id)
        else:
            slurm.cancel(job_id)  # before any printing: the terminal may be closed
            job.record(state="CANCELLED")
            logger.info("cancelled Slurm job %s", job_id)
        raise
    follower.pump()
    job.record(state=end.state)
    if end.state != "COMPLETED":
        _tell_last_words(job, follower)
        raise ValueError(_verdict(job_id) or f"{slurm.explain_end(job_id, end)}; see {job.folder}")


def _keeping_away(job: Job) -> Job:
    """The job, away from the nodes in which the run's checks found a fault."""
    faulty = unfit.leave_out(job.stage, job.part, job.settings, job.resources)
    return replace(job, resources=replace(job.resources, exclude=(*job.resources.exclude, *faulty)))


def _patiently(look: Callable[[Job], str | None], job: Job, watch: Watch) -> str | None:
    """Ask until Slurm answers: a controller that is away must not look like a job that is gone."""
    told = ""
    while True:
        try:
            return look(job)
        except ConnectionError as error:
            told = _tell(told, f"Slurm does not answer ({error}): waiting, until Ctrl-C")
        if watch.detached or watch.signal:
            raise Stopped(watch.signal or signal.SIGHUP)
        time.sleep(TICK_S)


def find(job: Job) -> str | None:
    """The id of this run's job if Slurm still has it.

    Raises ValueError when that one has other settings, ConnectionError when Slurm does not answer.
    """
    record = job_record.read(job.stage, job.part)
    here = os.path.realpath(".")
    ids = [job_id for job_id, folder in slurm.user_jobs(job.name) if os.path.realpath(folder) == here]
    if not ids:
        return None
    job_id = str(record.get("job_id")) if str(record.get("job_id")) in ids else ids[-1]
    if record.get("job_id") == job_id and record.get("settings") != job.fingerprint:
        raise ValueError(
            f"Slurm job {job_id} of this run is still there, with other settings: wait for it, or `scancel {job_id}`"
        )
    return job_id


def follow(job: Job, job_id: str, site: Site, watch: Watch, follower: Follower) -> slurm.Ended:
    """Wait for the end of a job over all its attempts."""
    told, told_since, gone_since, next_look = "", 0.0, None, 0.0
    places = Places(job, job_id)
    guard = hang.Guard(Path("results") / job.stage / job.part / "steps", site.hang_s, job.stage == "train")
    samples = SampleJobs.of(job.stage, job.scope, job.settings, job.resources)
    while True:
        if watch.detached:
            raise Stopped(signal.SIGHUP)
        if watch.signal:
            raise Stopped(watch.signal)
        follower.pump()
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + site.poll_s
            try:
                queued = slurm.queued(job_id)
            except ConnectionError as error:
                told = _tell(told, f"Slurm does not answer ({error}): waiting")
                continue
            if queued is None:
                gone_since = gone_since or time.monotonic()
                end = slurm.ended(job_id)
                if end:
                    return end
                if time.monotonic() - gone_since > UNKNOWN_END_S:
                    slurm.cancel(job_id)  # should it live all the same, the next launch must not run beside it
                    return slurm.Ended("gone, and Slurm does not know how it ended", "unknown")
            else:
                gone_since = None
                news = _news(job_id, queued)
                told_since = told_since if news == told else time.monotonic()
                told = _tell(told, news)
                _refuse_endless_wait(job_id, queued, time.monotonic() - told_since)
                places.look(queued)
                if samples:
                    samples.look()
                if guard.hangs(queued.state):
                    hang.restart(job_id, job.folder, job.resources.tasks_per_node, site.max_requeues)
        time.sleep(TICK_S)


def _news(job_id: str, queued: slurm.Queued) -> str:
    where = f" on {queued.nodes}" if queued.nodes else ""
    why = f" ({queued.reason})" if queued.reason not in ("None", "") else ""
    advice = slurm.explain_wait(job_id, queued)
    return f"Slurm job {job_id} is {queued.state.lower()}{where}{why}" + (f": {advice}" if advice else "")


def _tell(told: str, news: str) -> str:
    if news != told:
        logger.info("%s", news)
    return news


class Places:
    """Where a job ran last, and whether it may go on with fewer nodes: only when it has lost one of those.

    Where it merely waits its turn, it waits for as many as were asked for.
    """

    def __init__(self, job: Job, job_id: str) -> None:
        self.job, self.job_id = job, job_id
        # What an earlier launcher saw of the same job.
        self.last = str(job_record.read(job.stage, job.part).get("places", {}).get(job_id, ""))
        self.allowed = False

    def look(self, queued: slurm.Queued) -> None:
        """Take note of where the job runs; let it go on with fewer nodes when one of them is down."""
        asked = self.job.resources
        if queued.state == "RUNNING" and queued.nodes:
            if queued.nodes != self.last:
                self.last = queued.nodes
                self.job.record(places={self.job_id: self.last})
            self.allowed = False
        elif self.last and not self.allowed and 0 < asked.min_nodes < asked.nodes and _waits_for_nodes(queued):
            lost = slurm.out_of_order(self.last)
            if lost:
                self.allowed = True  # asked once: what Slurm refuses now, it refuses at the next look too
                self._allow_fewer(", ".join(lost))

    def _allow_fewer(self, lost: str) -> None:
        asked = self.job.resources
        size = (asked.min_nodes, asked.nodes, asked.tasks_per_node, asked.cpus_per_task)
        if slurm.allow_fewer_nodes(self.job_id, *size):
            logger.info("Slurm job %s lost %s and may go on with %d nodes", self.job_id, lost, asked.min_nodes)


def _waits_for_nodes(queued: slurm.Queued) -> bool:
    for_nodes = queued.reason.startswith(("ReqNodeNotAvail", "Resources", "Nodes"))
    return queued.state == "PENDING" and (for_nodes or bool(slurm.starts_when_nodes_return(queued)))


def _refuse_endless_wait(job_id: str, queued: slurm.Queued, waited_s: float) -> None:
    advice = slurm.never_starts(queued) if waited_s >= SETTLED_S else None
    if waited_s >= NODES_RETURN_S and slurm.starts_when_nodes_return(queued) and slurm.restarts(job_id) == 0:
        advice = slurm.starts_when_nodes_return(queued)  # a job that has run before does fit its partition
    if advice:
        slurm.cancel(job_id)
        raise ValueError(f"Slurm job {job_id} can never start ({queued.reason}): {advice}; it was cancelled")


def _verdict(job_id: str) -> str | None:
    found = sorted(Path("logs/verdicts").glob(f"{job_id}-*"), key=lambda path: path.stat().st_mtime)
    return found[-1].read_text(encoding="utf-8").strip() if found else None


def _tell_last_words(job: Job, follower: Follower) -> None:
    words = follower.last_words()
    if words:
        logger.info("the last lines of the ranks:\n%s", words)
