"""A project folder with a dataset to caption, and a captioning server beside the test."""

import asyncio
import contextlib
import threading

import numpy as np

from brickreel import config, files, tables
from brickreel.stages import Shard, caption
from captions import scenes
from captions.server import Server


def index_row(clip_id, kind, path, **other):
    row = dict.fromkeys(tables.SCHEMAS["cut_index"].names)
    row |= {
        "clip_id": clip_id,
        "film_id": "f" * 16,
        "kind": kind,
        "path": str(path),
        "frames": 1,
        "in_poses": False,
        "fps": 24.0,
        "pose_rate": 12.0,
        "split": "train",
        "sha256": files.sha256(path) if path.exists() else None,
        "outcome": "ok",
    }
    return row | other


def make(folder, clips=2, stills=4, rows=()):
    """Write clips and stills, each different, and their manifest."""
    made = list(rows)
    cut = folder / "results/cut"
    for kind in ("clips", "stills"):
        (cut / kind).mkdir(parents=True, exist_ok=True)
    for i in range(clips):
        path = cut / f"clips/c{i}.mp4"
        frames, holds = scenes.write_clip(path, np.linspace(0.2, 0.3 + 0.5 * i / clips, 8), height=72, width=128)
        made.append(index_row(f"c{i}", "clip", path, frames=frames, holds=holds))
    for i in range(stills):
        path = cut / f"stills/s{i}.jpg"
        path.write_bytes(still(i))
        made.append(index_row(f"s{i}", "still", path))
    tables.write("cut_index", cut / "index.parquet/00.parquet", made)


def still(number):
    """A small JPEG, different for each number up to 65,535."""
    from brickreel.captions import pictures

    picture = np.full((32, 48, 3), 120, np.uint8)
    for bit in range(16):
        if number >> bit & 1:
            picture[(bit // 8) * 16 : (bit // 8) * 16 + 16, (bit % 8) * 6 : (bit % 8) * 6 + 6] = (250, 220, 40)
    return pictures.jpeg(picture, 90)


def settings(url=None, **caption_settings):
    """Settings for an endpoint at `url`, or the defaults."""
    if url:
        caption_settings = {
            "captioner": "openai",
            "base_url": url,
            "model": "test-model",
            "usd_per_million_in": 10.0,
            "usd_per_million_out": 100.0,
            "max_tokens": 200,
            "api_key_env": "BRICKREEL_TEST_KEY",
        } | caption_settings
    return config.load({"caption": caption_settings})


def run(shard="0/1", url=None, **caption_settings):
    """Run the stage in the current folder; the rows of its table by (clip_id, kind)."""
    caption.run(settings(url, **caption_settings), Shard.parse(shard))
    return captions()


def captions():
    rows = tables.read("captions", caption.CAPTIONS).to_pylist()
    found = {(row["clip_id"], row["kind"]): row for row in rows}
    assert len(found) == len(rows), "a clip has two rows"
    return found


def ledger():
    return tables.read_log("ledger", "logs/caption/ledger.jsonl").to_pylist()


@contextlib.contextmanager
def serving(**options):
    """A captioning server in a thread of its own."""
    loop = asyncio.new_event_loop()
    server = Server(**options)
    ready = threading.Event()

    def work():
        asyncio.set_event_loop(loop)
        loop.run_until_complete(server.start())
        ready.set()
        loop.run_forever()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
