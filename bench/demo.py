"""What a newcomer waits for: the demo's whole chain, its share of training, its memory; and a dry run once it is warm.

Limits: 10 minutes on two cores in 4 GiB, of it training at most half; `snakemake -n` in 3 s. The films are drawn and
the chain is run in a new folder by the commands of `make demo`; setting up `.venv` is not part of it.
Writes results/bench/demo.json.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from _limits import at_most, judge
from brickreel import files

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {"chain_s": 600.0, "training_share": 0.5, "memory_gib": 4.0, "dry_run_s": 3.0}
CORES = 2


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--work", type=Path, help="a new folder to work in and to keep")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (chosen.work or Path(temporary)).resolve()
        name = str(folder)
        films_s, _ = timed([sys.executable, "-m", "brickreel", "demo-films", "--out", str(folder / "films")])
        snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", str(CORES)]
        snakemake += ["--configfile", str(ROOT / "config/demo.yaml"), "--directory", name, "--quiet", "all"]
        graph_s, memory = timed(snakemake)
        seconds = sorted(timed([*snakemake, "--dry-run"])[0] for _ in range(3))
        stages = {
            row["stage"]: row["elapsed_s"] for row in files.read_json(folder / "results/report/summary.json")["stages"]
        }
    whole = films_s + graph_s
    rows: dict[str, Any] = {
        "chain_s": whole,
        "training_share": stages["train"] / whole,
        "memory_gib": memory,
        "dry_run_s": seconds[len(seconds) // 2],
    }
    limits = [at_most(name, value, LIMITS[name]) for name, value in rows.items()]
    judge("results/bench/demo.json", rows | {"films_s": films_s, "stages_s": stages}, limits)


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds that a command takes, which must end well, and the most memory that its processes held together, GiB."""
    began, most = time.perf_counter(), 0
    with tempfile.TemporaryFile() as output:
        process = psutil.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        while process.poll() is None:
            most = max(most, _held(process))
            time.sleep(0.5)
        output.seek(0)
        assert process.returncode == 0, output.read().decode(errors="replace")[-3000:]
    return time.perf_counter() - began, most / 2**30


def _held(process: psutil.Process) -> int:
    """Bytes of a process and its children, shared pages divided among those that share them."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


if __name__ == "__main__":
    main()
