"""What `cut` and `caption` leave behind: three clips on twos with stills and captions, the last one held out."""

from pathlib import Path

from PIL import Image

import tiny
from brickreel import config, files, tables
from brickreel.films import video
from films import synth

TEXTS = ("a red car drives over a bridge", "the blue house", "a man walks slowly to the left")
POSES = {"time": "poses", "buckets": {"64p": {4: [1.0, 2], 1: [1.0, 4]}}}


def make() -> None:
    """Write clips, stills, cut index and captions under the present folder."""
    rows = []
    for number in range(3):
        path = Path(f"results/cut/clips/clip{number}.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures = synth.scene(number, 6, height=80, width=112)
        video.write(path, pictures, 24, holds=[2] * 6)
        still = Path(f"results/cut/stills/clip{number}.png")
        still.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures[3]).save(still)
        rows += [row(number, "clip", path, frames=12, holds=[2] * 6), row(number, "still", still, frames=1, holds=None)]
    tables.write("cut_index", "results/cut/index.parquet/00.parquet", rows)
    captions = [
        dict.fromkeys(tables.SCHEMAS["captions"].names)
        | {"clip_id": f"clip{number}", "kind": kind, "text": TEXTS[number], "outcome": "ok", "reason": ""}
        for number in range(3)
        for kind in ("clip", "still")
    ]
    tables.write("captions", "results/caption/captions.parquet/00.parquet", captions)


def row(number: int, kind: str, path: Path, **columns) -> dict:
    """A row of the cut index."""
    return (
        dict.fromkeys(tables.SCHEMAS["cut_index"].names)
        | {"clip_id": f"clip{number}", "film_id": f"film{number}", "kind": kind, "path": path.as_posix()}
        | {"in_poses": False, "fps": 24.0, "pose_rate": 12.0, "cadence": "twos", "width": 112, "height": 80}
        | {"split": "heldout" if number == 2 else "train", "sha256": files.sha256(path)}
        | {"outcome": "ok", "reason": ""}
        | columns
    )


def settings(base: Path, *runs: dict, **encode) -> config.Config:
    """A configuration of these runs, named run0 and on."""
    return config.load(
        {
            "base": tiny.base_settings(base),
            "encode": {"text_tokens": 24, "file_mib": 1} | encode,
            "runs": {f"run{place}": value for place, value in enumerate(runs)},
        }
    )
