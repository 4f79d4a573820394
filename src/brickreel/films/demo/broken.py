"""Files that look like films and are none: what people's folders really hold."""

from pathlib import Path
from typing import Any

import av
import numpy as np

from brickreel import files


def write_all(folder: Path, good: Path, seed: int) -> list[dict[str, Any]]:
    """Write a film cut off in the middle, sound without a picture, and a text named .mp4; what is wrong with each."""
    data = good.read_bytes()
    files.write_bytes(folder / "90-cut-off.mp4", data[: len(data) * 3 // 5])
    write_sound(folder / "91-only-sound.mp4", seed)
    files.write_text(folder / "92-notes.mp4", "Shot list: tower, car, walk. Remember to dust the baseplate.\n")
    return [
        {"path": "90-cut-off.mp4", "title": "Cut Off", "fault": "truncated"},
        {"path": "91-only-sound.mp4", "title": "Only Sound", "fault": "no_video"},
        {"path": "92-notes.mp4", "title": "Notes", "fault": "not_a_video"},
    ]


def write_sound(path: Path, seed: int, seconds: int = 3, rate: int = 22050) -> None:
    """A few notes as AAC, without any picture."""
    rng = np.random.default_rng(seed)
    notes = rng.choice([262.0, 294.0, 330.0, 392.0, 440.0], seconds * 4)
    time_s = np.arange(rate * seconds) / rate
    tone = 0.3 * np.sin(2 * np.pi * np.repeat(notes, rate // 4)[: len(time_s)] * time_s[: len(notes) * (rate // 4)])
    with files.replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        target = container.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate
        container.mux(target.encode(frame))
        container.mux(target.encode(None))
