import json
from pathlib import Path

import pytest

from brickreel.config import RunData
from brickreel.config.training import RESOLUTIONS
from brickreel.training.assignment import Material, aspect_ratios, assign

PARITY = Path(__file__).parents[1] / "data" / "parity"

# Open-Sora 1.1's bucket tables: the two of the origin's runs, and stage 3's with shares below 1.
BUCKETS = {
    "32f": {"360p": {32: (1.0, 8)}},
    "64f": {"360p": {1: (1.0, 256), 32: (1.0, 8), 64: (1.0, 4)}},
    "stage3": {
        "144p": {1: (1.0, 200), 16: (1.0, 36), 32: (1.0, 18), 64: (1.0, 9), 128: (1.0, 4)},
        "256": {1: (0.8, 200), 16: (0.5, 22), 32: (0.5, 11), 64: (0.5, 6), 128: (0.8, 4)},
        "240p": {1: (0.8, 200), 16: (0.5, 22), 32: (0.5, 10), 64: (0.5, 6), 128: (0.5, 3)},
        "360p": {1: (0.5, 120), 16: (0.5, 9), 32: (0.5, 4), 64: (0.5, 2), 128: (0.5, 1)},
        "512": {1: (0.5, 120), 16: (0.5, 9), 32: (0.5, 4), 64: (0.5, 2), 128: (0.8, 1)},
        "480p": {1: (0.4, 80), 16: (0.6, 6), 32: (0.6, 3), 64: (0.6, 1), 128: (0.0, 1)},
        "720p": {1: (0.4, 40), 16: (0.6, 3), 32: (0.6, 1), 96: (0.0, 1)},
        "1024": {1: (0.3, 40)},
    },
}


def test_the_settings_know_the_resolutions_that_have_a_table():
    assert sorted(RESOLUTIONS) == sorted(aspect_ratios())


def data(name: str, stride: int, assignment: str = "opensora-1.1") -> RunData:
    return RunData(time="frames", stride=stride, buckets=BUCKETS[name], assignment=assignment)


@pytest.mark.parametrize("name", sorted(BUCKETS))
def test_assignment_repeats_the_origins_draws(name):
    cases = [case for case in json.loads((PARITY / "bucket_cases.json").read_text()) if case[0] == name]
    assert len(cases) == 150
    for _, frames, height, width, stride, seed, _, expected in cases:
        settings = data(name, stride)
        shape = assign(Material("clip", frames, height, width), settings, seed=seed).shape
        found = None
        if shape:
            batch = settings.buckets[shape.resolution][shape.frames][1]
            found = [shape.resolution, shape.frames, shape.ratio, shape.frames, shape.height, shape.width, batch]
        assert found == expected, (frames, height, width, seed)
