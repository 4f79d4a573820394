"""Online encoding: decode, crop and encode clips at every step, as the origin did, instead of reading latents."""

import threading
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from brickreel.config import RunData
from brickreel.training import showing
from brickreel.training.assignment import Material, Shape
from brickreel.training.encoding import Encoder
from brickreel.training.latents import Sample
from brickreel.training.randomness import Showing


class ByName:
    """Rows of a table by `clip_id` and `kind`, the last of several. As dicts they would take seven times the memory."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows, self.ids, self.kinds = rows, rows["clip_id"], rows["kind"]
        self.order = pc.sort_indices(rows, [("clip_id", "ascending"), ("kind", "ascending")])

    def get(self, clip_id: str, kind: str) -> dict[str, Any] | None:
        """The row, None where there is none."""
        place = bisect_right(self.order, (clip_id, kind), key=self._name) - 1
        if place < 0 or self._name(self.order[place]) != (clip_id, kind):
            return None
        return self.rows.slice(self.order[place].as_py(), 1).to_pylist()[0]

    def _name(self, place: pa.Scalar) -> tuple[str, str]:
        return self.ids[place.as_py()].as_py(), self.kinds[place.as_py()].as_py()


class Clips:
    """Clips and stills that have a caption: the caption stage's, else the one that came with an adopted dataset."""

    COLUMNS = ("clip_id", "kind", "path", "frames", "holds", "in_poses", "width", "height", "text")
    """What is needed of the cut index; of captions the names and `text`."""

    def __init__(self, cut: pa.Table, captions: pa.Table) -> None:
        self.cut, self.captions = ByName(cut), ByName(captions)

    def get(self, clip_id: str, kind: str) -> dict[str, Any] | None:
        """The row of the cut index with its `text`."""
        clip, caption = self.cut.get(clip_id, kind), self.captions.get(clip_id, kind)
        text = (caption or {}).get("text") or (clip or {}).get("text")
        return clip | {"text": text} if clip and text else None


class OnlineReader:
    """Reads a sample from its clip's file: every showing has a start and a crop of its own.

    The draws belong to the showing, so that they are the same on any number of ranks.
    """

    def __init__(self, clips: Clips, data: RunData, encoder: Encoder) -> None:
        self.clips, self.data, self.encoder = clips, data, encoder
        # A tokenizer must not be used by two loader threads at once.
        self.lock = threading.Lock()

    def __call__(self, row: Mapping[str, Any], shown: Showing) -> Sample:
        """Encode one showing. Raises ValueError or OSError when the clip is gone or cannot be decoded."""
        clip = self.clips.get(row["clip_id"], row["kind"])
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
