"""Online encoding: decode, crop and encode clips at every step, as the origin did, instead of reading latents."""

import threading
from collections.abc import Mapping
from typing import Any

from brickreel.config import RunData
from brickreel.training import showing
from brickreel.training.assignment import Material, Shape
from brickreel.training.encoding import Encoder
from brickreel.training.latents import Sample
from brickreel.training.randomness import Showing


class OnlineReader:
    """Reads a sample from its clip's file: every showing has a start and a crop of its own.

    `clips`: (clip_id, kind) -> row of the cut index with a `text`. The draws belong to the showing, so that they are
    the same on any number of ranks.
    """

    def __init__(self, clips: Mapping[tuple[str, str], Mapping[str, Any]], data: RunData, encoder: Encoder) -> None:
        self.clips, self.data, self.encoder = clips, data, encoder
        # A tokenizer must not be used by two loader threads at once.
        self.lock = threading.Lock()

    def __call__(self, row: Mapping[str, Any], shown: Showing) -> Sample:
        """Encode one showing. Raises ValueError or OSError when the clip is gone or cannot be decoded."""
        clip = self.clips.get((row["clip_id"], row["kind"]))
        if clip is None:
            raise ValueError(f"clip {row['clip_id']} ({row['kind']}) is not in the cut index with a caption any more")
        with self.lock:
            text = self.encoder.texts([clip["text"]])[0]
        return self.encoder.clip(clip, {"": self._view(row, clip, shown)}, text)[""]

    def _view(self, row: Mapping[str, Any], clip: Mapping[str, Any], shown: Showing) -> Any:
        """Frames of the file, shape and place of the crop."""
        resolution, _, ratio = row["bucket"].split("-")[:3]
        shape = Shape(resolution, ratio, row["frames"], row["height"], row["width"])
        generator = shown.generator("variant")
        units = Material.of(clip, self.data).units
        start = int(generator.integers(showing.last_start(units, shape.frames, self.data) + 1))
        place = float(generator.random())
        frames = showing.window(units, shape.frames, self.data, start)
        if clip["kind"] != "still":
            frames = showing.file_frames(frames, self.data.time, clip["holds"], clip["in_poses"])
        return frames, shape, place
