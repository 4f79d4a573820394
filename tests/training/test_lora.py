import pytest
import torch
from torch.nn import Linear

import tiny
from brickreel.config import Lora
from brickreel.config.training import TARGETS
from brickreel.training import lora


def inputs():
    generator = torch.Generator().manual_seed(0)
    scalars = {"num_frames": 4.0, "height": 64.0, "width": 64.0, "ar": 1.0, "fps": 8.0}
    return {
        "x": torch.randn(1, 4, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([500]),
        "y": torch.randn(1, 1, 6, 16, generator=generator),
        **{name: torch.tensor([value]) for name, value in scalars.items()},
    }


@pytest.mark.parametrize("targets", [("qkv",), ("qkv", "proj", "q_linear", "kv_linear"), ("fc1",)])
def test_the_merged_model_computes_what_the_model_with_additions_does(targets):
    settings = Lora(rank=2, alpha=6, targets=targets)
    plain = tiny.transformer()
    base = {name: value.clone() for name, value in plain.state_dict().items()}
    added = lora.inject(plain, settings, 0)
    for name, value in added.named_parameters():
        if value.requires_grad:
            assert ".lora_" in name
            torch.nn.init.normal_(value, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    trained = {name: value.detach() for name, value in added.named_parameters() if value.requires_grad}
    merged = tiny.transformer()
    merged.load_state_dict(base)
    with torch.no_grad():
        before = merged(**inputs())
        merged.load_state_dict(lora.whole(base, trained, settings))
        after = merged(**inputs())
        torch.testing.assert_close(after, added(**inputs()), rtol=1e-4, atol=1e-4)
    assert (after - before).abs().max() > 1e-3


def test_without_additions_trained_weights_take_their_place():
    base = {"a.weight": torch.zeros(2), "b": torch.zeros(1)}
    assert lora.whole(base, {"b": torch.ones(1)}, None) == {"a.weight": base["a.weight"], "b": torch.ones(1)}
    with pytest.raises(ValueError, match="does not fit the base model, which has no c"):
        lora.whole(base, {"c": torch.ones(1)}, None)


def test_every_rank_starts_from_the_same_additions():
    first, again = (dict(lora.inject(tiny.transformer(), Lora(), 5).named_parameters()) for _ in range(2))
    names = [name for name in first if ".lora_A." in name]
    assert names
    assert all(torch.equal(first[name], again[name]) for name in names)


def test_unknown_layers_are_refused():
    with pytest.raises(ValueError, match=r"name no linear layer: choose from .*'qkv'"):
        lora.inject(tiny.transformer(), Lora().model_copy(update={"targets": ("nose",)}), 0)


def test_the_settings_know_the_layers_of_the_transformer():
    linear = {name.rpartition(".")[2] for name, part in tiny.transformer().named_modules() if isinstance(part, Linear)}
    assert {name for name in linear if not name.isdecimal()} == set(TARGETS)
