"""Damaged and odd films, over 300 from a seed drawn now: each ends with an outcome and a reason, and harms no other."""

import random
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from brickreel import config, tables
from brickreel.films import cutting, isolated
from brickreel.stages import analyze, ingest
from films import project, synth

MUTANTS = 300
LIMITS = {"seconds": 60, "stall_s": 20, "memory_gib": 1}
FRAMES = 16
# Films that are whole, and what becomes of them.
WHOLE = ("plain", "matroska", "quicktime", "stream", "ten_bits", "interlaced", "rotated", "uneven_clock", "odd_size")
BROKEN = {"sound_alone": "has no video stream", "one_frame": "single frame"}


def cut_short(data, draw):
    return data[: draw.randrange(len(data))]


def flip_bits(data, draw):
    damaged = bytearray(data)
    for _ in range(draw.choice([1, 10, 200])):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def blank_out(data, draw):
    start = draw.randrange(len(data))
    length = draw.randrange(1, 4000)
    return (data[:start] + b"\0" * length + data[start + length :])[: len(data)]


def leave_out(data, draw):
    start = draw.randrange(len(data))
    return data[:start] + data[start + draw.randrange(1, 3000) :]


def lie_in_the_header(data, draw):
    """Size, duration or times of the header are replaced by huge numbers."""
    box = draw.choice([b"tkhd", b"mvhd", b"mdhd", b"stts", b"stsz", b"stco", b"avc1"])
    place = data.find(box)
    if place < 0:
        return flip_bits(data, draw)
    return written(data, place + draw.randrange(8, 60), draw.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4]))


def promise_a_huge_picture(data, draw):
    """65,520 x 65,520 pixels in both headers of an MP4."""
    for box, place, size in ((b"tkhd", 80, ">II"), (b"avc1", 28, ">HH")):
        if data.find(box) >= 0:
            unit = 1 << 16 if box == b"tkhd" else 1
            data = written(data, data.find(box) + place, struct.pack(size, *[65520 * unit % 2**32] * 2))
    return data


def promise_ten_thousand_seconds(data, draw):
    """Durations in the headers, and between two frames, of 10,000 s."""
    unit = struct.unpack_from(">I", data, data.find(b"mdhd") + 16)[0] if b"mdhd" in data else 1
    for box, place in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20), *([(b"stts", 16)] if draw.random() < 0.5 else [])):
        if data.find(box) >= 0:
            data = written(data, data.find(box) + place, struct.pack(">I", 10_000 * unit % 2**32))
    return data


def swap(data, draw):
    middle = draw.randrange(len(data))
    return data[middle:] + data[:middle]


def written(data, place, new):
    return (data[:place] + new + data[place + len(new) :])[: len(data)]


MUTATIONS = [
    cut_short, flip_bits, blank_out, leave_out, lie_in_the_header, promise_a_huge_picture,
    promise_ten_thousand_seconds, swap,
]  # fmt: skip


def parents(folder):
    """Name -> (suffix, bytes) of films of every kind."""
    pictures = [picture for picture in synth.scene(1, FRAMES // 2, height=90, width=160) for _ in range(2)]
    odd = [picture[:89, :159] for picture in pictures]
    made = {
        "plain": encoded(folder / "plain.mp4", pictures),
        "matroska": encoded(folder / "matroska.mkv", pictures),
        "quicktime": encoded(folder / "quicktime.mov", pictures),
        "stream": encoded(folder / "stream.ts", pictures),
        "ten_bits": encoded(folder / "ten.mp4", pictures, pixels="yuv420p10le"),
        "interlaced": encoded(
            folder / "interlaced.mpg", pictures, codec="mpeg2video", options={"flags": "+ildct+ilme"}
        ),
        "rotated": encoded(folder / "rotated.mp4", pictures),
        "uneven_clock": encoded(folder / "uneven.mp4", pictures, stamps=[n + n // 5 * 3 for n in range(FRAMES)]),
        "odd_size": encoded(folder / "odd.mkv", odd, codec="ffv1", pixels="yuv444p"),
        "one_frame": encoded(folder / "one.mp4", pictures[:1]),
        "sound_alone": sound(folder / "sound.mp4"),
    }
    found = {name: (path.suffix[1:], path.read_bytes()) for name, path in made.items()}
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 90 << 16, 0, 1 << 30)
    suffix, data = found["rotated"]
    found["rotated"] = (suffix, written(data, data.find(b"tkhd") + 44, matrix))
    return found


def encoded(path, pictures, codec="libx264", pixels="yuv420p", stamps=None, options=None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options={"bf": "0"} | (options or {}))
        stream.height, stream.width, stream.pix_fmt = (*pictures[0].shape[:2], pixels)
        stream.codec_context.time_base = Fraction(1, 24)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 24), stamps[number] if stamps else number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_mutant_ends_with_an_outcome_and_a_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    made = parents(tmp_path)
    contents = {f"{name}.{suffix}": data for name, (suffix, data) in made.items()}
    for number in range(MUTANTS):
        suffix, data = made[draw.choice(list(made))]
        name = f"mutant {number}.{draw.choice([suffix, suffix, 'mp4', 'txt'])}"
        contents[name] = MUTATIONS[number % len(MUTATIONS)](data, draw)
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    project.listed(tmp_path, [[name, name.partition(".")[0], "CC0"] for name in contents])
    analyzed = {"transnet": "off", "limits": LIMITS, "max_failed_share": 1.0}
    settings = config.load({"ingest": {"limits": LIMITS}, "analyze": analyzed})
    ingest.run(settings)
    analyze.run(settings)
    films = {row["title"]: row for row in tables.read("sources", ingest.OUTPUT).to_pylist()}
    assert len(films) == len(contents)
    assert all(row["reason"] for row in films.values() if row["outcome"] != "ok")
    wanted = {row["film_id"] for row in films.values() if row["outcome"] == "ok"}
    signals = tables.read("signals", analyze.OUTPUT).to_pandas()
    assert set(signals["film_id"]) == wanted
    assert all(signals[signals["outcome"] == "failed"]["reason"])
    frames = signals[signals["outcome"] == "ok"].groupby("film_id").size()
    for name in WHOLE:
        assert (films[name]["outcome"], frames[films[name]["film_id"]]) == ("ok", FRAMES), name
    for name, reason in BROKEN.items():
        assert films[name]["outcome"] == "failed"
        assert reason in films[name]["reason"]
    written = {name: cut(row, int(frames[row["film_id"]])) for name, row in films.items() if row["film_id"] in frames}
    assert [name for name in WHOLE if written[name]] == []
    reasons = {*signals["reason"], *(row["reason"] for row in films.values()), *written.values()}
    assert [reason for reason in reasons if "unexpected" in reason] == []
    # Damage may hide nothing from the others: most mutants are no film any more, and many still are.
    assert len(wanted) > len(WHOLE) + 10
    assert len(films) - len(wanted) > 50


def cut(row, frames):
    """Why no clip could be made of all frames of a film; empty when one could."""
    film = cutting.Film(f"{row['path']}", row["sample_aspect"], row["rotation"], row["interlaced"])
    every = np.arange(frames)
    piece = cutting.Piece(
        row["film_id"], every, np.ones(frames, np.int64), frames // 2, 24.0, (0, 0, row["width"], row["height"])
    )
    recipe = cutting.Recipe(90, 23, "ultrafast", 1)
    done = []
    try:
        isolated.call(cutting.cut, (film, [piece], recipe, "clips", "stills"), isolated.Limits(**LIMITS), done.extend)
    except ValueError as error:
        return str(error)
    return done[0].reason
