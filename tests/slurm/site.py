"""A project on the test cluster: what a user would type there, and waiting for what comes of it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brickreel import files

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "tests" / "slurm" / "cluster"
NODES = ("cpu1", "cpu2", "gpu1", "gpu2")
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd")
SITE_LINES = "BRICKREEL_POLL_S=1\nBRICKREEL_HANG_S=0\nOMP_NUM_THREADS=1\n"


class Cluster:
    """The running cluster, seen from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def do(self, *words: str) -> None:
        """A command of the cluster script."""
        subprocess.run([SCRIPT, self.folder, *words], check=True)

    @property
    def environment(self) -> dict[str, str]:
        """Where Slurm's programs find this cluster; nothing of a surrounding job."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "BRICKREEL"))}
        path = f"{self.folder}/bin:{ROOT}/.venv/bin:{own['PATH']}"
        return own | {"SLURM_CONF": f"{self.folder}/slurm.conf", "PATH": path}

    def ask(self, *words: str, check: bool = True) -> str:
        """What a client program prints."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0 or not check, f"{' '.join(words)}: {done.stderr}"
        return done.stdout.strip()

    def on_node(self, node: str, *words: str) -> None:
        """Run a program where the node's processes run: with its own mounts, host name and network."""
        pid = (self.folder / "run" / f"slurmd.{node}.pid").read_text().strip()
        words = ("nsenter", "--target", pid, "--mount", "--net", "--uts", *words)
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"

    def repair(self) -> None:
        """No job left, every node idle again, whatever a test did to them."""
        self.ask("scancel", "-u", os.environ.get("USER", "root"), check=False)
        wait("an empty queue", 60, lambda: not self.ask("squeue", "-h"))
        for node in NODES:
            state = self.ask("sinfo", "-hN", "-n", node, "-o", "%t").split()[0].rstrip("*")
            if state.startswith(("down", "drain")):
                self.ask("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        wait("idle nodes", 60, lambda: set(self.ask("sinfo", "-hN", "-o", "%t").split()) == {"idle"})


def missing_programs() -> list[str]:
    """What of Slurm is not installed here."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    return [name for name in PROGRAMS if not shutil.which(name, path=path)]


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster of its own, stopped at the end."""
    # munge wants folders that everybody may pass through, and a short path for its socket: pytest's own are neither.
    above = Path(tempfile.mkdtemp(prefix="brickreel-"))
    above.chmod(0o755)
    cluster = Cluster(above / "cluster")
    started = subprocess.run([SCRIPT, cluster.folder, "start"], capture_output=True, text=True, check=False)
    try:
        assert started.returncode == 0, started.stderr
        yield cluster
    finally:
        subprocess.run([SCRIPT, cluster.folder, "stop"], check=True)
        above.rmdir()


class Site:
    """One project folder."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        folder.mkdir(parents=True)
        shutil.copytree(ROOT / "slurm", folder / "slurm", ignore=shutil.ignore_patterns("*.log"))
        with (folder / "slurm" / "site.env").open("a") as stream:
            stream.write(SITE_LINES)
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start a program in the project's folder, in a process group of its own."""
        process = subprocess.Popen(
            words,
            cwd=self.folder,
            env=self.cluster.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def launch(self, stage: str, nodes: int = 2, tasks: int = 2, *words: str, **environment: str):
        """Start `brickreel launch STAGE` for the run `small` on the partition gpu."""
        return self.start(*self.launch_words(stage, nodes, tasks, *words), **environment)

    def launch_words(self, stage: str, nodes: int = 2, tasks: int = 2, *words: str) -> list[str]:
        """The command line of the launcher."""
        return [
            *(sys.executable, "-m", "brickreel", "launch", stage, "--run", "small", "--config", "config.json"),
            *("--executor", "slurm", "--nodes", str(nodes), "--tasks-per-node", str(tasks), "--partition", "gpu"),
            *("--gres", f"gpu:{tasks}", "--mem-mb", "4000", "--runtime", "20", *words),
        ]

    def run(self, *words: str, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        process = self.start(*words, **environment)
        output = process.communicate(timeout=timeout)[0]
        return subprocess.CompletedProcess(words, process.returncode, output)

    def sbatch(self, script: str, *words: str, options: tuple[str, ...] = ()) -> str:
        """Submit one of the shipped scripts and return the job's id."""
        done = self.run("sbatch", "--parsable", *options, f"slurm/{script}.sbatch", *words)
        assert done.returncode == 0, done.stdout
        return done.stdout.split()[-1]

    def end(self) -> None:
        """End what is still running of this project."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()

    def record(self, stage: str = "train") -> dict:
        """job.json of the run."""
        path = self.folder / "results" / stage / "small" / "job.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def job_id(self, stage: str = "train") -> str:
        """The launched job's id, once there is one."""
        return wait("a submitted job", 60, lambda: self.record(stage).get("job_id"))

    def rank_pids(self, job_id: str, node: str) -> list[int]:
        """Processes of the job's ranks on a node."""
        return self.pids(job_id, node, b"submitit")

    def pids(self, job_id: str, node: str, word: bytes) -> list[int]:
        """Processes of the job on a node with a word in their command line."""
        listed = self.cluster.ask("scontrol", "listpids", job_id, node, check=False)
        pids = [line.split()[0] for line in listed.splitlines()[1:]]
        return [int(pid) for pid in pids if pid.isdecimal() and word in _command_line(pid)]

    def state(self, job_id: str) -> str:
        """The job's state as the controller knows it."""
        answer = self.cluster.ask("scontrol", "-o", "show", "job", job_id)
        return answer.partition("JobState=")[2].split()[0]

    def restarts(self, job_id: str) -> int:
        """How often the job was put back into the queue."""
        answer = self.cluster.ask("scontrol", "-o", "show", "job", job_id)
        return int(answer.partition("Restarts=")[2].split()[0])

    def attempts(self) -> list[dict]:
        """Rows of attempts.jsonl."""
        return self._rows("results/train/small/attempts.jsonl")

    def steps(self) -> list[dict]:
        """Rows of the step logs, in the order of their time."""
        folder = self.folder / "results/train/small/steps"
        rows = [row for path in folder.glob("*.jsonl") for row in files.read_json_lines(path)]
        return sorted(rows, key=lambda row: (row["attempt"], row["step"], row["rank"]))

    def last_step(self) -> int:
        """The highest step that any attempt has taken."""
        return max((row["step"] for row in self.steps()), default=0)

    def checkpoints(self) -> list[str]:
        """Names of finished checkpoints, oldest first."""
        folder = self.folder / "results/train/small/checkpoints"
        return sorted(path.name for path in folder.glob("step-" + "[0-9]" * 8)) if folder.is_dir() else []

    def _rows(self, name: str) -> list[dict]:
        path = self.folder / name
        return files.read_json_lines(path) if path.is_file() else []


def _command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def wait(what: str, seconds: float, condition):
    """Wait until a condition holds and return what it gave."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.2)
    return found


def finish(process: subprocess.Popen[str], seconds: float = 240) -> str:
    """Wait for a program that must end well and return what it printed."""
    output = process.communicate(timeout=seconds)[0]
    assert process.returncode == 0, output
    return output
