import numpy as np
import pytest
from PIL import Image, ImageDraw

from brickreel.evaluation import sheets
from brickreel.films import video


def test_a_sheet_of_more_pictures_than_one_looks_at_shows_some(tmp_path):
    picture = np.zeros((64, 64, 3), np.uint8)
    rows = [[picture] * 200 for _ in range(1000)]
    sheets.grid(tmp_path / "a.jpg", rows, [str(row) for row in range(1000)], [str(step) for step in range(200)], "many")
    width, height = Image.open(tmp_path / "a.jpg").size
    assert ((width - 266) // 140, height // 140) == (sheets.MOST_COLUMNS, sheets.MOST_ROWS)


def test_sheet_holds_every_picture_where_its_labels_say(tmp_path):
    red, blue = np.full((64, 64, 3), (250, 0, 0), np.uint8), np.full((64, 96, 3), (0, 0, 250), np.uint8)
    path = tmp_path / "a 'sheet'.jpg"
    sheets.grid(
        path, [[red, blue], [None, red]], ["a red brick\nwith a line break", "x" * 500], ["0", "250"], "T" * 400
    )
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    reddish = (picture[..., 0] > 200) & (picture[..., 1] < 60)
    bluish = (picture[..., 2] > 200) & (picture[..., 0] < 60)
    assert np.argwhere(reddish)[:, 1].min() < np.argwhere(bluish)[:, 1].min()
    assert reddish.sum() > 1.8 * 132 * 132
    assert bluish.sum() > 0.9 * 132 * 198


def test_sheet_without_pictures_or_with_wrong_labels_is_refused_and_leaves_no_file(tmp_path):
    path = tmp_path / "sheet.jpg"
    with pytest.raises(ValueError, match="no pictures"):
        sheets.grid(path, [[None]], ["a"], ["b"], "t")
    with pytest.raises(ValueError, match="one label"):
        sheets.grid(path, [[None]], [], ["b"], "t")
    assert list(tmp_path.iterdir()) == []


def test_spread_takes_first_and_last_pose():
    assert sheets.spread(10, 4) == [0, 3, 6, 9]
    assert sheets.spread(2, 4) == [0, 0, 1, 1]


def test_pictures_hold_what_a_sheet_shows_and_nothing_else_of_the_video(tmp_path):
    frames = np.repeat(np.arange(0, 240, 10, dtype=np.uint8), 480 * 640 * 3).reshape(-1, 480, 640, 3)
    video.write(tmp_path / "a.mp4", frames, 8.0)
    found = sheets.pictures(tmp_path / "a.mp4", [0, 23])
    assert [picture.shape for picture in found] == [(240, 320, 3)] * 2
    assert [abs(float(picture.mean()) - level) < 3 for picture, level in zip(found, (0, 230), strict=True)] == [
        True
    ] * 2
    assert found[0].base is None or found[0].base.nbytes <= 2 * found[0].nbytes


def test_letters_that_no_font_here_has_are_left_out_and_a_text_of_such_is_named_otherwise(monkeypatch):
    assert sheets.readable("a \U00013000 bird", "id") == "a  bird"
    assert sheets.readable("\U00013000\U00013001", "id") == "id"
    if sheets._font("DejaVuSans.ttf", sheets.TEXT):
        assert sheets.readable("красный кирпич", "id") == "красный кирпич"
    monkeypatch.setattr(sheets, "FONTS", ("",))
    assert sheets.readable("a red bríck: ünd", "id") == "a red brck: nd"
    assert sheets.readable("красный кирпич", "id") == "id"


def test_a_label_of_wide_letters_stays_left_of_its_pictures(tmp_path):
    picture = np.full((132, 132, 3), 255, np.uint8)
    sheets.grid(tmp_path / "a.jpg", [[picture]], ["W" * 200], ["0"], "t")
    assert sheets._letters(ImageDraw.Draw(Image.new("RGB", (9, 9))), "W" * 200, sheets._font_for("W", 15)) < 20
    assert sheets._letters(ImageDraw.Draw(Image.new("RGB", (9, 9))), "i" * 200, sheets._font_for("i", 15)) == 26
