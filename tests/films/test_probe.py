"""What a file really is, whatever its name and header say."""

from fractions import Fraction

import av
import numpy as np
import pytest

from brickreel.films import decode, isolated, probe, video
from films import synth


def film(tmp_path, count=30, fps=24, **options):
    return video.write(tmp_path / "film.mp4", synth.scene(1, count, **options), fps) and tmp_path / "film.mp4"


def plain(path, count):
    """A film whose packets are in the order in which they are shown."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"bf": "0"})
        stream.width, stream.height = 320, 180
        for picture in synth.scene(1, count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def remux(source, target, stamp):
    """The same packets under other timestamps."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(p for p in old.demux(video=0) if p.size):
            packet.stream = stream
            packet.time_base = Fraction(1, 24000)
            packet.pts = packet.dts = stamp(number)
            new.mux(packet)


def test_facts_of_a_film(tmp_path):
    found = probe.probe(film(tmp_path, fps=25))
    assert (found.width, found.height, found.fps, found.frames) == (320, 180, 25.0, 30)
    assert (found.variable_rate, found.rotation, found.interlaced, found.note) == (False, 0, False, "")
    assert found.duration_s == pytest.approx(1.2)


def test_a_variable_rate_is_seen_and_its_usual_one_named(tmp_path):
    source = plain(tmp_path / "plain.mp4", 40)
    remux(source, tmp_path / "film.mp4", lambda number: 1000 * number + 3000 * (number // 10))
    found = probe.probe(tmp_path / "film.mp4")
    assert found.variable_rate
    assert found.fps == 24.0
    times = [picture.time_s for picture in decode.pictures(tmp_path / "film.mp4", 90)]
    assert times[10] - times[9] == pytest.approx(4 / 24)


@pytest.mark.parametrize("gap_s", [3, 60, 3600])
def test_one_gap_does_not_change_the_rate(tmp_path, gap_s):
    source = plain(tmp_path / "plain.mp4", 150)
    remux(source, tmp_path / "film.mp4", lambda number: 1000 * number + (number >= 75) * 24000 * gap_s)
    found = probe.probe(tmp_path / "film.mp4")
    assert (found.fps, found.variable_rate) == (24.0, False)


def test_a_frame_that_is_missing_here_and_there_does_not_change_the_rate(tmp_path):
    source = plain(tmp_path / "plain.mp4", 220)
    remux(source, tmp_path / "film.mp4", lambda number: 1000 * (number + (number >= 75) + (number >= 120)))
    assert probe.probe(tmp_path / "film.mp4").fps == 24.0


def test_progress_is_told_by_time_and_not_by_packets(tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "PULSE_S", 0)
    told = []
    probe.probe(film(tmp_path), told.append)
    assert max(told) == 30


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a video file"),
        (b"these are only notes\n" * 50, "is not a video file"),
        (b"\0" * 5000, "is not a video file"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "is not a video file"),
    ],
)
def test_what_is_no_film_is_named(tmp_path, content, words):
    (tmp_path / "film.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        probe.probe(tmp_path / "film.mp4")


def test_a_truncated_film_is_refused_or_noted(tmp_path):
    whole = film(tmp_path).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"is not a video file|cannot be decoded"):
        probe.probe(tmp_path / "cut.mp4")


def test_a_stream_with_one_key_frame_is_a_film(tmp_path):
    with av.open(str(tmp_path / "film.ts"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height = 320, 180
        for picture in synth.scene(1, 40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    assert probe.probe(tmp_path / "film.ts").frames == 40


def test_a_film_of_which_only_the_beginning_can_be_decoded_is_refused(tmp_path):
    path = film(tmp_path, count=60)
    data = bytearray(path.read_bytes())
    begin, size = data.find(b"mdat"), len(data)
    damaged = slice(begin + (size - begin) // 10, size - 3000)
    data[damaged] = bytes(len(range(*damaged.indices(size))))
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"can(not)? be decoded"):
        probe.probe(path)


def test_an_unknown_codec_is_named(tmp_path):
    path = film(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"\xff\xff\xff\xff"))
    with pytest.raises(ValueError, match=r"codec that is not known|has no video stream|cannot be decoded"):
        probe.probe(path)


def test_one_frame_is_no_film(tmp_path):
    with pytest.raises(ValueError, match="single frame"):
        probe.probe(film(tmp_path, count=1))


def test_sound_alone_is_no_film(tmp_path):
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="has no video stream"):
        probe.probe(tmp_path / "film.mp4")


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv444p", "yuv422p", "gray"])
def test_other_pixel_formats_are_read(tmp_path, pixels):
    with av.open(str(tmp_path / "film.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 322, 178, pixels
        for picture in synth.scene(1, 8, width=322, height=178):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    assert probe.probe(tmp_path / "film.mkv").frames == 8
    pictures = list(decode.pictures(tmp_path / "film.mkv", 90))
    assert len(pictures) == 8
    assert pictures[0].luma.shape[0] == 90
    assert pictures[0].luma.std() > 10


def timed(tmp_path, units):
    """The facts of a film whose frames begin at these multiples of 1/24000 s, as a container of milliseconds has it."""
    remux(plain(tmp_path / "plain.mp4", len(units)), tmp_path / "film.mkv", lambda number: round(units[number]))
    return probe.probe(tmp_path / "film.mkv")


@pytest.mark.parametrize("rate", [12, 15, 24000 / 1001, 24, 25, 30000 / 1001, 30])
@pytest.mark.parametrize("holds", [(1, 1, 2), (1, 2), (2, 2, 2, 3), (1, 2, 2), (1, 3)])
def test_frames_left_out_of_a_grid_do_not_change_its_rate(tmp_path, rate, holds):
    shown = np.random.default_rng(0).choice(holds, 120)
    found = timed(tmp_path, np.cumsum(shown) * 24000 / rate)
    assert found.variable_rate
    assert found.fps == rate


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "mpeg4"), ("mp4", "libx264")])
@pytest.mark.parametrize("rate", [24, 25, 30, 50, 60])
def test_frames_left_out_do_not_change_the_rate_where_the_container_counts_in_frames(tmp_path, suffix, codec, rate):
    path = tmp_path / f"film.{suffix}"
    options = {"movie_timescale": str(rate), "video_track_timescale": str(rate)} if suffix == "mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate, options={"bf": "0"})
        stream.width, stream.height = 320, 180
        left_out = set(np.random.default_rng(0).choice(np.arange(1, 199), 10, replace=False).tolist())
        for number, picture in enumerate(synth.scene(1, 200)):
            if number not in left_out:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, rate)
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert container.streams.video[0].time_base == Fraction(1, rate)
    found = probe.probe(path)
    assert (found.fps, found.variable_rate) == (rate, True)


def test_a_container_may_count_in_fields():
    steps = np.array([2.0] * 95 + [4.0] * 5) / 50
    assert probe._grid(steps, 2 / 50, 1 / 50) == pytest.approx(25)


@pytest.mark.parametrize("rate", [10.0, 20.0])
def test_a_rate_that_is_not_known_is_found_as_well(tmp_path, rate):
    shown = np.random.default_rng(0).choice([1, 1, 2], 120)
    assert timed(tmp_path, np.cumsum(shown) * 24000 / rate).fps == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize(("fields", "rate"), [(60000 / 1001, 24000 / 1001), (60.0, 24.0)])
@pytest.mark.parametrize("count", [95, 96])
def test_a_telecined_film_has_the_rate_of_its_frames(tmp_path, fields, rate, count):
    found = timed(tmp_path, [(2.5 * frame + 0.5 * (frame % 2)) * 24000 / fields for frame in range(count)])
    assert (found.fps, found.variable_rate) == (rate, False)


@pytest.mark.parametrize("rate", [12.0, 24000 / 1001, 24.0, 25.0, 30000 / 1001, 60.0])
def test_an_even_rate_is_itself_in_milliseconds(tmp_path, rate):
    found = timed(tmp_path, np.arange(150) * 24000 / rate)
    assert (found.fps, found.variable_rate) == (rate, False)


def test_hdr_is_said(tmp_path):
    with av.open(str(tmp_path / "film.mkv"), "w") as container:
        stream = container.add_stream("libx265", rate=24, options={"x265-params": "log-level=none:transfer=smpte2084"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p10le"
        for picture in synth.scene(1, 8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    assert probe.probe(tmp_path / "film.mkv").note.startswith("is HDR")
