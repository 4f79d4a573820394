"""Time of preflight: quick, over 2 local gloo ranks, against its limit of 120 s; and what launching adds to imports."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _limits import at_most, judge

CONFIG = {"runs": {"demo": {}}, "preflight": {"disk_mib": 16}}


def seconds(words: list[str], folder: Path) -> float:
    """Wall time of a command that must end well."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure, print, write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(json.dumps(CONFIG))
        stage = ["-m", "brickreel", "preflight", "--run", "demo"]
        seconds(stage, folder)  # warms the file cache
        inline = seconds(stage, folder)
        launched = seconds(["-m", "brickreel", "launch", "preflight", "--run", "demo"], folder)
        two = seconds(["-m", "brickreel", "launch", "preflight", "--run", "demo", "--tasks-per-node", "2"], folder)
    limits = [
        at_most("one rank, s", inline, 120),
        at_most("two ranks, launched, s", two, 120),
        at_most("launcher's own time, s", launched - inline, 5),
    ]
    judge("results/bench/preflight.json", {"simulated": True}, limits)


if __name__ == "__main__":
    main()
