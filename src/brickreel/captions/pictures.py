"""A few pictures of a clip, evenly spread over its poses: all that a captioner sees."""

import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from brickreel.films import video

Picture = NDArray[np.uint8]
"""RGB, [height, width, 3]."""

# A key frame this near to the one that was meant (as a share of the clip) is taken instead: decoding it costs a
# fraction, and three to five pictures are too far apart for the difference to matter.
TOLERANCE = 1 / 16

_PROBE = {"probesize": "65536", "analyzeduration": "0"}
# One for each stream that a file may have. The binding's annotation says strings where it takes mappings.
_NO_FRAMES: list[Any] = [{"skip_frame": "all"}] * 8


def pose_frames(count: int, frames: int, holds: Sequence[int] | None, in_poses: bool) -> list[int]:
    """Frame numbers of `count` poses spread evenly from 10 % to 90 % of the clip's poses.

    `frames` is the number of frames in the file. Where holds are in the file, the middle of each hold is taken.
    Raises ValueError when the clip has no frames.
    """
    if frames < 1:
        raise ValueError("the clip has no frames")
    held = bool(holds) and not in_poses and sum(holds or ()) == frames
    poses = len(holds or ()) if held else frames
    shares = np.linspace(0.1, 0.9, count) if count > 1 else np.array([0.5])
    chosen = [min(poses - 1, int(share * poses)) for share in shares]
    if not held or holds is None:
        return chosen
    starts = [0, *accumulate(holds)]
    return [starts[pose] + holds[pose] // 2 for pose in chosen]


def take(path: str | os.PathLike[str], indices: Sequence[int], side: int) -> list[tuple[int, Picture]]:
    """Pictures of a clip near the frames at `indices`: (frame number, RGB), longest side at most `side`.

    Key frames within `TOLERANCE` of the clip are preferred, and no frame is decoded that none of these needs.
    Raises ValueError when the file cannot be decoded or has too few frames.
    """
    try:
        with _open(os.fspath(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            packets = [packet for packet in container.demux(stream) if packet.pts is not None]
            chosen = _choose(packets, indices)
            if all(packets[packet].is_keyframe for _, packet in chosen):
                # Nothing is predicted from these, and scaled down the edges of blocks do not show.
                stream.codec_context.options = {"skip_loop_filter": "all"}
            decoded = _decode(stream.codec_context, packets, {packet for _, packet in chosen})
            scaler = VideoReformatter()
            taken = [(index, _scaled(decoded[_pts(packets[packet])], side, scaler)) for index, packet in chosen]
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be decoded: {error}") from error
    except LookupError:
        raise ValueError(f"{path} cannot be decoded, or has not the frames {list(indices)}") from None
    return taken


def _open(path: str) -> av.container.InputContainer:
    try:
        # The header of an mp4 says everything; probing would decode the first frames for nothing.
        return av.open(path, options=_PROBE, stream_options=_NO_FRAMES)
    except av.FFmpegError:
        raise
    except ValueError:  # MPEG-PS, whose streams show only while it is read
        return av.open(path)


def _choose(packets: Sequence[av.Packet], indices: Sequence[int]) -> list[tuple[int, int]]:
    """For each index the frame to take, in order of display, and its packet, in order of decoding."""
    # What stands before the first frame of an edit list is decoded for the others, and never shown.
    shown = [number for number, packet in enumerate(packets) if not packet.is_discard]
    order = sorted(shown, key=lambda packet: _pts(packets[packet]))
    keys = [number for number, packet in enumerate(order) if packets[packet].is_keyframe]
    reach = int(len(order) * TOLERANCE)
    chosen = []
    for index in indices:
        key = min(keys, key=lambda number: abs(number - index), default=index)
        # A key frame between two indices stands for the nearer one alone.
        is_mine = index == min(indices, key=lambda other: abs(key - other))
        number = key if is_mine and abs(key - index) <= reach else index
        chosen.append((number, order[number]))
    return chosen


def _pts(packet: av.Packet) -> int:
    assert packet.pts is not None
    return packet.pts


def _decode(codec: av.VideoCodecContext, packets: Sequence[av.Packet], wanted: set[int]) -> dict[int, av.VideoFrame]:
    """Decode the wanted packets, each from its key frame, those of one group of pictures together; frames by pts."""
    frames: list[av.VideoFrame] = []
    start = position = -1
    for packet in sorted(wanted):
        # A frame that is shown before its key frame is built on frames of the group before as well.
        keys = (k for k in range(packet + 1) if packets[k].is_keyframe and _pts(packets[k]) <= _pts(packets[packet]))
        key = max(keys, default=0)
        if not start <= key <= position:
            if position >= 0:
                frames += codec.decode(None)
                codec.flush_buffers()
            start, position = key, key - 1
        for number in range(position + 1, packet + 1):
            # Frames that no other frame is built on are skipped unless they are wanted.
            codec.skip_frame = "DEFAULT" if number in wanted else "NONREF"
            frames += codec.decode(packets[number])
        position = packet
    frames += codec.decode(None)
    return {frame.pts: frame for frame in frames if frame.pts is not None}


def _scaled(frame: av.VideoFrame, side: int, scaler: VideoReformatter) -> Picture:
    height, width = _fit(frame.height, frame.width, side)
    # ffmpeg is twice as fast in this order of colours, and takes as long to make threads as to scale.
    small = scaler.reformat(frame, width, height, "bgr24", interpolation="AREA", threads=1)
    return video.turned(np.asarray(cv2.cvtColor(small.to_ndarray(), cv2.COLOR_BGR2RGB), np.uint8), frame)


def read_still(path: str | os.PathLike[str], side: int) -> Picture:
    """A still as RGB, longest side at most `side`. Raises ValueError when it is not a picture."""
    try:
        found = cv2.imdecode(np.frombuffer(Path(path).read_bytes() or b"\0", np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # such as one of more than 2^30 pixels
        raise ValueError(f"{path} is not a readable picture: {error.err}") from error
    if found is None:
        raise ValueError(f"{path} is not a readable picture")
    return shrink(np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), np.uint8), side)


def shrink(picture: Picture, side: int) -> Picture:
    """Scaled down, never up, to a longest side of `side` pixels."""
    height, width = _fit(picture.shape[0], picture.shape[1], side)
    if (height, width) == picture.shape[:2]:
        return picture
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _fit(height: int, width: int, side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def jpeg(picture: Picture, quality: int) -> bytes:
    """An RGB picture as JPEG."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return data.tobytes()
