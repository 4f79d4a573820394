"""Writing the clips of one film: decoded once, encoded by one ffmpeg process per run of clips of one shape.

Frames are counted exactly as `analyze` counted them, by the same decoder, and go to ffmpeg through a pipe; its segment
muxer starts a file with every clip. Nothing is seeked, so nothing begins in the neighbouring shot.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence, Set
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import ffmpeg
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, VideoReformatter
from numpy.typing import NDArray

from brickreel import files
from brickreel.films import decode, isolated
from brickreel.films.ffmpeg import Pipe

# Clips per ffmpeg process: what an interruption can cost, and the bound for the length of its command.
CLIPS_PER_RUN = 64
STILL_QUALITY = 92
# Numbers of ISO/IEC 23091-2 that ffmpeg takes by name; players guess where a film says nothing.
_MATRICES = {1: "bt709", 5: "bt470bg", 6: "smpte170m", 9: "bt2020nc"}
_TURNS = {90: ["clock"], 180: ["clock", "clock"], 270: ["cclock"]}
_CV2_TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}

# Clips are written once and read often. In good quality CABAC is half of what a key frame costs to decode, and a
# quarter of the whole; without it a clip takes an eighth more bytes. Every frame is trained on: key frames are no
# better than the others, which at equal bytes makes the whole no worse.
ENCODING = {"coder": "cavlc", "x264-params": "ipratio=1"}


class Recipe(NamedTuple):
    """How every clip is written."""

    short_side: int
    crf: int
    preset: str
    threads: int


class Film(NamedTuple):
    """What a player does to the picture of a film."""

    path: str
    sample_aspect: float
    rotation: int
    interlaced: bool


class Piece(NamedTuple):
    """One clip to be written."""

    clip_id: str
    frames: NDArray[np.int64]
    """Frames of the film that it shows, rising."""
    repeats: NDArray[np.int64]
    """How often each is written."""
    still: int
    """Frame of the film that becomes the still."""
    rate: float
    """Frames per second of the file."""
    crop: tuple[int, int, int, int]
    """Left, top, right, bottom in the film's pixels; even numbers."""


class Written(NamedTuple):
    """What has become of a clip; `reason` says why there is none."""

    clip_id: str
    reason: str
    frames: int = 0
    width: int = 0
    height: int = 0
    sha256: str = ""
    still_sha256: str = ""


def cut(
    film: Film,
    pieces: Sequence[Piece],
    recipe: Recipe,
    clips: str,
    stills: str,
    progress: Callable[[list[Written]], None],
) -> None:
    """Write {clip_id}.mp4 into `clips` and {clip_id}.jpg into `stills`; `progress` gets what is done, run by run,
    and an empty list now and then in between.

    Pieces rise and do not overlap. Raises ValueError when the film cannot be decoded, OSError when the disk is full.
    """
    Path(clips).mkdir(parents=True, exist_ok=True)
    # A folder of its own for each attempt: one that was given up may not have ended yet.
    temporary = Path(tempfile.mkdtemp(prefix=f".{pieces[0].clip_id}-", dir=clips))
    pulse = isolated.Pulse(progress)
    try:
        with decode.open_film(film.path, recipe.threads) as (container, source):
            decoded = decode.frames(container, source)
            first = next(decoded, None)
            if first is None:
                raise ValueError("holds no frame that can be decoded")
            alike = _of_one_size(chain([first], decoded), (first.width, first.height), pulse)
            del first
            shown = {index for piece in pieces for index in (piece.still, *piece.frames.tolist())}
            frames = _in_sdr(enumerate(alike), shown)
            for run in runs(pieces):
                written = _write_run(film, run, recipe, frames, temporary, (Path(clips), Path(stills)), pulse)
                progress(written)
    except av.FFmpegError as error:
        raise ValueError(f"cannot be decoded: {decode.words(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _of_one_size(frames: Iterator[VideoFrame], size: tuple[int, int], pulse: isolated.Pulse) -> Iterator[VideoFrame]:
    """The frames, as long as they have the size that the crops were measured in."""
    for frame in frames:
        if (frame.width, frame.height) != size:
            raise ValueError(f"changes its size from {size[0]}x{size[1]} to {frame.width}x{frame.height} pixels")
        pulse([])
        yield frame


def _in_sdr(frames: Iterator[tuple[int, VideoFrame]], shown: Set[int]) -> Iterator[tuple[int, VideoFrame]]:
    """The frames, those `shown` of HDR films in the brightness and colours that a clip without HDR is shown in.

    Brightness above what the film says of itself, or else above paper white, becomes white.
    """
    # One for all frames: it takes seconds to make its table.
    mapper = VideoReformatter()
    for index, frame in frames:
        if index in shown and frame.color_trc in decode.HDR:
            frame = mapper.reformat(
                frame,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_trc=ColorTrc.BT709,
                dst_color_primaries=ColorPrimaries.BT709,
            )
        yield index, frame


def runs(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Neighbouring pieces of one crop and rate, which one ffmpeg process can write."""
    found: list[list[Piece]] = []
    for piece in pieces:
        last = found[-1] if found else None
        if last and len(last) < CLIPS_PER_RUN and (last[-1].crop, last[-1].rate) == (piece.crop, piece.rate):
            last.append(piece)
        else:
            found.append([piece])
    return found


def _write_run(
    film: Film,
    run: Sequence[Piece],
    recipe: Recipe,
    frames: Iterator[tuple[int, VideoFrame]],
    temporary: Path,
    places: tuple[Path, Path],
    pulse: isolated.Pulse,
) -> list[Written]:
    left, top, right, bottom = run[0].crop
    width, height = size(right - left, bottom - top, film, recipe.short_side)
    pipe: Pipe | None = None
    stills: dict[str, NDArray[np.uint8]] = {}
    try:
        for piece in run:
            for frame, times in _frames_of(piece, frames, stills, film, (width, height)):
                pipe = pipe or Pipe(_command(film, run, recipe, frame), temporary)
                data = _planes(frame, piece.crop)
                for _ in range(times):
                    pipe.write(data)
                    pulse([])
        assert pipe is not None
        pipe.finish()
    finally:
        if pipe:
            pipe.close()
    written = []
    for number, piece in enumerate(run):
        written.append(_accept(piece, temporary / f"{number:06d}.mp4", stills[piece.clip_id], (width, height), places))
        pulse([])
    return written


def _frames_of(
    piece: Piece,
    frames: Iterator[tuple[int, VideoFrame]],
    stills: dict[str, NDArray[np.uint8]],
    film: Film,
    shape: tuple[int, int],
) -> Iterator[tuple[VideoFrame, int]]:
    """The frames of a clip with their repeats; puts its still aside on the way."""
    wanted = dict(zip(piece.frames.tolist(), piece.repeats.tolist(), strict=True))
    last = max(int(piece.frames[-1]), piece.still)
    index = -1
    for index, frame in frames:
        if index == piece.still:
            stills[piece.clip_id] = _still(frame, piece.crop, film, shape)
        if index in wanted:
            yield frame, wanted[index]
        if index == last:
            return
    raise ValueError(f"ends at frame {index + 1}, but a clip reaches to frame {last}: run analyze again")


def size(width: int, height: int, film: Film, short_side: int) -> tuple[int, int]:
    """Width and height of the clip as displayed: square pixels, upright, scaled down to the short side, even."""
    shown = width * film.sample_aspect
    scale = min(1.0, short_side / min(shown, height))
    across, down = (max(2, round(side * scale / 2) * 2) for side in (shown, height))
    return (down, across) if film.rotation % 180 == 90 else (across, down)


def _command(film: Film, run: Sequence[Piece], recipe: Recipe, frame: VideoFrame) -> Any:
    """One process: raw pictures from a pipe, one file per clip, each beginning with a key frame."""
    left, top, right, bottom = run[0].crop
    rate = Fraction(run[0].rate).limit_denominator(1001)
    raw = ffmpeg.input(
        "pipe:0", format="rawvideo", pix_fmt="yuv420p", s=f"{right - left}x{bottom - top}", framerate=str(rate)
    )
    picture = raw.video
    if film.interlaced:
        # Looks at one picture only: the neighbour may belong to another clip.
        picture = picture.filter("estdif", mode="frame")
    shown = size(right - left, bottom - top, film, recipe.short_side)
    across, down = shown[::-1] if film.rotation % 180 == 90 else shown
    picture = picture.filter("scale", across, down, flags="bicubic")
    for turn in _TURNS.get(film.rotation, []):
        picture = picture.filter("transpose", dir=turn)
    picture = picture.filter("setsar", 1)
    lengths = np.cumsum([int(piece.repeats.sum()) for piece in run])
    matrix = _MATRICES.get(frame.colorspace)
    tags = {"colorspace": matrix, "color_primaries": matrix.removesuffix("nc")} if matrix else {}
    return ffmpeg.output(
        picture,
        "%06d.mp4",
        format="segment",
        segment_format="mp4",
        segment_format_options="movflags=+faststart",
        # The last number is never reached: one clip alone needs none, but ffmpeg wants one.
        segment_frames=",".join(map(str, lengths)),
        reset_timestamps=1,
        force_key_frames=",".join(f"{float(length / rate):.6f}" for length in lengths[:-1]) or "0",
        vcodec="libx264",
        crf=recipe.crf,
        preset=recipe.preset,
        pix_fmt="yuv420p",
        threads=recipe.threads,
        **{"forced-idr": 1, "fflags": "+bitexact", "flags:v": "+bitexact", **ENCODING, **tags},
    )


def _planes(frame: VideoFrame, crop: tuple[int, int, int, int]) -> bytes:
    """The cropped picture as yuv420p, plane after plane."""
    if decode.is_full_range(frame):
        # Clips are written in the range that every player assumes.
        planar = frame.reformat(format="yuv420p", src_color_range="JPEG", dst_color_range="MPEG")
    else:
        planar = frame if frame.format.name == "yuv420p" else frame.reformat(format="yuv420p")
    left, top, right, bottom = crop
    luma = decode.plane(planar, 0)[top:bottom, left:right]
    chroma = [decode.plane(planar, i)[top // 2 : (bottom + 1) // 2, left // 2 : (right + 1) // 2] for i in (1, 2)]
    return b"".join(part.tobytes() for part in (luma, *chroma))


def _still(frame: VideoFrame, crop: tuple[int, int, int, int], film: Film, shape: tuple[int, int]) -> NDArray[np.uint8]:
    left, top, right, bottom = crop
    picture = np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)[top:bottom, left:right]
    if film.interlaced:
        picture = picture[::2]
    if film.rotation in _CV2_TURNS:
        picture = np.asarray(cv2.rotate(picture, _CV2_TURNS[film.rotation]), np.uint8)
    shrinks = picture.shape[0] > shape[1]
    scaled = cv2.resize(picture, shape, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.asarray(scaled, np.uint8)


def still_of(path: str, index: int, shape: tuple[int, int], rotation: int = 0) -> bytes:
    """One frame of a file as JPEG, in width x height, turned by degrees clockwise.

    Raises ValueError when there is no such frame.
    """
    film = Film(path, 1.0, rotation, False)
    with decode.open_film(path) as (container, source):
        for number, frame in enumerate(decode.frames(container, source)):
            if number == index:
                return _jpeg(_still(frame, (0, 0, frame.width, frame.height), film, shape))
    raise ValueError(f"has no frame {index}")


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    encoded, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, STILL_QUALITY])
    assert encoded
    return data.tobytes()


def _accept(
    piece: Piece, made: Path, still: NDArray[np.uint8], shape: tuple[int, int], places: tuple[Path, Path]
) -> Written:
    """Count what was written, and give it its name."""
    wanted, found = int(piece.repeats.sum()), count_frames(made)
    if found != wanted:
        return Written(piece.clip_id, f"ffmpeg wrote {found} frames instead of {wanted}")
    clip, picture = places[0] / f"{piece.clip_id}.mp4", places[1] / f"{piece.clip_id}.jpg"
    files.write_bytes(picture, _jpeg(still))
    digest = files.sha256(made)
    os.replace(made, clip)
    return Written(piece.clip_id, "", wanted, *shape, digest, files.sha256(picture))


def count_frames(path: str | os.PathLike[str]) -> int:
    """Pictures in a finished file, counted one by one; 0 when it cannot be read."""
    try:
        with av.open(os.fspath(path)) as container:
            return sum(1 for packet in container.demux(video=0) if packet.size)
    except (av.FFmpegError, IndexError):
        return 0
