"""Starting and coming back: from the launcher to the first step, Snakemake over 100,000 films, recovery from losses.

Limits: the first step 5 s after the launcher started, imports excepted; `snakemake -n` and a run with nothing to do 5 s
for a project of 100,000 films, 3 s for a dry run of the demo; 60 s from the loss of a node (the time in which Slurm
notices it excepted) or of a process to the next step, with no more than one checkpoint interval done again. The parts
that need Slurm start the tests' cluster, four nodes on this machine; without Slurm they are not measured.
"""

import csv
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import yaml

from _limits import at_most, judge
from slurm.site import ROOT, Cluster, Site, missing_programs, running_cluster, wait
from training import project

FILMS, SHARDS, REPEATS = 100_000, 16, 3
LIMITS_S = {"start": 5.0, "films": 5.0, "demo": 3.0, "recovery": 60.0}
CHECKPOINT_EVERY = 50  # steps of about a tenth of a second
IMPORT = re.compile(r"import time: +(\d+) \| +\d+ \| +(\S+)")


def main() -> None:
    """Measure, print, and write results/bench/launch.json."""
    rows = graph()
    missing = missing_programs()
    if missing:
        print(f"Slurm is not installed here ({', '.join(missing)}): starting and recovering were not measured")
    else:
        rows |= on_slurm()
    limits = [at_most(f"{name}, s", one["seconds"], one.pop("limit_s")) for name, one in rows.items()]
    # A signalled run saves before it goes.
    redone = {name: 0 if lose is lose_by_signal else CHECKPOINT_EVERY for name, lose in LOSSES.items() if name in rows}
    limits += [at_most(f"{name}: steps_redone", rows[name]["steps_redone"], most) for name, most in redone.items()]
    for name, one in rows.items():
        about = ", ".join(f"{key} {value:.3g}" for key, value in one.items() if key != "seconds")
        print(f"{name:44s} {one['seconds']:6.1f} s   {about}")
    # Wall times of four ranks on a few cores: beside other work they say little.
    print(f"load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores")
    settings = {"cores": os.cpu_count(), "load_average": os.getloadavg()[0], "films": FILMS, "not_installed": missing}
    judge("results/bench/launch.json", settings | {"rows": rows}, limits)


def row(seconds: float, limit: str, **about: float) -> dict[str, Any]:
    """A figure beside its limit."""
    return {"seconds": seconds, "limit_s": LIMITS_S[limit], **about}


# Snakemake


def graph() -> dict[str, dict[str, Any]]:
    """Dry runs, and a run with nothing to do."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "many"
        many(folder)
        words = ("--configfile", str(folder / "settings.yaml"), "--directory", str(folder))
        snakemake(*words, "-n")  # warms the file cache
        found = {f"snakemake -n, {FILMS:,} films, nothing done yet": row(median_s(*words, "-n"), "films")}
        finish(folder, words)
        found |= {
            f"snakemake -n, {FILMS:,} films, all done": row(median_s(*words, "-n"), "films"),
            f"snakemake, {FILMS:,} films, nothing to do": row(median_s(*words), "films"),
        }
        demo = ("--configfile", str(ROOT / "config/demo.yaml"), "--directory", str(Path(place) / "demo"))
        (Path(place) / "demo/films").mkdir(parents=True)
        (Path(place) / "demo/films/sources.csv").write_text("path,licence\nfilm.mp4,CC0-1.0\n")
        snakemake(*demo, "-n")
        return found | {"snakemake -n, the demo": row(median_s(*demo, "-n"), "demo")}


def many(folder: Path) -> None:
    """A project of 100,000 films, whose files are empty: Snakemake looks at names and times only."""
    films = folder / "films"
    films.mkdir(parents=True)
    with (films / "sources.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("path", "title", "licence"))
        for number in range(FILMS):
            place = films / f"{number % 100:02d}"
            place.mkdir(exist_ok=True)
            (place / f"{number}.mp4").touch()
            table.writerow((f"{number % 100:02d}/{number}.mp4", f"film {number}", "CC0-1.0"))
    settings = {
        "project": {"name": "many", "shards": SHARDS, "runs": ["one"]},
        "ingest": {"sources": "films/sources.csv"},
        "runs": {"one": {"max_steps": 10}},
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))


def finish(folder: Path, words: tuple[str, ...]) -> None:
    """Make every output that a dry run announces, as an empty file, and let Snakemake take note of them."""
    for line in re.findall(r"^ +output: (.+)$", snakemake(*words, "-n"), re.MULTILINE):
        for name in line.split(", "):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    clips = folder / "results/cut/clips"
    clips.mkdir(parents=True)
    for number in range(FILMS):
        (clips / f"{number:016x}.mp4").touch()
    snakemake(*words, "--touch")
    told = snakemake(*words, "-n")
    assert "Nothing to be done" in told, told


def snakemake(*words: str) -> str:
    """What Snakemake prints."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def median_s(*words: str) -> float:
    """Wall time of a call of Snakemake."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        snakemake(*words)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


# Slurm


def on_slurm() -> dict[str, dict[str, Any]]:
    """Everything that needs the cluster."""
    with running_cluster() as cluster, tempfile.TemporaryDirectory() as place:
        starts = [started(cluster, Path(place) / f"start{number}") for number in range(REPEATS)]
        found = {"launcher to first step, beyond imports": sorted(starts, key=lambda one: one["seconds"])[REPEATS // 2]}
        for name, lose in LOSSES.items():
            found[name] = recovered(cluster, Path(place) / name.replace(" ", "-"), lose)
    return found


def started(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """From the start of the launcher to the end of the first step of two nodes with two ranks each.

    Python itself says how long the launcher and each rank spend on imports.
    """
    site = Site(cluster, folder)
    project.make(site.folder, max_steps=3)
    begun = time.time()
    launcher = site.launch("train", PYTHONPROFILEIMPORTTIME="1")
    output = launcher.communicate(timeout=240)[0]
    assert launcher.returncode == 0, output[-4000:]
    first = min(one["time_s"] + one["step_s"] for one in site.steps() if one["step"] == 1 and one["rank"] == 0)
    job = site.cluster.ask("sacct", "-nPX", "-j", site.job_id(), "-o", "Submit,Start")
    submitted, running = (time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S")) for text in job.split("|"))
    ranks = max(import_s(path.read_text()) for path in (site.folder / "logs/train/small").glob("*_log.out"))
    own = import_s(output.partition(" submitted Slurm job ")[0])
    cluster.repair()
    return row(
        first - begun - own - ranks,
        "start",
        all_s=first - begun,
        imports_of_launcher_s=own,
        imports_of_ranks_s=ranks,
        in_the_queue_s=running - submitted,
    )


def import_s(text: str) -> float:
    """Seconds of imports that `-X importtime` wrote; a module counts once: a rank's helper processes write too."""
    own: dict[str, int] = {}
    for microseconds, module in IMPORT.findall(text):
        own.setdefault(module, int(microseconds))
    return sum(own.values()) * 1e-6


def recovered(
    cluster: Cluster, folder: Path, lose: Callable[[Site, str], tuple[float, dict[str, float]]]
) -> dict[str, Any]:
    """From a loss to the end of the next attempt's first step, and how many steps were done again."""
    site = Site(cluster, folder)
    project.make(site.folder, max_steps=100_000, checkpoint_every=CHECKPOINT_EVERY, gauge_every=1000)
    launcher = site.launch("train", 2, 2, "--min-nodes", "1")
    # What it prints must go somewhere: a full pipe would stop it.
    threading.Thread(target=launcher.communicate, daemon=True).start()
    job_id = site.job_id()
    wait("a checkpoint", 180, lambda: len(site.checkpoints()) > 1)
    time.sleep(random.uniform(0, CHECKPOINT_EVERY * statistics.median(one["step_s"] for one in site.steps())))
    noticed, about = lose(site, job_id)
    wait("a step of the next attempt", 240, lambda: [one for one in site.steps() if one["attempt"] == 1])
    rows = site.steps()
    again = min((one["step"], one["time_s"] + one["step_s"]) for one in rows if one["attempt"] == 1)
    last = max(one["step"] for one in rows if one["attempt"] == 0)
    cluster.ask("scancel", job_id)
    wait("an end of the launcher", 60, lambda: launcher.poll() is not None)
    if about:
        cluster.do("start-node", "gpu2")
    cluster.repair()
    about |= {"steps_redone": max(0, last - again[0] + 1), "checkpoint_every": CHECKPOINT_EVERY}
    return row(again[1] - noticed, "recovery", **about)


def lose_node(site: Site, job_id: str) -> tuple[float, dict[str, float]]:
    """Pull the plug of a node; the time counts from when Slurm has noticed."""
    begun = time.time()
    site.cluster.do("kill-node", "gpu2")
    wait("Slurm's noticing", 120, lambda: site.state(job_id) != "RUNNING")
    return time.time(), {"noticed_after_s": time.time() - begun}


def lose_rank(site: Site, job_id: str) -> tuple[float, dict[str, float]]:
    """Kill one rank."""
    os.kill(site.rank_pids(job_id, "gpu2")[0], signal.SIGKILL)
    return time.time(), {}


def lose_by_signal(site: Site, job_id: str) -> tuple[float, dict[str, float]]:
    """The signal that comes before a preemption or the end of the job's time."""
    site.cluster.ask("scancel", "--signal=USR2", job_id)
    return time.time(), {}


LOSSES = {
    "lost node to next step": lose_node,
    "killed rank to next step": lose_rank,
    "signalled preemption to next step": lose_by_signal,
}


if __name__ == "__main__":
    main()
