"""Reading and writing short videos as arrays; long films are streamed, never held."""

import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from brickreel import files

Frames = NDArray[np.uint8]


def stream(path: str | os.PathLike[str], height: int | None = None, threads: int = 1) -> Iterator[tuple[float, Frames]]:
    """Decode a video frame by frame: (time in seconds, RGB [H, W, 3]), upright. Scaled to `height` rows when given.

    Raises ValueError when the file has no video that can be decoded.
    """
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video stream")
            source = container.streams.video[0]
            source.thread_type = "AUTO"
            source.codec_context.thread_count = threads
            scaler = VideoReformatter()
            for frame in container.decode(source):
                down, across = upright(frame)
                if height and height < down:
                    down, across = height, max(2, round(across * height / down / 2) * 2)
                rows, columns = (across, down) if frame.rotation % 180 else (down, across)
                # One for all frames, and without threads: making them anew takes as long as the work.
                picture = scaler.reformat(frame, columns, rows, "rgb24", threads=1).to_ndarray()
                yield float(frame.time or 0.0), turned(np.asarray(picture, np.uint8), frame)
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be decoded: {error}") from error


def upright(frame: av.VideoFrame) -> tuple[int, int]:
    """Rows and columns as a player shows the frame."""
    return (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)


def turned(picture: Frames, frame: av.VideoFrame) -> Frames:
    """The frame's picture [H, W, 3] as a player turns it."""
    return np.ascontiguousarray(np.rot90(picture, frame.rotation // 90))


def read(path: str | os.PathLike[str], indices: Sequence[int] | None = None, height: int | None = None) -> Frames:
    """Frames of a short video as [N, H, W, 3]; those at `indices` in their order, or all.

    Raises ValueError when the file cannot be decoded or an index is beyond its end.
    """
    wanted = None if indices is None else set(indices)
    kept: dict[int, Frames] = {}
    for index, (_, frame) in enumerate(stream(path, height)):
        if wanted is None or index in wanted:
            kept[index] = frame
        if wanted is not None and index >= max(wanted, default=-1):
            break
    missing = sorted((wanted or set()) - kept.keys())
    if missing or not kept:
        raise ValueError(f"{path} has only {max(kept, default=-1) + 1} frames, frame {missing[:1]} was asked for")
    return np.stack([kept[index] for index in (sorted(kept) if indices is None else indices)])


def write(
    path: str | os.PathLike[str],
    frames: Iterable[Frames],
    fps: float,
    holds: Sequence[int] | None = None,
    crf: int = 18,
) -> int:
    """Write RGB frames [H, W, 3] as H.264, each repeated `holds[i]` times; returns the number of frames written.

    Odd sizes are padded by one row or column, since yuv420p has none. Written whole or not at all.
    """
    # x264's choice of B-frames is not the same every time for pictures of 64 rows; without them the file is.
    options = {"crf": str(crf), "preset": "medium", "x264-params": "bframes=0"}
    rate = Fraction(fps).limit_denominator(1001)
    written = 0
    with files.replacing(Path(path)) as temporary, av.open(os.fspath(temporary), "w", format="mp4") as container:
        target = None
        for index, frame in enumerate(frames):
            padded = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
            if target is None:
                target = container.add_stream("libx264", rate=rate, options=options)
                target.height, target.width, target.pix_fmt = padded.shape[0], padded.shape[1], "yuv420p"
            for _ in range(holds[index] if holds is not None else 1):
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
                container.mux(target.encode(picture))
                written += 1
        if target is None:
            raise ValueError(f"no frames to write to {path}")
        container.mux(target.encode(None))
    return written
