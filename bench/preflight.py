"""Time of preflight: quick, over 2 local gloo ranks, against its limit of 120 s; and what launching adds to imports."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from brickreel import files

LIMIT_S = 120.0
LAUNCH_LIMIT_S = 5.0
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
    rows = {
        "one rank": {"seconds": inline, "limit_s": LIMIT_S},
        "two ranks, launched": {"seconds": two, "limit_s": LIMIT_S},
        "launcher's own time": {"seconds": launched - inline, "limit_s": LAUNCH_LIMIT_S},
    }
    for label, row in rows.items():
        print(f"{label:22} {row['seconds']:6.1f} s   limit {row['limit_s']:.0f} s")
    files.write_json("results/bench/preflight.json", {"rows": rows, "simulated": True})


if __name__ == "__main__":
    main()
