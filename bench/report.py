"""How long the report takes, how large its page is and how soon it is painted: 32 GPUs x 4 h, and 512 GPUs x 24 h.

Limits: 2 s of CPU, 1 MB and 150 ms to first paint for the first; 60 s, 2 GiB and 3 MB for the second.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from _limits import at_most, judge
from telemetry import fleet

CASES = {
    "32 GPUs x 4 h": {"nodes": 4, "hours": 4.0, "step_s": 5.0},
    "512 GPUs x 24 h": {"nodes": 64, "hours": 24.0, "step_s": 10.0},
}
LIMITS = {
    "32 GPUs x 4 h": {"cpu_s": 2.0, "page_mb": 1.0, "paint_ms": 150.0},
    "512 GPUs x 24 h": {"wall_s": 60.0, "memory_gib": 2.0, "page_mb": 3.0},
}


def main() -> None:
    """Measure both cases and write results/bench/report.json."""
    result = {name: measure(name, **case) for name, case in CASES.items()}
    limits = [
        at_most(f"{name}: {key}", result[name][key], limit)
        for name, own in LIMITS.items()
        for key, limit in own.items()
    ]
    judge("results/bench/report.json", {"cores": os.cpu_count(), "cases": result}, limits)


def measure(name: str, nodes: int, hours: float, step_s: float) -> dict[str, float | None]:
    """One case in a folder of its own."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build(folder, nodes, hours, step_s)
        figures = report(folder)
        figures["paint_ms"] = first_paint_ms(folder / "results/report/index.html")
        empty = folder / "empty.html"
        empty.write_text("<!doctype html><title>empty</title><p>One line.")
        figures["empty_page_paint_ms"] = first_paint_ms(empty)
    for key, value in figures.items():
        print(f"{name:18s} {key:12s} {'not measured' if value is None else f'{value:10.3f}'}")
    return figures


def build(folder: Path, nodes: int, hours: float, step_s: float) -> None:
    """One node is generated; the others have the same recording under their own names."""
    fleet.write_run(folder, nodes=1, hours=hours, step_s=step_s, finished=True)
    place = folder / "logs/telemetry/train/big"
    for number in range(1, nodes):
        os.link(place / "1-node000.parquet", place / f"1-node{number:03d}.parquet")
    steps = folder / "results/train/big/steps"
    count = len((steps / "0-0.jsonl").read_text().splitlines())
    shutil.rmtree(steps)
    import numpy as np

    fleet.write_steps(steps, count, 8 * nodes, step_s, np.random.default_rng(1))
    log = folder / "results/train/big/attempts.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    names = [f"node{number:03d}" for number in range(nodes) for _ in range(8)]
    log.write_text(
        "".join(json.dumps(row | {"world_size": len(names), "nodes": names, "gpus": len(names)}) + "\n" for row in rows)
    )
    fleet.configuration(folder, "big")


def report(folder: Path) -> dict[str, float | None]:
    """`brickreel report` in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    code = (
        "import resource, sys; from brickreel import config; from brickreel.stages import report;"
        "report.run(config.load('config.json'));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    page = folder / "results/report/index.html"
    return {
        "wall_s": time.monotonic() - started,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "memory_gib": int(done.stdout.split()[-1]) / 2**20,
        "page_mb": page.stat().st_size / 1e6,
        "summary_mb": (folder / "results/report/summary.json").stat().st_size / 1e6,
    }


def first_paint_ms(page: Path) -> float | None:
    """Median of five cold loads in headless Chromium; None where there is no Chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        return None
    from playwright.sync_api import sync_playwright

    times = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(5):
            tab = browser.new_page()
            tab.goto(page.as_uri())
            paint = "performance.getEntriesByName('first-contentful-paint')[0]"
            tab.wait_for_function(f"() => {paint} !== undefined")
            times.append(tab.evaluate(f"() => {paint}.startTime"))
            tab.close()
        browser.close()
    return statistics.median(times)


if __name__ == "__main__":
    main()
