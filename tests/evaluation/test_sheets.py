import numpy as np
import pytest
from PIL import Image

from brickreel.evaluation import sheets


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
    video = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    assert [int(frame.item()) for frame in sheets.spread(video, 4)] == [0, 3, 6, 9]
