import json
from pathlib import Path

import numpy as np
import pytest
import torch

from brickreel.config import RunData
from brickreel.training import showing

PARITY = Path(__file__).parents[1] / "data" / "parity"
POSES = RunData(time="poses", stride=1)
ORIGIN = RunData(time="frames", stride=4, assignment="opensora-1.1", fps_input="source")


def test_resizing_and_cropping_are_the_origins():
    stored = np.load(PARITY / "transform_cases.npz")
    names = sorted({name.partition("/")[0] for name in stored.files})
    assert len(names) == 5
    for name in names:
        frames, wanted = torch.from_numpy(stored[f"{name}/in"]), torch.from_numpy(stored[f"{name}/out"])
        found = showing.fill_and_crop(frames, *wanted.shape[2:])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_the_origins_windows_are_the_origins():
    for frames_there, frames, stride, start, _, wanted in json.loads((PARITY / "temporal_crop_seed3.json").read_text()):
        data = ORIGIN.model_copy(update={"stride": stride})
        assert start <= showing.last_start(frames_there, frames, data)
        assert showing.window(frames_there, frames, data, start).tolist() == wanted


@pytest.mark.parametrize("units", [16, 17, 40])
def test_windows_have_an_exact_stride_and_stay_inside(units):
    data = RunData(time="poses", stride=2)
    for start in showing.starts(units, 8, data, 3):
        shown = showing.window(units, 8, data, start)
        assert set(np.diff(shown)) == {2}
        assert 0 <= shown[0] <= shown[-1] < units


def test_starts_are_different_and_spread():
    assert showing.starts(16, 16, POSES, 4) == [0]
    assert showing.starts(116, 16, POSES, 4) == [12, 38, 62, 88]


@pytest.mark.parametrize(
    ("time", "in_poses", "wanted"),
    [
        ("poses", True, [0, 1, 3]),
        ("poses", False, [0, 2, 6]),  # the first frame of each pose
        ("frames", False, [0, 1, 3]),
        ("frames", True, [0, 0, 1]),  # the pose that stands in that frame of the film
    ],
)
def test_units_are_found_in_files_with_and_without_holds(time, in_poses, wanted):
    assert showing.file_frames(np.array([0, 1, 3]), time, [2, 3, 1, 2], in_poses).tolist() == wanted


def test_the_model_is_told_the_rate_it_is_shown_or_the_films_own_as_the_origin_did():
    assert showing.told_rate(POSES, 24.0, 12.0) == 12.0
    assert showing.told_rate(RunData(time="poses", stride=2), 24.0, 12.0) == 6.0
    assert showing.told_rate(RunData(time="frames", stride=4), 24.0, 12.0) == 6.0
    assert showing.told_rate(ORIGIN, 25.0, 12.0) == 25.0
    assert showing.told_rate(ORIGIN, None, None) == 24.0
    assert showing.told_rate(POSES, 24.0, 12.0, still=True) == 120.0


def test_crops_are_several_only_where_something_is_cut():
    assert showing.crop_places((360, 640), (180, 320), 3) == [0.5]
    assert showing.crop_places((480, 480), (180, 320), 3) == [0.0, 0.5, 1.0]
