"""Clips hold exactly the frames they name, upright, with square pixels, and with nothing of a neighbour."""

import av
import cv2
import numpy as np
import pytest

from brickreel.films import cutting, decode, isolated, video
from films import synth

RECIPE = cutting.Recipe(short_side=180, crf=16, preset="veryfast", threads=1)


def numbered(count, height=90, width=160):
    """Frames that say their number in grey, as no compression can blur."""
    frames = []
    for number in range(count):
        picture = np.full((height, width, 3), 128, np.uint8)
        for bit in range(8):
            picture[:, bit * width // 8 : (bit + 1) * width // 8] = 220 if number >> bit & 1 else 40
        frames.append(picture)
    return frames


def number_of(picture):
    width = picture.shape[1]
    middle = picture[picture.shape[0] // 2]
    return sum(1 << bit for bit in range(8) if middle[int((bit + 0.5) * width / 8)].mean() > 128)


def piece(name, frames, repeats=None, still=None, rate=24.0, crop=(0, 0, 160, 90)):
    frames = np.array(frames)
    repeats = np.ones(len(frames), np.int64) if repeats is None else np.array(repeats)
    return cutting.Piece(name, frames, repeats, int(frames[0]) if still is None else still, rate, crop)


def cut(tmp_path, pieces, film=None, recipe=RECIPE, rotation=0, aspect=1.0, interlaced=False):
    source = tmp_path / "film.mp4"
    if not source.exists():
        video.write(source, numbered(100) if film is None else film, 24)
    done = []
    shown = cutting.Film(str(source), aspect, rotation, interlaced)
    cutting.cut(shown, pieces, recipe, str(tmp_path / "clips"), str(tmp_path / "stills"), done.extend)
    return done


def numbers(tmp_path, name):
    return [number_of(frame) for frame in video.read(tmp_path / f"clips/{name}.mp4")]


def test_every_clip_has_its_own_frames_and_no_other(tmp_path):
    spans = {"a": (0, 7), "b": (7, 30), "c": (30, 31), "d": (55, 100)}
    done = cut(tmp_path, [piece(name, range(*span)) for name, span in spans.items()])
    assert [(one.clip_id, one.reason, one.frames) for one in done] == [
        (name, "", end - start) for name, (start, end) in spans.items()
    ]
    for name, span in spans.items():
        assert numbers(tmp_path, name) == list(range(*span))


def test_poses_alone_and_poses_for_as_long_as_they_are_seen(tmp_path):
    done = cut(
        tmp_path, [piece("poses", range(0, 40, 2), rate=12.0), piece("timed", [50, 51, 52], [2, 3, 1], rate=24.0)]
    )
    assert [one.frames for one in done] == [20, 6]
    assert numbers(tmp_path, "poses") == list(range(0, 40, 2))
    assert numbers(tmp_path, "timed") == [50, 50, 51, 51, 51, 52]
    with av.open(str(tmp_path / "clips/poses.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == 12.0


def test_a_still_is_the_frame_that_was_asked_for(tmp_path):
    cut(tmp_path, [piece("a", range(10, 30), still=21)])
    assert number_of(cv2.imread(str(tmp_path / "stills/a.jpg"))) == 21


def test_many_clips_take_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(cutting, "CLIPS_PER_RUN", 3)
    pieces = [piece(f"{start:02d}", range(start, start + 5)) for start in range(0, 50, 5)]
    assert [len(run) for run in cutting.runs(pieces)] == [3, 3, 3, 1]
    assert not any(one.reason for one in cut(tmp_path, pieces))
    assert all(numbers(tmp_path, f"{start:02d}") == list(range(start, start + 5)) for start in range(0, 50, 5))


@pytest.mark.parametrize(
    ("rotation", "aspect", "interlaced", "size"),
    [(0, 1.0, False, (160, 90)), (90, 1.0, False, (90, 160)), (0, 1.5, False, (240, 90)), (0, 1.0, True, (160, 90))],
)
def test_clips_look_as_a_player_shows_the_film(tmp_path, rotation, aspect, interlaced, size):
    (one,) = cut(tmp_path, [piece("a", range(4))], rotation=rotation, aspect=aspect, interlaced=interlaced)
    assert (one.width, one.height) == size
    assert video.read(tmp_path / "clips/a.mp4").shape[1:3] == size[::-1]
    assert cv2.imread(str(tmp_path / "stills/a.jpg")).shape[:2] == size[::-1]


def test_a_turned_film_stands_upright(tmp_path):
    picture = np.full((90, 160, 3), 40, np.uint8)
    picture[:, :40] = 220
    cut(tmp_path, [piece("a", range(3))], film=[picture] * 5, rotation=90)
    clip, still = video.read(tmp_path / "clips/a.mp4")[0], cv2.imread(str(tmp_path / "stills/a.jpg"))
    for shown in (clip, still):
        # What was left is on top after a clockwise turn.
        assert shown[:30].mean() > 180
        assert shown[60:].mean() < 80


def test_crop_and_short_side(tmp_path):
    (one,) = cut(tmp_path, [piece("a", range(4), crop=(0, 10, 160, 80))], recipe=RECIPE._replace(short_side=36))
    assert (one.width, one.height) == (82, 36)


def test_odd_sizes_are_made_even(tmp_path):
    (one,) = cut(tmp_path, [piece("a", range(4), crop=(0, 0, 159, 89))], film=numbered(8, 89, 159))
    assert not one.reason
    assert (one.width % 2, one.height % 2) == (0, 0)


def test_the_picture_is_that_of_the_film(tmp_path):
    film = synth.scene(1, 12)
    cut(tmp_path, [piece("a", range(12), crop=(0, 0, 320, 180))], film=film)
    written = video.read(tmp_path / "clips/a.mp4")
    shown = video.read(tmp_path / "film.mp4")
    assert min(cv2.PSNR(a, b) for a, b in zip(written, shown, strict=True)) > 34


def encoded(path, pictures, pixels):
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = (*pictures[0].shape[:2], pixels)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_a_film_that_uses_all_levels_keeps_its_contrast(tmp_path):
    # Evenly grey, from black to white: no compression hides a wrong range.
    film = [np.full((90, 160, 3), level, np.uint8) for level in (0, 60, 128, 200, 255)]
    encoded(tmp_path / "film.ts", film, "yuvj420p").rename(tmp_path / "film.mp4")
    cut(tmp_path, [piece("a", range(5))])
    shown = [frame.mean() for frame in video.read(tmp_path / "clips/a.mp4")]
    assert np.abs(np.array(shown) - (0, 60, 128, 200, 255)).max() <= 3


def hdr(path, nits, curve):
    """One frame of each brightness, in the way that HDR films are written."""
    with av.open(str(path), "w", format="matroska") as container:
        told = "log-level=none:lossless=1:colorprim=bt2020:colormatrix=bt2020nc"
        stream = container.add_stream("libx265", rate=24, options={"x265-params": f"{told}:transfer={curve}"})
        stream.width, stream.height, stream.pix_fmt = 160, 90, "yuv420p10le"
        for bright in nits:
            frame = av.VideoFrame(160, 90, "yuv420p10le")
            for plane, level in zip(frame.planes, (64 + round(876 * LEVELS[curve](bright)), 512, 512), strict=True):
                plane.update(np.full(plane.buffer_size // 2, level, np.uint16).tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def pq(nits):
    """SMPTE ST 2084, equation 5.2."""
    power = (nits / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(nits):
    """ITU-R BT.2100, table 5, on a screen of 1,000 nits."""
    light = (nits / 1000) ** (1 / 1.2)
    return np.sqrt(3 * light) if light <= 1 / 12 else 0.17883277 * np.log(12 * light - 0.28466892) + 0.55991073


LEVELS = {"smpte2084": pq, "arib-std-b67": hlg}


@pytest.mark.parametrize("curve", LEVELS)
def test_hdr_is_written_as_what_an_ordinary_screen_shows(tmp_path, curve):
    nits = [0, 5, 20, 50, 100, 203, 800]
    hdr(tmp_path / "film.mp4", nits, curve)
    cut(tmp_path, [piece("a", range(len(nits)), still=4)])
    shown = np.array([frame.mean() for frame in video.read(tmp_path / "clips/a.mp4")])
    # 203 nits are paper white (ITU-R BT.2408), and BT.1886's exponent of 2.4 is what screens without HDR have.
    wanted = 255 * (np.minimum(nits, 203) / np.float64(203)) ** (1 / 2.4)
    assert np.abs(shown - wanted).max() < 6
    assert cv2.imread(str(tmp_path / "stills/a.jpg")).mean() == pytest.approx(shown[4], abs=3)
    with av.open(str(tmp_path / "clips/a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.pix_fmt, context.colorspace, context.color_primaries) == ("yuv420p", 1, 1)
        assert context.color_trc not in decode.HDR


def test_only_what_is_shown_of_an_hdr_film_is_converted(tmp_path):
    hdr(tmp_path / "film.mp4", [100] * 8, "smpte2084")
    with decode.open_film(tmp_path / "film.mp4") as (container, source):
        frames = cutting._in_sdr(enumerate(decode.frames(container, source)), {2, 5})
        assert [index for index, frame in frames if frame.format.name == "yuv420p"] == [2, 5]
    cut(tmp_path, [piece("a", [2, 3], still=5)])
    still, shown = cv2.imread(str(tmp_path / "stills/a.jpg")).mean(), video.read(tmp_path / "clips/a.mp4")
    assert [frame.mean() for frame in shown] == pytest.approx([still, still], abs=3)


def test_a_film_that_changes_its_size_is_refused(tmp_path):
    parts = [encoded(tmp_path / f"{height}.ts", numbered(6, height, 2 * height), "yuv420p") for height in (90, 180)]
    (tmp_path / "film.mp4").write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(ValueError, match="changes its size from 180x90 to 360x180 pixels"):
        cut(tmp_path, [piece("a", range(12), crop=(0, 0, 180, 90))])
    assert list((tmp_path / "clips").iterdir()) == []


def test_a_film_that_ends_too_early_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="ends at frame 100, but a clip reaches to frame 119"):
        cut(tmp_path, [piece("a", range(90, 120))])
    assert list((tmp_path / "clips").iterdir()) == []


def test_what_ffmpeg_complains_of_is_the_error(tmp_path):
    with pytest.raises(ValueError, match="ffmpeg failed with status"):
        cut(tmp_path, [piece("a", range(4))], recipe=RECIPE._replace(preset="no-such-preset"))


def test_a_sign_of_progress_comes_before_the_first_clip_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "PULSE_S", 0)
    video.write(tmp_path / "film.mp4", numbered(100), 24)
    told = []
    shown = cutting.Film(str(tmp_path / "film.mp4"), 1.0, 0, False)
    folders = str(tmp_path / "clips"), str(tmp_path / "stills")
    cutting.cut(shown, [piece("a", range(90, 95))], RECIPE, *folders, told.append)
    assert len(told) >= 95
    assert [one.clip_id for written in told for one in written] == ["a"]


def test_each_attempt_works_in_a_folder_of_its_own_that_names_the_film(tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "PULSE_S", 0)
    video.write(tmp_path / "film.mp4", numbered(8), 24)
    name, clips = "0123456789abcdef-000000", tmp_path / "clips"
    folders, written = set(), []

    def attempt(progress):
        shown = cutting.Film(str(tmp_path / "film.mp4"), 1.0, 0, False)
        cutting.cut(shown, [piece(name, range(4))], RECIPE, str(clips), str(tmp_path / "stills"), progress)

    def second(done):
        written.extend(done)
        folders.update(path.name for path in clips.iterdir() if path.is_dir())

    def first(done):
        # An older attempt is still at work when the next one starts.
        written.extend(done)
        if not folders:
            attempt(second)

    attempt(first)
    assert [(one.clip_id, one.reason) for one in written] == [(name, "")] * 2
    assert len(folders) == 2
    assert {folder.lstrip(".")[:16] for folder in folders} == {name[:16]}
    assert [path.name for path in clips.iterdir()] == [f"{name}.mp4"]
