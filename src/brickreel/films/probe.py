"""What a file really is: found by demuxing it whole and decoding parts of it, since headers lie."""

import os
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

from brickreel.films import decode, isolated

# Frames decoded at the beginning and after a jump to the middle.
DECODED = 12
# Two and three fields of a television picture, which frames of a telecined film are shown for in turn, in seconds.
FIELDS_S = (1001 / 30000, 1001 / 20000)
# Milliseconds, in which some containers count, leave a step a millisecond too long or too short.
ROUNDING_S = 0.0015
# Rates that films have; a measured one within half a percent of one of them is that one.
RATES = (12.0, 15.0, 16.0, 18.0, 24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 48.0, 50.0, 60000 / 1001, 60.0)


class Probe(NamedTuple):
    """The facts of one film."""

    codec: str
    width: int
    height: int
    fps: float
    """Frames per second; where the rate varies, of the slowest grid that most frames begin on."""
    frames: int
    """Frames in the container; analyze counts what can be decoded."""
    duration_s: float
    variable_rate: bool
    sample_aspect: float
    """Width over height of one pixel as displayed."""
    rotation: int
    """Degrees clockwise that a player turns the picture by."""
    interlaced: bool
    note: str
    """What is odd about the file though it can be used."""


def probe(path: str | os.PathLike[str], progress: Callable[[int], None] | None = None) -> Probe:
    """Probe a film. Raises ValueError when it has no video that can be decoded."""
    with decode.open_film(path) as (container, source):
        promised = source.frames
        codec = source.codec_context.name
        times = _timestamps(container, source, isolated.Pulse(progress))
        tick_s = float(source.time_base or Fraction(1, 90_000))
    first = _decode_some(path, 0.0)
    if len(times) < 2:
        raise ValueError("holds a single frame")
    _decode_middle(path, float(times[len(times) // 2]), isolated.Pulse(progress))
    steps = np.diff(times)
    steps = _evened(steps[steps > 0])
    usual = float(np.median(steps)) if len(steps) else 1 / 24
    odd = np.abs(steps - usual) > max(0.25 * usual, 0.0015)
    variable = bool(len(steps) and odd.mean() > 0.01)
    # Timestamps are rounded, and their mean is exact; but one gap, as where recordings were joined, would spoil it.
    even = steps[~odd]
    rate = _known_rate(_grid(steps, usual, tick_s) if variable else len(even) / max(float(even.sum()), 1e-6))
    notes = []
    if promised > len(times) + 2:
        notes.append(f"the header promises {promised} frames, the file has {len(times)}")
    if first.hdr:
        notes.append("is HDR: its clips are brought to ordinary brightness and colours")
    return Probe(
        codec=codec,
        width=first.width,
        height=first.height,
        fps=rate,
        frames=len(times),
        duration_s=float(times[-1] - times[0] + usual),
        variable_rate=variable,
        sample_aspect=float(first.sample_aspect or 1.0),
        rotation=first.rotation,
        interlaced=first.interlaced,
        note="; ".join(notes),
    )


class _First(NamedTuple):
    width: int
    height: int
    sample_aspect: float
    rotation: int
    interlaced: bool
    hdr: bool


def _timestamps(
    container: "av.container.InputContainer", source: "av.VideoStream", pulse: isolated.Pulse
) -> np.ndarray:
    times: list[float] = []
    tick = source.time_base or Fraction(1, 90_000)
    try:
        for packet in container.demux(source):
            if packet.size and not packet.is_discard:
                stamp = packet.pts if packet.pts is not None else packet.dts
                times.append(float(stamp * tick) if stamp is not None else len(times) / 24)
            pulse(len(times))
    except av.InvalidDataError:
        # The file ends within a packet: what came before counts.
        pass
    return np.sort(np.array(times))


def _decode_some(path: str | os.PathLike[str], time_s: float) -> _First:
    """Decode some frames from `time_s` on and describe the first."""
    with decode.open_film(path) as (container, source):
        try:
            if time_s:
                container.seek(int(time_s / (source.time_base or Fraction(1, 90_000))), stream=source)
            found, interlaced, first = 0, 0, None
            for frame in decode.frames(container, source):
                first = first or frame
                found += 1
                interlaced += frame.interlaced_frame
                if found == DECODED:
                    break
        except av.FFmpegError as error:
            where = f" at {time_s:.1f} s" if time_s else ""
            raise ValueError(f"cannot be decoded{where}: {decode.words(error)}") from error
        if first is None:
            raise ValueError(f"holds no frame that can be decoded{f' after {time_s:.1f} s' if time_s else ''}")
        decode.check_size(first)
        return _First(
            first.width,
            first.height,
            float(source.sample_aspect_ratio or 1),
            -first.rotation % 360,
            interlaced * 2 > found,
            first.color_trc in decode.HDR,
        )


def _decode_middle(path: str | os.PathLike[str], time_s: float, pulse: isolated.Pulse) -> None:
    """Decode some frames from the middle on; raises ValueError where there are none."""
    try:
        _decode_some(path, time_s)
    except ValueError:
        # In a file without an index a jump may land behind the only key frame: then all before it is decoded as well.
        with suppress(av.FFmpegError), decode.open_film(path) as (container, source):
            for number, frame in enumerate(decode.frames(container, source)):
                pulse(number)
                if frame.time is not None and frame.time >= time_s:
                    return
        raise


def _evened(steps: np.ndarray) -> np.ndarray:
    """The steps; of a telecined film, whose frames are shown for two and three fields in turn, each with its next."""
    short, long = (np.abs(steps - field) < ROUNDING_S for field in FIELDS_S)
    telecined = (short[:-1] & long[1:]) | (long[:-1] & short[1:])
    if len(telecined) and telecined.mean() > 0.95:
        return np.asarray(steps[:-1] + steps[1:]) / 2
    return steps


def _grid(steps: np.ndarray, usual: float, tick_s: float) -> float:
    """Frames per second of the grid that frames of a varying rate lie on: they were left out where nothing changed.

    It is the slowest rate that most steps are whole multiples of, as well as any; where none is, that of `usual` steps.
    """
    # A tick as long as a frame of the fastest films: the container counts in frames.
    if tick_s > 0.99 / RATES[-1]:
        return 1 / (tick_s * _ticks_per_frame(steps / tick_s))
    # Gaps are multiples of anything.
    steps = steps[steps < 1.0]
    rates = sorted({*RATES, 1 / usual})
    fits = [_fit(steps, rate, tick_s) for rate in rates]
    shares = [float(fit.mean()) if len(fit) else 0.0 for fit in fits]
    if max(shares) <= 0.5:
        return 1 / usual
    best = next(place for place, share in enumerate(shares) if share >= max(shares) - 0.002)
    # Rates a thousandth apart differ in the sum alone.
    good = steps[fits[best]]
    return float(np.rint(good * rates[best]).sum() / good.sum())


def _ticks_per_frame(steps: np.ndarray) -> int:
    """Of a container that counts in frames, as AVI does, or in fields; steps are in its ticks and not rounded."""
    numbers = range(2, round(float(np.median(steps))) + 1)
    # Nearly all steps are multiples of it.
    fits = [number for number in numbers if (np.abs(steps - number * np.rint(steps / number)) < 0.1).mean() > 0.998]
    return max(fits, default=1)


def _fit(steps: np.ndarray, rate: float, tick_s: float) -> np.ndarray:
    """Which steps are one or more frames of this rate, but for the rounding of both their ends."""
    frames = np.maximum(np.rint(steps * rate), 1)
    return np.abs(steps - frames / rate) < 1.05 * tick_s + 0.002 * steps


def _known_rate(rate: float) -> float:
    if not 0.5 <= rate <= 1000:
        raise ValueError(f"claims {rate:g} frames per second")
    nearest = min(RATES, key=lambda known: abs(known - rate))
    return nearest if abs(nearest - rate) < 0.0045 * nearest and abs(nearest - rate) < 0.012 else round(rate, 4)
