"""One decode pass over a film, as small pictures: bounded memory, timestamps kept, any pixel format.

Luma and chroma are taken from the decoder's planes and averaged down there, which costs a fraction of a conversion to
RGB at full size. Frames are counted from 0 in decoding order, everywhere in brickreel.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

# Larger pictures than 16K are a damaged header, not a film; refusing them bounds the memory of the decoder.
MAX_PIXELS = 16384 * 8640

# Planar 8-bit formats whose planes can be used as they are; others are converted to yuv420p first.
_PLANAR = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"}

# ffmpeg's number of the colour range that uses all 256 levels.
FULL_RANGE = 2
# Its numbers of the transfer curves of HDR: PQ (SMPTE ST 2084) and HLG (ARIB STD-B67).
HDR = {16, 18}

# What decoders say of a damaged packet; the external one is zlib's, as in PNG.
_DAMAGE = (av.InvalidDataError, av.error.PatchWelcomeError, av.error.ExternalError)

# Lists of other files, still pictures and typescript, which ffmpeg opens as video.
_NOT_FILMS = {"hls", "concat", "dash", "image2", "tty", "lavfi", "png_pipe", "jpeg_pipe", "gif_pipe", "bmp_pipe"}


class Picture(NamedTuple):
    """One frame at reduced size."""

    frame: int
    """Place in decoding order."""
    time_s: float
    """Presentation time from the timestamps; index / nominal rate where the file has none."""
    luma: NDArray[np.uint8]
    """[height, width], at most the height asked for."""
    chroma: NDArray[np.uint8]
    """[2, height / 2, width / 2]: U and V, 128 is grey."""
    full_range: bool
    """Whether black is 0 and white 255, and not 16 and 235."""
    full: NDArray[np.uint8]
    """Luma at full size; a view into the decoder's memory, valid until the next picture is asked for."""


def pictures(path: str | os.PathLike[str], height: int, threads: int = 1) -> Iterator[Picture]:
    """Decode a film from its beginning to its end.

    Damaged frames in the middle are skipped, as a player does. Raises ValueError when nothing can be decoded.
    """
    index = 0
    try:
        with open_film(path, threads) as (container, source):
            rate = float(source.average_rate or source.guessed_rate or 24)
            for frame in frames(container, source):
                yield _picture(frame, index, index / rate, height)
                index += 1
    except av.FFmpegError as error:
        raise ValueError(f"cannot be decoded: {words(error)}") from error
    if not index:
        raise ValueError("holds no frame that can be decoded")


class open_film:  # noqa: N801  (reads as a function in a with statement)
    """Open a film for decoding: a context manager of (container, video stream).

    Raises ValueError when there is no video stream or its header promises an impossible size.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        self.path, self.threads = path, threads

    def __enter__(self) -> tuple["av.container.InputContainer", "av.VideoStream"]:
        try:
            # A path is a path, and a film one file: playlists that lead elsewhere are not followed.
            options = {"protocol_whitelist": "file"}
            self.container = av.open("file:" + os.fspath(self.path), metadata_errors="replace", options=options)
        except av.FFmpegError as error:
            raise ValueError(f"is not a video file: {words(error)}") from error
        try:
            if set(self.container.format.name.split(",")) & _NOT_FILMS:
                raise ValueError(f"is not a video file but {self.container.format.long_name}")
            source = _main_stream(self.container)
            context = source.codec_context
            context.options = {"max_pixels": str(MAX_PIXELS)}
            context.thread_type = "SLICE" if self.threads == 1 else "AUTO"
            context.thread_count = self.threads
        except BaseException:
            self.container.close()
            raise
        return self.container, source

    def __exit__(self, *error: object) -> None:
        self.container.close()


def frames(container: "av.container.InputContainer", source: "av.VideoStream") -> Iterator[VideoFrame]:
    """Decoded frames in order. What cannot be decoded is skipped, unless nothing ever could be."""
    decoded, first_error = 0, None
    packets = container.demux(source)
    while True:
        try:
            # An error of the container ends its generator, which then has no next packet.
            packet = next(packets, None)
            if packet is None:
                break
            batch = packet.decode()
        except _DAMAGE as error:
            first_error = first_error or error
            continue
        for frame in batch:
            decoded += 1
            yield frame
    if not decoded and first_error:
        raise first_error


def _main_stream(container: "av.container.InputContainer") -> "av.VideoStream":
    """The stream that a player shows: one that is marked as the default before others, of these the largest."""
    moving = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not moving:
        raise ValueError("has no video stream")
    source = max(moving, key=_rank)
    if source.codec_context is None:
        raise ValueError("holds video of a codec that is not known")
    width, height = source.codec_context.width, source.codec_context.height
    if width * height > MAX_PIXELS:
        raise ValueError(f"promises frames of {width}x{height} pixels, more than any film has")
    return source


def _rank(source: "av.VideoStream") -> tuple[bool, int]:
    context = source.codec_context
    return bool(source.disposition & av.stream.Disposition.default), context.width * context.height if context else 0


def _picture(frame: VideoFrame, index: int, expected_s: float, height: int) -> Picture:
    check_size(frame)
    planar = frame if frame.format.name in _PLANAR else frame.reformat(format="yuv420p")
    luma = plane(planar, 0)
    rows = min(height, frame.height) // 2 * 2
    columns = max(2, round(frame.width * rows / frame.height / 2) * 2)
    small = _reduced(luma, columns, rows)
    chroma = np.stack([_reduced(plane(planar, i), columns // 2, rows // 2) for i in (1, 2)])
    time_s = float(frame.time) if frame.time is not None else expected_s
    return Picture(index, time_s, small, chroma, is_full_range(planar), luma)


def is_full_range(frame: VideoFrame) -> bool:
    """Whether black is 0 and white 255, and not 16 and 235."""
    return frame.format.name.startswith("yuvj") or frame.color_range == FULL_RANGE


def _reduced(picture: NDArray[np.uint8], columns: int, rows: int) -> NDArray[np.uint8]:
    """Means of areas. Halving, which is many times as fast as any other factor, goes as far as it can."""
    picture = halved(picture, columns, rows)
    if picture.shape == (rows, columns):
        return picture
    return np.asarray(cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)


def halved(picture: NDArray[np.uint8], columns: int, rows: int) -> NDArray[np.uint8]:
    """Halved as often as it stays at least `columns` x `rows`."""
    height, width = picture.shape
    while height >= 2 * rows and width >= 2 * columns:
        height, width = height // 2, width // 2
        picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return picture


def check_size(frame: VideoFrame) -> None:
    """Raise ValueError for pictures that are no film's."""
    if frame.width * frame.height > MAX_PIXELS or frame.width < 16 or frame.height < 16:
        raise ValueError(f"has frames of {frame.width}x{frame.height} pixels")


def plane(frame: VideoFrame, index: int) -> NDArray[np.uint8]:
    """One plane of a planar 8-bit frame as [height, width], without a copy."""
    part = frame.planes[index]
    return np.frombuffer(memoryview(part), np.uint8).reshape(-1, part.line_size)[: part.height, : part.width]


def words(error: av.FFmpegError) -> str:
    """The decoder's complaint without its path."""
    return str(error.strerror or error).strip()
