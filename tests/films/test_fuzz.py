"""Damaged films, 300 of them from a seed drawn now: each ends with an outcome and a reason, and harms no other."""

import random

import pytest

from brickreel import config, tables
from brickreel.stages import analyze, ingest
from films import project, synth

MUTANTS = 300
LIMITS = {"seconds": 60, "stall_s": 20, "memory_gib": 4}


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
    place += draw.randrange(8, 60)
    return data[:place] + draw.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"]) + data[place + 4 :]


def swap(data, draw):
    middle = draw.randrange(len(data))
    return data[middle:] + data[:middle]


MUTATIONS = [cut_short, flip_bits, blank_out, leave_out, lie_in_the_header, swap]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_mutant_ends_with_an_outcome_and_a_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    parents = []
    for number, suffix in enumerate(("mp4", "mkv", "mov", "ts")):
        film = synth.Film().add(synth.scene(number, 8, height=90, width=160), [2] * 8)
        good = film.write(tmp_path / f"parent{number}.mp4")
        parents.append((suffix, remuxed(good, tmp_path / f"parent{number}.{suffix}").read_bytes()))
    rows = [["parent0.mp4", "good", "CC0"]]
    for number in range(MUTANTS):
        suffix, data = draw.choice(parents)
        name = f"mutant{number}.{draw.choice([suffix, suffix, 'mp4', 'txt'])}"
        (tmp_path / name).write_bytes(draw.choice(MUTATIONS)(data, draw))
        rows.append([name, name, "CC0"])
    project.listed(tmp_path, rows)
    settings = config.load({"ingest": {"limits": LIMITS}, "analyze": {"transnet": "off", "limits": LIMITS}})
    ingest.run(settings)
    analyze.run(settings)
    films = tables.read("sources", ingest.OUTPUT).to_pylist()
    assert len(films) == MUTANTS + 1
    assert all(row["reason"] for row in films if row["outcome"] != "ok")
    assert films[0]["outcome"] == "ok"
    wanted = {row["film_id"] for row in films if row["outcome"] == "ok"}
    signals = tables.read("signals", analyze.OUTPUT).to_pandas()
    assert set(signals["film_id"]) == wanted
    assert all(signals[signals["outcome"] == "failed"]["reason"])
    reasons = {*signals["reason"], *(row["reason"] for row in films)}
    assert [reason for reason in reasons if "unexpected" in reason] == []
    assert (signals[signals["film_id"] == films[0]["film_id"]]["outcome"] == "ok").sum() == 16


def remuxed(source, target):
    """The same pictures in another container."""
    import av

    if source != target:
        with av.open(str(source)) as old, av.open(str(target), "w") as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    new.mux(packet)
    return target
