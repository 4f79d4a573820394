"""What films cost on their way to clips: 1280x720, 60 s, 12 scenes, in CPU seconds, all in one run.

Limits: `analyze` without the network at most 1.5 times plain decoding with PyAV; film to written clips at least 4 times
faster than PySceneDetect's AdaptiveDetector with one ffmpeg call per clip at x264's defaults, frame counts exact, SSIM
to the film at least 0.98, at most twice the baseline's bytes; at most 1 GiB of memory.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from _limits import at_least, at_most, judge
from brickreel import files, tables
from brickreel.films import demo, ffmpeg, signals, video
from brickreel.stages import curate, cut

SCENES, FPS = 12, 24


def main() -> None:
    """Measure and write results/bench/decode.json."""
    target = Path("results/bench/decode.json").resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        # In a process of its own: a child's peak counts what its parent held when it was started.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            film = pool.submit(sixty_seconds, Path(folder)).result()
        result: dict[str, Any] = {"brickreel": chain(film)}  # first, while this process is small
        result["film"] = {"frames": decode(film, 1), "bytes": film.stat().st_size}
        for threads in (1, 2):
            result[f"{threads} threads"] = {
                "decode": seconds(lambda threads=threads: decode(film, threads)),
                "analyze": seconds(lambda threads=threads: signals.read(film, network="off", threads=threads)),
            }
        result["network at candidates"] = seconds(lambda: signals.read(film, network="candidates"))
        result["baseline"] = baseline(film)
    one = result["1 threads"]
    ours, theirs = result["brickreel"], result["baseline"]
    result["analyze over decode"] = one["analyze"]["cpu_s"] / one["decode"]["cpu_s"]
    result["times faster"] = theirs["cpu_s"] / ours["cpu_s"]
    result["times the bytes"] = ours["bytes"] / theirs["bytes"]
    print(f"decode {one['decode']['cpu_s']:.1f} s, analyze {one['analyze']['cpu_s']:.1f} s of CPU")
    print(f"film to clips: {ours['cpu_s']:.1f} s against {theirs['cpu_s']:.1f} s of CPU")
    limits = [
        at_most("analyze over decode", result["analyze over decode"], 1.5),
        at_least("times faster", result["times faster"], 4),
        at_least("ssim", ours["ssim"], 0.98),
        at_most("times the bytes", result["times the bytes"], 2),
        at_least("frames_exact", ours["frames_exact"], 1),
        at_most("memory_gib", ours["memory_gib"], 1),
    ]
    judge(target, result, limits)


def sixty_seconds(folder: Path) -> Path:
    """Twelve scenes of the demo's at 1280x720, 60 seconds in all, with hard cuts."""
    truth = demo.render(folder / "demo", films=[0, 1], scale=2.0, with_broken=False)
    pieces: list[list[Any]] = []
    for film in truth["films"]:
        frames = [frame for _, frame in video.stream(folder / "demo" / film["path"])]
        scenes = [shot for shot in film["shots"] if shot["kind"] == "scene"]
        pieces += [frames[shot["start"] : shot["end"]] for shot in scenes]
        del frames
    each = 60 * FPS // SCENES
    path = folder / "film.mp4"
    # A scene that is too short goes on backwards, as a pendulum does: no frame is lost, no cut added.
    shown = (frame for piece in pieces[:SCENES] for frame in pendulum(piece, each))
    video.write(path, shown, FPS, crf=20)
    return path


def pendulum(frames: list[Any], count: int) -> list[Any]:
    """`count` frames, forwards and backwards."""
    there_and_back = frames + frames[::-1]
    return [there_and_back[n % len(there_and_back)] for n in range(count)]


def decode(path: Path, threads: int) -> int:
    """Plain decoding."""
    with av.open(str(path)) as container:
        source = container.streams.video[0]
        source.codec_context.thread_count = threads
        source.thread_type = "AUTO"
        return sum(1 for _ in container.decode(source))


def seconds(work: Callable[[], Any]) -> dict[str, float]:
    """Wall and CPU seconds of this process, the better of two runs."""
    best = {"cpu_s": float("inf"), "wall_s": float("inf")}
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        best = {"cpu_s": min(best["cpu_s"], cpu), "wall_s": min(best["wall_s"], wall)}
    return best


def chain(film: Path) -> dict[str, Any]:
    """ingest, analyze, curate and cut as a user runs them, in processes of their own."""
    files.write_text("sources.csv", f"path,licence\n{film},CC0\n")
    files.write_text("c.yaml", "curate: {heldout_share: 0}\ncut: {crf: 22, preset: superfast}\n")
    used = [stage_usage(stage) for stage in ("ingest", "analyze", "curate", "cut")]
    rows = [row for row in tables.read("cut_index", cut.OUTPUT).to_pylist() if row["kind"] == "clip"]
    clips = {row["clip_id"]: row for row in tables.read("clips", curate.OUTPUT).to_pylist()}
    exact, likeness = check(film, rows, clips)
    return {
        "cpu_s": sum(usage.ru_utime + usage.ru_stime for usage in used),
        "clips": len(rows),
        "bytes": sum(Path(row["path"]).stat().st_size for row in rows),
        "frames_exact": exact,
        "ssim": likeness,
        "memory_gib": max(usage.ru_maxrss for usage in used) / 2**20,
    }


def stage_usage(stage: str) -> resource.struct_rusage:
    """Run a stage to its end; what it and its own children used."""
    process = subprocess.Popen([sys.executable, "-m", "brickreel", stage, "--config", "c.yaml"], stderr=subprocess.PIPE)
    said = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, said.decode(errors="replace")
    return usage


def children() -> float:
    """CPU seconds of all finished child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def check(film: Path, rows: list[dict[str, Any]], clips: dict[str, Any]) -> tuple[bool, float]:
    """Whether every clip decodes to the frames it names, and the mean SSIM of every tenth frame to the film."""
    places = {}
    exact = True
    for row in rows:
        frames = video.read(row["path"])
        clip = clips[row["clip_id"]]
        exact &= len(frames) == row["frames"] == clip["end_frame"] - clip["start_frame"]
        for n in range(0, len(frames), 10):
            places[clip["start_frame"] + n] = cv2.resize(frames[n], (1280, 720))
    values = [ssim(frame, places[number]) for number, (_, frame) in enumerate(video.stream(film)) if number in places]
    return bool(exact), float(np.mean(values))


def ssim(first: Any, second: Any) -> float:
    """Structural similarity of luma (Z. Wang et al., 2004), with Gaussian windows of sigma 1.5."""
    a, b = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32) for picture in (first, second))

    def mean(picture: Any) -> Any:
        return cv2.GaussianBlur(picture, (11, 11), 1.5)

    ma, mb = mean(a), mean(b)
    va, vb, both = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    top = (2 * ma * mb + 6.5025) * (2 * both + 58.5225)
    return float((top / ((ma * ma + mb * mb + 6.5025) * (va + vb + 58.5225))).mean())


def baseline(film: Path) -> dict[str, Any]:
    """PySceneDetect's AdaptiveDetector as the origin called it, then one ffmpeg call per scene, x264's defaults."""
    from scenedetect import AdaptiveDetector, detect

    cpu = time.process_time()
    scenes = detect(str(film), AdaptiveDetector(3.0))
    detecting = time.process_time() - cpu
    before, size = children(), 0
    for number, (start, end) in enumerate(scenes):
        out = f"baseline-{number}.mp4"
        span = ["-ss", str(start.get_seconds()), "-to", str(end.get_seconds()), "-i", str(film)]
        subprocess.run([ffmpeg.program(), "-loglevel", "error", *span, "-threads", "1", "-y", out], check=True)
        size += Path(out).stat().st_size
    cutting = children() - before
    return {"cpu_s": detecting + cutting, "detect_s": detecting, "cut_s": cutting, "clips": len(scenes), "bytes": size}


if __name__ == "__main__":
    main()
