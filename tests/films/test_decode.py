"""Decoding goes on behind damage, to the end, and of the stream that a player shows."""

import av
import pytest

from brickreel.films import decode, probe
from films import synth

COUNT = 60


def encoded(path, codec, pixels, count=COUNT, **options):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options={"bf": "0", "g": "12", **options})
        stream.width, stream.height, stream.pix_fmt = 320, 180, pixels
        for picture in synth.scene(1, count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def damaged(path, *numbers, margin=4):
    """Overwrite these packets but for some bytes at both ends."""
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for number in numbers:
        pos, size = places[number]
        data[pos + margin : pos + size - margin] = b"\xff" * (size - 2 * margin)
    path.write_bytes(data)
    return path


def count(path):
    return sum(1 for _ in decode.pictures(path, 90))


FILMS = pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("film.mp4", "libx264", "yuv420p"),
        ("film.avi", "mjpeg", "yuvj420p"),
        ("film.mov", "png", "rgb24"),
    ],
)


@FILMS
def test_a_damaged_packet_costs_its_own_frames_and_no_other(tmp_path, name, codec, pixels):
    path = encoded(tmp_path / name, codec, pixels)
    assert count(path) == COUNT
    assert COUNT - 3 <= count(damaged(path, 13, 20, 40)) <= COUNT


@FILMS
def test_damage_in_the_middle_does_not_refuse_a_film(tmp_path, name, codec, pixels):
    path = damaged(encoded(tmp_path / name, codec, pixels), COUNT // 2 - 1, COUNT // 2, COUNT // 2 + 1)
    assert probe.probe(path).frames == COUNT


def test_a_damaged_png_is_skipped_though_zlib_complains(tmp_path):
    path = damaged(encoded(tmp_path / "film.mov", "png", "rgb24"), 30, margin=5000)
    with av.open(str(path)) as container, pytest.raises(av.error.ExternalError):
        list(container.decode(video=0))
    assert count(path) == COUNT - 1


@pytest.mark.parametrize("name", ["film.mkv", "film.ts", "film.avi"])
def test_a_film_that_is_cut_short_ends_where_its_file_does(tmp_path, name):
    path = encoded(tmp_path / name, "mpeg4", "yuv420p")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert COUNT / 3 < count(path) < COUNT


def test_nothing_but_damage_is_an_error(tmp_path):
    path = encoded(tmp_path / "film.avi", "mjpeg", "yuvj420p")
    with pytest.raises(ValueError, match=r"can(not)? be decoded"):
        count(damaged(path, *range(COUNT)))


@pytest.mark.parametrize(
    ("sizes", "default", "shown"),
    [
        ([(64, 36), (160, 90)], {1}, 160),
        ([(64, 36), (160, 90)], {0}, 64),
        ([(64, 36), (160, 90)], {0, 1}, 160),
        ([(160, 90), (160, 90)], set(), 160),
    ],
)
def test_the_default_stream_is_the_film_and_of_several_the_largest(tmp_path, sizes, default, shown):
    with av.open(str(tmp_path / "film.mkv"), "w") as container:
        streams = [container.add_stream("ffv1", rate=24) for _ in sizes]
        for number, (stream, (width, height)) in enumerate(zip(streams, sizes, strict=True)):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = av.stream.Disposition.default if number in default else 0
        for _ in range(6):
            for stream in streams:
                container.mux(stream.encode(av.VideoFrame(stream.width, stream.height, "yuv420p")))
        for stream in streams:
            container.mux(stream.encode(None))
    assert probe.probe(tmp_path / "film.mkv").width == shown
