"""Captions: what the client costs, how near it comes to a server's own rate, and what pictures and measuring cost.

Against the tests' OpenAI-compatible server in a process of its own. Client: 1,000 clips with three 512-pixel JPEGs each
and a server that answers at once, beside the bare `openai` client with the same bodies, which keeps no ledger; in
processor seconds, so that other work on the machine does not count. Rate: a server of 2 s latency and 64 slots, whose
ideal is 32 clips per second, asked with 64 requests at once and with 80, so that some always wait at the server.
Pictures: three of a 720p clip, with a key frame in every twelve as `cut` and as x264 would compress it, and as `cut`
writes it, whose only key frame is the first. Writes results/bench/captions.json.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from _limits import at_least, at_most, judge
from brickreel import config
from brickreel.captions import client, embedded, pictures, prices
from brickreel.captions import request as requests
from brickreel.captions.asking import Asking
from brickreel.captions.items import Item
from brickreel.captions.ledger import Ledger
from brickreel.captions.request import Request
from brickreel.films import cutting, ffmpeg
from brickreel.films.demo import scenes
from brickreel.films.demo.draw import Renderer
from brickreel.progress import Bar

SERVER = Path(__file__).parent.parent / "tests/captions/server.py"
CLIPS, LATENCY_S, SLOTS = 1000, 2.0, 64
RATE_CLIPS = 1280  # forty seconds at the ideal rate
CLIENT_ROUNDS = 3
FRAMES, KEY_EVERY, ROUNDS, TAKEN = 96, 12, 12, 4
AS_CUT = ("-crf", str(config.Cut().crf), *chain.from_iterable((f"-{k}", v) for k, v in cutting.ENCODING.items()))
CLIPS_OF = {
    "short GOPs, as cut": (*AS_CUT, "-g", str(KEY_EVERY)),
    "short GOPs, x264's defaults": ("-g", str(KEY_EVERY)),
    "one key frame, as cut": AS_CUT,
}


class Server:
    """The captioning server, as a process."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), *options], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout
        self.url = self.process.stdout.readline().strip()

    def stats(self) -> dict[str, Any]:
        """What it was asked and paid."""
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/stats") as answer:
            return dict(json.load(answer))

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


def footage(count: int, height: int, width: int) -> list[np.ndarray]:
    """A scene of the demo's films on twos with a camera's grain, RGB [height, width, 3]."""
    rng = np.random.default_rng(0)
    poses = -(-count // 2)
    scene, renderer = scenes.SCENES["drive"](rng, poses, scenes.SETS[0]), Renderer(width, height)
    camera = scenes.camera_path(scene, rng, poses, "static", 0.0)
    grain = rng.normal(0, 1.0, (height, width, 3))
    shown = []
    for pose in range(poses):
        picture = renderer.picture(scene.parts(pose), camera[pose], scenes.SETS[0]) + np.roll(grain, 7 * pose, axis=1)
        shown += [np.clip(picture, 0, 255).astype(np.uint8)] * 2
    return shown[:count]


def three_jpegs() -> list[bytes]:
    """Pictures as they are sent for one clip."""
    settings = config.Caption()
    side = settings.image_side
    return [pictures.jpeg(picture, settings.jpeg_quality) for picture in footage(3, side * 9 // 16, side)]


def settings_for(url: str, concurrency: int) -> config.Caption:
    """An endpoint that charges, so that the budget is counted."""
    return config.Caption(
        captioner="openai",
        base_url=url,
        model="bench",
        usd_per_million_in=1.0,
        usd_per_million_out=1.0,
        budget_usd=1000.0,
        concurrency=concurrency,
        api_key_env="",
    )


def items(count: int, settings: config.Caption) -> list[Request]:
    """Requests of clips that differ in nothing but their content's hash."""
    return [
        requests.request(
            Item(f"clip{n}", "clip", "", 48, (), False, 24.0, 12.0, content_hash=f"{n:064x}"),
            settings,
        )
        for n in range(count)
    ]


async def through_the_ledger(settings: config.Caption, wanted: list[Request], jpegs: list[bytes]) -> None:
    """The stage's own way, with frames already extracted."""
    with tempfile.TemporaryDirectory() as folder:
        price = prices.price(settings)
        ledger = Ledger(Path(folder), "0/1", settings.budget_usd, frozenset(request.key for request in wanted))
        ledger.open()
        async with client.connect(settings, settings.base_url, "none") as api:
            with Bar("bench", len(wanted), "clips") as bar:
                asking = Asking(settings, price, ledger, api, 0, read=lambda request, settings: jpegs)
                found = await asking.run(wanted, bar)
        assert all(caption.outcome == "ok" for caption in found.values())
        assert len(found) == len(wanted)


async def bare(settings: config.Caption, wanted: list[Request], jpegs: list[bytes]) -> None:
    """The `openai` client alone: the same bodies, parsed answers, no ledger, no budget, no checks."""
    slots = asyncio.Semaphore(settings.concurrency)

    async def one(request: Request) -> None:
        async with slots:
            answer = await api.chat.completions.create(**client.body(settings, request.prompt, jpegs))
            json.loads(answer.choices[0].message.content or "")

    async with client.connect(settings, settings.base_url, "none") as api:
        await asyncio.gather(*(one(request) for request in wanted))


def overheads(jpegs: list[bytes]) -> dict[str, dict[str, float]]:
    """Our client and the bare one in turns, of each the fastest of several rounds."""
    rounds = [[overhead(way, jpegs) for way in (through_the_ledger, bare)] for _ in range(CLIENT_ROUNDS)]
    ours, alone = (min(rows, key=lambda row: row["cpu_s"]) for rows in zip(*rounds, strict=True))
    return {"client": ours, "openai_alone": alone}


def overhead(way: Callable[..., Any], jpegs: list[bytes]) -> dict[str, float]:
    """Processor and wall-clock seconds of this process for `CLIPS` clips."""
    with Server() as server:
        settings = settings_for(server.url, 32)
        asyncio.run(way(settings, items(20, settings), jpegs))  # imports and first connections
        wanted = items(CLIPS, settings)
        cpu, wall = time.process_time(), time.monotonic()
        asyncio.run(way(settings, wanted, jpegs))
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        paid = server.stats()["paid"]
    assert paid == CLIPS + 20
    return {"cpu_s": cpu, "wall_s": wall, "clips_per_cpu_s": CLIPS / cpu, "clips_per_s": CLIPS / wall}


def rate(jpegs: list[bytes], clips: int, concurrency: int) -> dict[str, float]:
    """Clips per second against a server whose slots and latency set the limit."""
    with Server("--latency", str(LATENCY_S), "--slots", str(SLOTS)) as server:
        settings = settings_for(server.url, concurrency)
        wall = time.monotonic()
        asyncio.run(through_the_ledger(settings, items(clips, settings), jpegs))
        wall = time.monotonic() - wall
        stats = server.stats()
    ideal = SLOTS / LATENCY_S
    found = {"clips": clips, "clips_per_s": clips / wall, "ideal_per_s": ideal, "share_of_ideal": clips / wall / ideal}
    assert stats["paid"] == clips
    return found | {"concurrency": concurrency}


def extraction(path: Path, options: Sequence[str]) -> dict[str, float]:
    """Processor milliseconds per clip: three pictures for an endpoint, and a caption by measurement.

    In turns, and of several rounds the fastest, since what else runs on the machine only ever adds.
    Beside them what decoding three key frames (where there are as many) takes and nothing else, and how large those
    are: entropy coding sets it.
    """
    raw = b"".join(frame.tobytes() for frame in footage(FRAMES, 720, 1280))
    subprocess.run(
        [
            *(ffmpeg.program(), "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "1280x720"),
            *("-r", "24", "-i", "-", "-c:v", "libx264", "-preset", config.Cut().preset, "-pix_fmt", "yuv420p"),
            *(*options, str(path)),
        ],
        input=raw,
        check=True,
    )
    settings = config.Caption()
    item = Item("c", "clip", str(path), FRAMES, (), False, 24.0, 12.0, "h")
    request = requests.request(item, settings)

    indices, keys = pictures.pose_frames(settings.frames, FRAMES, (), False), _Keys(path)
    works: dict[str, Callable[[], object]] = {
        "pictures": lambda: pictures.take(path, indices, settings.image_side),
        "jpegs": lambda: requests.jpegs(request, settings),
        "embedded": lambda: embedded.describe_clip(path, FRAMES, (), False, 24.0, 12.0),
        "key_frames_alone": keys.decode,
        "decoding_whole": lambda: _decode_all(path),
    }
    taken_ms: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            begun = time.process_time()
            for _ in range(TAKEN):
                work()
            taken_ms[name].append(1000 * (time.process_time() - begun) / TAKEN)
    return {"key_frame_kib": keys.kib} | {f"{name}_cpu_ms": min(rounds) for name, rounds in taken_ms.items()}


class _Keys:
    """Up to three key frames of a clip in memory, and a decoder for them."""

    def __init__(self, path: Path) -> None:
        self.container = av.open(os.fspath(path))
        stream = self.container.streams.video[0]
        stream.thread_type = "NONE"
        self.codec = stream.codec_context
        packets = [packet for packet in self.container.demux(stream) if packet.is_keyframe]
        self.packets = packets[:: max(1, len(packets) // 3)][:3]
        self.kib = sum(packet.size for packet in self.packets) / len(self.packets) / 1024

    def decode(self) -> None:
        """All of them."""
        for packet in self.packets:
            self.codec.decode(packet)


def _decode_all(path: Path) -> int:
    with av.open(os.fspath(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        return sum(1 for _ in container.decode(video=0))


def main() -> None:
    """Measure, print, write."""
    jpegs = three_jpegs()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "jpeg_kib": sum(map(len, jpegs)) / 1024,
            **overheads(jpegs),
            "rate": rate(jpegs, RATE_CLIPS, SLOTS),
            "rate_with_a_queue": rate(jpegs, RATE_CLIPS, SLOTS + 16),
            "extraction": {
                name: extraction(Path(folder) / f"{number}.mp4", options)
                for number, (name, options) in enumerate(CLIPS_OF.items())
            },
        }
    ours, alone = found["client"]["clips_per_cpu_s"], found["openai_alone"]["clips_per_cpu_s"]
    print(f"clips per processor second   {ours:7.0f}   openai alone {alone:.0f}")
    for name in ("rate", "rate_with_a_queue"):
        one = found[name]
        share = f"{one['share_of_ideal']:.1%} of the ideal, {one['concurrency']} at once"
        print(f"clips per second, 64 x 2 s   {one['clips_per_s']:7.1f}   {share}")
    for clips, row in found["extraction"].items():
        for name, value in row.items():
            print(f"{clips}: {name:28s} {value:7.1f}")
    limits = [
        at_least("clips_per_cpu_s of the client", ours, 150),
        at_least("share_of_ideal with a queue", found["rate_with_a_queue"]["share_of_ideal"], 0.95),
    ]
    for clips in ("short GOPs, as cut", "short GOPs, x264's defaults"):
        limits.append(at_most(f"pictures_cpu_ms, {clips}", found["extraction"][clips]["pictures_cpu_ms"], 20))
    judge("results/bench/captions.json", found, limits)


if __name__ == "__main__":
    main()
