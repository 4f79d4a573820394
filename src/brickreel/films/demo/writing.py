"""Writing a demo film: H.264 with one thread, so that the bytes do not depend on the machine's cores."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av

from brickreel import files
from brickreel.films.demo.draw import Picture


def write(path: Path, frames: Iterable[tuple[int, Picture]], fps: int, crf: int) -> int:
    """Write frames (time in 1/fps s, RGB); returns how many.

    The index stands at the end of the file, as cameras write it: a file that was cut off cannot be read.
    """
    count = 0
    with files.replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        target = None
        for tick, frame in frames:
            if target is None:
                target = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": "superfast"})
                target.height, target.width, target.pix_fmt = frame.shape[0], frame.shape[1], "yuv420p"
                target.codec_context.time_base = Fraction(1, fps)
                target.codec_context.thread_count = 1
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.time_base, picture.pts = Fraction(1, fps), tick
            container.mux(target.encode(picture))
            count += 1
        if target is None:
            raise ValueError(f"no frames to write to {path}")
        container.mux(target.encode(None))
    return count
