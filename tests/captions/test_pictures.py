import struct
import subprocess
import zlib

import av
import cv2
import numpy as np
import pytest

from brickreel.captions import pictures
from brickreel.films import ffmpeg


def write_counting(path, count, key_every, b_frames):
    """A clip whose frame n is grey 20 + 2n, so that each frame tells its number."""
    raw = b"".join(np.full((48, 64, 3), 20 + 2 * n, np.uint8).tobytes() for n in range(count))
    subprocess.run(
        [
            *(ffmpeg.program(), "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48"),
            *("-r", "24", "-i", "-", "-c:v", "libx264", "-crf", "1", "-pix_fmt", "yuv420p", "-g", str(key_every)),
            *("-keyint_min", str(key_every), "-sc_threshold", "0", "-bf", str(b_frames), str(path)),
        ],
        input=raw,
        check=True,
    )


@pytest.mark.parametrize("b_frames", [0, 3])
@pytest.mark.parametrize("key_every", [4, 12, 250])
def test_pictures_are_the_frames_they_say_they_are(tmp_path, key_every, b_frames):
    path = tmp_path / "a 'clip' ü.mp4"
    write_counting(path, 96, key_every, b_frames)
    wanted = [0, 9, 10, 48, 77, 95]
    taken = pictures.take(path, wanted, 64)
    assert [picture.shape for _, picture in taken] == [(48, 64, 3)] * 6
    for index, (number, picture) in zip(wanted, taken, strict=True):
        assert abs(number - index) <= 96 * pictures.TOLERANCE
        assert abs(picture.mean() - (20 + 2 * number)) < 1.6
        assert number == index or number % key_every == 0, "another frame than the wanted one must be a key frame"


def test_indices_may_repeat_and_come_in_any_order(tmp_path):
    write_counting(tmp_path / "a.mp4", 20, 250, 2)
    assert [number for number, _ in pictures.take(tmp_path / "a.mp4", [15, 3, 15], 64)] == [15, 3, 15]


def test_no_two_indices_are_given_one_key_frame(tmp_path):
    write_counting(tmp_path / "a.mp4", 96, 12, 0)
    assert [number for number, _ in pictures.take(tmp_path / "a.mp4", [43, 53, 57], 64)] == [48, 53, 60]


def test_sound_beside_the_pictures_does_not_matter(tmp_path):
    write_counting(tmp_path / "silent.mp4", 48, 12, 3)
    subprocess.run(
        [
            *(ffmpeg.program(), "-loglevel", "error", "-y", "-f", "lavfi", "-i", "sine=duration=2"),
            *("-i", str(tmp_path / "silent.mp4"), "-c:v", "copy", "-map", "0", "-map", "1", str(tmp_path / "a.mp4")),
        ],
        check=True,
    )
    ((number, picture),) = pictures.take(tmp_path / "a.mp4", [23], 64)
    assert abs(picture.mean() - (20 + 2 * number)) < 1.6


def converted(source, target, *options, before=()):
    command = [ffmpeg.program(), "-loglevel", "error", "-y", *before, "-i", str(source), *options, str(target)]
    subprocess.run(command, check=True)
    return target


def shown(path):
    """The mean of every frame that a player shows."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]


@pytest.mark.parametrize("key_every", [12, 24])
def test_frames_before_the_first_of_an_edit_list_are_not_counted(tmp_path, key_every):
    write_counting(tmp_path / "a.mp4", 96, key_every, 3)
    path = converted(tmp_path / "a.mp4", tmp_path / "b.mp4", "-c", "copy", before=("-ss", "1.8"))
    frames = shown(path)
    assert len(frames) < 60
    for index in range(len(frames)):
        ((number, picture),) = pictures.take(path, [index], 64)
        assert abs(number - index) <= len(frames) * pictures.TOLERANCE
        assert abs(picture.mean() - frames[number]) < 1.6
    with pytest.raises(ValueError, match="has not the frames"):
        pictures.take(path, [len(frames)], 64)


def test_streams_that_show_only_while_they_are_read(tmp_path):
    write_counting(tmp_path / "a.mp4", 48, 12, 0)
    path = converted(tmp_path / "a.mp4", tmp_path / "a.mpg", "-c:v", "mpeg1video", "-q:v", "2", "-bf", "0")
    frames = shown(path)
    for number, picture in pictures.take(path, [5, 24, 43], 64):
        assert abs(picture.mean() - frames[number]) < 1.6


def test_frame_that_is_shown_before_its_key_frame_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "TOLERANCE", 0)
    write_counting(tmp_path / "a.mp4", 48, 12, 0)
    options = "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"
    path = converted(tmp_path / "a.mp4", tmp_path / "b.mp4", "-c:v", "libx264", "-x264-params", options)
    frames = shown(path)
    for wanted in ([10], [11], [12], [11, 12, 13], range(48)):
        for number, picture in pictures.take(path, list(wanted), 64):
            assert abs(picture.mean() - frames[number]) < 0.1


def test_pictures_are_scaled_down_and_never_up(tmp_path):
    write_counting(tmp_path / "a.mp4", 4, 250, 0)
    assert pictures.take(tmp_path / "a.mp4", [2], 32)[0][1].shape == (24, 32, 3)
    assert pictures.take(tmp_path / "a.mp4", [2], 512)[0][1].shape == (48, 64, 3)


@pytest.mark.parametrize("content", [b"", b"no video", None])
def test_undecodable_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, OSError)):
        pictures.take(path, [0], 64)


def test_index_beyond_the_end_is_one_sentence(tmp_path):
    write_counting(tmp_path / "a.mp4", 4, 250, 0)
    with pytest.raises(ValueError, match="has not the frames"):
        pictures.take(tmp_path / "a.mp4", [40], 64)


def test_poses_are_spread_from_ten_to_ninety_percent():
    assert pictures.pose_frames(3, 100, None, False) == [10, 50, 90]
    assert pictures.pose_frames(1, 100, None, False) == [50]


def test_poses_are_found_under_their_holds():
    holds = [1, 1, 1, 1, 1, 10, 1, 1, 1, 1]
    assert pictures.pose_frames(3, sum(holds), holds, in_poses=False) == [1, 10, 18]
    assert pictures.pose_frames(3, 10, holds, in_poses=True) == [1, 5, 9]


def test_holds_that_do_not_fit_the_file_are_ignored():
    assert pictures.pose_frames(3, 100, [2, 2], in_poses=False) == [10, 50, 90]


def test_clip_without_frames_is_an_error():
    with pytest.raises(ValueError, match="no frames"):
        pictures.pose_frames(3, 0, None, False)


def test_still_with_a_strange_name_is_read_and_jpeg_round_trips(tmp_path):
    colours = np.zeros((40, 60, 3), np.uint8)
    colours[..., 0] = 200
    path = tmp_path / 'a "still"\nü.jpg'
    path.write_bytes(pictures.jpeg(colours, 95))
    found = pictures.read_still(path, 30)
    assert found.shape == (20, 30, 3)
    assert abs(found[..., 0].mean() - 200) < 4
    assert found[..., 2].mean() < 4
    assert cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR).shape == (40, 60, 3)


def test_empty_still_is_one_sentence(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="not a readable picture"):
        pictures.read_still(tmp_path / "a.jpg", 64)


def test_oversized_still_is_one_sentence(tmp_path):
    """Of more pixels than the decoder takes, which its header alone says."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, b"IDAT" + zlib.compress(b"\0" * 1000), b"IEND")
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    with pytest.raises(ValueError, match="not a readable picture"):
        pictures.read_still(tmp_path / "a.png", 64)
