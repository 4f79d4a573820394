"""What the recorder costs: CPU of the sampler at 1 Hz with eight GPUs of the mock NVML library, beside a busy stage.

Limit: 1 % of one core. The mock answers at once, so this is the recorder's own share; a real driver adds its own time.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from _limits import at_most, judge
from brickreel.telemetry import recordings
from telemetry import nvml

GPUS, WARM_UP_S, SECONDS = 8, 5.0, 60.0
METRICS = ("util 0 100", "sm 0 80", "tensor 0 40", "dram 0 50", "power 0 600", "mhz 0 1755", "used 0 70", "temp 0 60")


def main() -> None:
    """Measure, print, and write results/bench/recorder.json."""
    with tempfile.TemporaryDirectory() as place:
        figures = measure(Path(place))
    for name, value in figures.items():
        print(f"{name:22s} {value:12.4f}")
    result = {"gpus": GPUS, "period_s": 1.0, "seconds": SECONDS, **figures}
    judge("results/bench/recorder.json", result, [at_most("cpu_pct of one core", figures["cpu_pct"], 1)])


def measure(folder: Path) -> dict[str, float]:
    """CPU over a minute, what was received of what was due, and the size of the record."""
    library = nvml.build(folder)
    script = nvml.script(folder, *(f"{gpu} {metric}" for gpu in range(GPUS) for metric in METRICS))
    path = folder / "1-node.arrow"
    order = {"path": str(path), "pid": os.getpid(), "root": os.getpid(), "period_s": 1.0, "facts": {}}
    sampler = subprocess.Popen(
        [sys.executable, "-m", "brickreel.telemetry.sampler", json.dumps(order)],
        stdin=subprocess.PIPE,
        env=os.environ | {"LD_LIBRARY_PATH": str(library), "NVML_MOCK": str(script)},
    )
    assert sampler.stdin is not None
    time.sleep(WARM_UP_S)
    before, started = cpu_s(sampler.pid), time.monotonic()
    time.sleep(SECONDS)
    used, passed = cpu_s(sampler.pid) - before, time.monotonic() - started
    sampler.stdin.close()
    closing = time.monotonic()
    sampler.wait(30)
    closed_s = time.monotonic() - closing
    done = path.with_suffix(".parquet")
    found = recordings.read(done)
    return {
        "cpu_pct": 100 * used / passed,
        "start_up_cpu_s": before,
        "end_s": closed_s,
        "samples": float(len(found.devices["gpu0"]["time_s"])),
        "samples_due": passed + WARM_UP_S + 1,
        "bytes_per_gpu_hour": done.stat().st_size / GPUS / (passed + WARM_UP_S) * 3600,
        "processes_on_the_node": float(sum(name.isdecimal() for name in os.listdir("/proc"))),
    }


def cpu_s(pid: int) -> float:
    """CPU time of a process so far; /proc's schedstat counts nanoseconds, unlike stat's ticks."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) * 1e-9


if __name__ == "__main__":
    main()
