from types import SimpleNamespace

import pytest
import torch

from brickreel import config
from brickreel.evaluation import generation
from brickreel.models.pipeline import OpenSoraPipeline


@pytest.mark.parametrize(("kind", "dtype"), [("cuda", torch.bfloat16), ("cpu", torch.float32)])
def test_parts_are_loaded_in_the_precision_that_they_are_used_in(kind, dtype, monkeypatch):
    asked = {}

    def from_base(base, objective, **options):
        asked.update(options)
        transformer = torch.nn.Linear(1, 1, dtype=options["dtype"])
        nothing = SimpleNamespace(to=lambda *_: None, set_progress_bar_config=lambda **_: None)
        return SimpleNamespace(**vars(nothing), transformer=transformer)

    monkeypatch.setattr(OpenSoraPipeline, "from_base", from_base)
    monkeypatch.setattr(generation, "choose_device", lambda *_: torch.device(kind))
    made = generation.Generation(config.Base(), config.Sample(), config.Run(), 0)
    assert asked == {"dtype": dtype}
    assert made.base["weight"].dtype == dtype
