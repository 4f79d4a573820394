import json

import pytest
import torch

import parity
from brickreel.models.stdit2 import STDiT2, embeddings
from brickreel.models.stdit2.attention import SelfAttention

CASES = ("img", "vid_even", "vid_odd", "vid_xmask", "vid_nomask")


def forward(model, case, **changes):
    given = {**parity.sizes(case), "mask": case.get("mask"), "x_mask": case.get("x_mask"), **changes}
    with torch.no_grad():
        return model(case["x"], case["t"], case["y"], **given)


@pytest.fixture(scope="module")
def model():
    return parity.model()


@pytest.mark.parametrize("device", parity.DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_forward_equals_the_original(name, device):
    case = parity.on(device, parity.case("forward_cases", name))
    out = forward(parity.model().to(device), case)
    assert out.dtype == torch.float32
    assert (out.cpu() - case["out"]).abs().max() < 1e-5


@pytest.mark.parametrize("device", parity.DEVICES)
@pytest.mark.parametrize("name", ["img", "vid_xmask"])
def test_bf16_rounds_as_the_original_does(name, device):
    case = parity.on(device, parity.case("forward_cases", name))
    out = forward(parity.model().to(device, torch.bfloat16), case)
    off = (out.cpu() - case["out_bf16"]).abs()
    # A unit in the last place of bf16 is 1/64 between 2 and 4. How sums are rounded depends on the CPU; timesteps which
    # are not rounded, or a model in fp32, are further off on average.
    assert off.max() <= 3 / 64
    assert off.mean() <= 0.0065


def test_padded_and_counted_text_masks_agree(model):
    case = parity.case("forward_cases", "vid_even")
    mask = torch.zeros(2, 12, dtype=torch.int64)
    mask[0, :5], mask[1, :9] = 1, 1
    padded = forward(model, case, mask=mask)
    assert (padded - forward(model, case, mask=[5, 9])).abs().max() < 5e-6
    shorter = {**case, "y": case["y"][:, :, :9]}
    assert (padded - forward(model, shorter, mask=mask[:, :9])).abs().max() < 5e-6


def test_a_mask_of_half_the_rows_serves_both_halves(model):
    case = parity.case("forward_cases", "vid_even")
    mask = case["mask"][:1]
    assert torch.equal(forward(model, case, mask=mask), forward(model, case, mask=mask.repeat(2, 1)))


def test_all_frames_noised_equals_no_frame_mask(model):
    case = parity.case("forward_cases", "vid_even")
    masked = forward(model, case, x_mask=torch.ones(2, 4, dtype=torch.bool))
    assert (masked - forward(model, case)).abs().max() < 5e-6


def test_dropped_text_keeps_the_prompts_mask(model):
    case = parity.case("forward_cases", "vid_even")
    null = {**case, "y": model.y_embedder.y_embedding.expand(2, 1, -1, -1)}
    dropped = forward(model, case, drop_text=torch.tensor([True, True]))
    assert torch.equal(dropped, forward(model, null))
    one = forward(model, case, drop_text=torch.tensor([True, False]))
    assert torch.allclose(one[0], dropped[0], atol=1e-6)
    assert torch.allclose(one[1], forward(model, case)[1], atol=1e-6)


@pytest.mark.parametrize("grid", ["4x4@512x512", "5x8@240x426", "22x40@360x640", "23x40@360x640", "30x30@480x480"])
def test_position_embedding_equals_the_original(grid):
    (H, W), (height, width) = ([int(n) for n in part.split("x")] for part in grid.split("@"))
    found = embeddings.position_embedding(H, W, 144, torch.tensor(float(height * width)), 512, torch.float32)
    assert (found - parity.arrays("pieces")[f"pos/{grid}"][0]).abs().max() < 1e-5


def test_scalar_embeddings_equal_the_original(model):
    pieces = parity.arrays("pieces")
    # An angle of t radians is known to half a unit in its last place; the exponential rounds as the CPU does.
    angle_error = pieces["tfreq/t"][:, None] * torch.finfo(torch.float32).eps / 2
    off = (embeddings.sinusoid(pieces["tfreq/t"]) - pieces["tfreq/emb256"]).abs()
    assert (off <= 1e-6 + angle_error).all()
    assert torch.allclose(model.t_embedder(pieces["tfreq/t"]), pieces["t_embedder"], atol=1e-6)


def test_rotation_equals_the_original():
    pieces = parity.arrays("pieces")
    rope = embeddings.RotaryEmbedding(72)
    assert torch.allclose(rope.freqs, pieces["rope/freqs"])
    cos, sin = rope(pieces["rope/in"].shape[-2])
    assert torch.allclose(embeddings.rotate(pieces["rope/in"], cos, sin), pieces["rope/out"], atol=1e-6)


def test_attention_equals_the_original(model, monkeypatch):
    # The reference is attention alone, without the modulated norm before it.
    monkeypatch.setattr("brickreel.models.stdit2.attention.modulated_norm", lambda x, shift, scale: x.clone())
    pieces, zero = parity.arrays("pieces"), torch.zeros(1)
    attention: SelfAttention = model.blocks[0].attn
    within = attention(pieces["attn/in"][:, None], zero, zero)[:, 0]
    assert torch.allclose(within, pieces["attn/spatial_out"], atol=1e-6)
    across = model.blocks[0].attn_temp(pieces["attn/in"][:, :, None], zero, zero, model.rope(10))[:, :, 0]
    assert torch.allclose(across, pieces["attn/temporal_out"], atol=1e-6)


def test_xl2_has_the_original_names_and_shapes():
    with torch.device("meta"):
        model = STDiT2.preset("XL/2")
    wanted = json.loads((parity.FOLDER / "stdit2_xl2_state_shapes.json").read_text())
    found = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == {name: list(shape) for name, shape in wanted.items()}
    assert len(found) == 707
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == 768_271_300
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 767_452_064


def test_fresh_weights_are_distributed_as_the_originals():
    torch.manual_seed(0)
    model = STDiT2(**parity.SIZES)
    wanted = json.loads((parity.FOLDER / "fresh_init_stats.json").read_text())
    for name, tensor in model.state_dict().items():
        shape, mean, deviation = wanted[name]
        assert list(tensor.shape) == shape
        slack = 4 * max(deviation, 1e-9) / tensor.numel() ** 0.5
        assert abs(float(tensor.mean()) - mean) < 2 * slack, name
        assert abs(float(tensor.std(correction=0)) - deviation) < 0.05 * deviation + slack, name


def test_under_autocast_scalars_are_rounded_as_in_a_model_of_that_precision(model):
    case = parity.case("forward_cases", "vid_even")
    exact = STDiT2(**parity.SIZES, deviations=("exact-scalars",)).eval()
    exact.load_state_dict(model.state_dict())

    def apart(of, autocast: bool) -> bool:
        """Whether timestep 501 is told from 500, which it is rounded to in bf16."""
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = [of(case["x"], torch.full((2,), t), case["y"], **parity.sizes(case)) for t in (500.0, 501.0)]
        return not torch.equal(*found)

    assert apart(model, autocast=False)
    assert not apart(model, autocast=True)
    assert apart(exact, autocast=True)
    assert not apart(parity.model().to(torch.bfloat16), autocast=False)


def test_deviations_change_what_they_name(model):
    case = parity.case("forward_cases", "vid_xmask")
    plain = forward(model, case)
    for deviation in ("norm-before-rope", "single-final-norm"):
        other = STDiT2(**parity.SIZES, deviations=(deviation,)).eval()
        other.load_state_dict(model.state_dict())
        assert (forward(other, case) - plain).abs().max() > 1e-3


def test_every_trained_parameter_gets_a_gradient(model):
    case = parity.case("forward_cases", "vid_xmask")
    trained = STDiT2(**parity.SIZES)
    trained.load_state_dict(model.state_dict())
    out = trained(case["x"], case["t"], case["y"], case["mask"], case["x_mask"], **parity.sizes(case))
    out.square().mean().backward()
    without = [name for name, p in trained.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert trained.rope.freqs.grad is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 3, 4, 6, 10)}, "x must be"),
        ({"x": torch.zeros(0, 4, 4, 6, 10)}, "x must be"),
        ({"x": torch.zeros(2, 4, 0, 6, 10)}, "x must be"),
        ({"x": torch.zeros(2, 4, 4, 0, 10)}, "x must be"),
        ({"t": torch.zeros(3)}, "timestep must be"),
        ({"y": torch.zeros(2, 1, 13, 48)}, "13 text tokens, the model takes 1 to 12"),
        ({"y": torch.zeros(2, 1, 12, 40)}, "y must be"),
        ({"y": torch.zeros(2, 2, 12, 48)}, "y must be"),
        ({"x_mask": torch.ones(2, 5, dtype=torch.bool)}, "x_mask must be"),
        ({"x_mask": torch.ones(2, 4)}, r"x_mask must be bool \[2, 4\], .* not torch.float32"),
        ({"drop_text": torch.ones(3, dtype=torch.bool)}, "drop_text must be"),
        ({"drop_text": torch.ones(2)}, "drop_text must be"),
        ({"fps": None}, "needs num_frames"),
        ({"mask": torch.ones(2, 11)}, "mask must be"),
        ({"mask": torch.ones(3, 12)}, "mask must be"),
        ({"mask": torch.ones(0, 12)}, "mask must be"),
        ({"mask": torch.tensor([[1] * 12, [0] * 12])}, "without any text token"),
        ({"mask": [4, 13]}, "mask"),
        ({"mask": [0, 3]}, "mask"),
        ({"height": torch.tensor([360.0])}, "height must be"),
        ({"ar": torch.ones(3)}, "ar must be"),
    ],
)
def test_wrong_shapes_are_named(model, change, words):
    case = {**parity.case("forward_cases", "vid_even"), **change}
    with pytest.raises(ValueError, match=words):
        forward(model, case, drop_text=case.get("drop_text"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden_size": 100}, "multiple of 12"),
        ({"num_heads": 5}, "multiple of 12"),
        ({"patch_size": (2, 2, 2)}, "patch_size"),
        ({"patch_size": (1, 0, 2)}, "patch_size"),
        *(
            ({name: 0}, f"{name} must be a whole number of at least 1, not 0")
            for name in (
                "depth",
                "hidden_size",
                "num_heads",
                "caption_channels",
                "model_max_length",
                "in_channels",
                "input_sq_size",
            )
        ),
        ({"depth": 1.5}, "depth must be a whole number"),
        ({"class_dropout_prob": 1.5}, "class_dropout_prob must be from 0 to 1"),
        ({"class_dropout_prob": -0.1}, "class_dropout_prob must be from 0 to 1"),
        ({"attn_implementation": "xformers"}, "choose from auto, sdpa, flash"),
        ({"compat": "opensora-2"}, "only 'opensora-1.1'"),
        ({"deviations": ("bright",)}, "choose from norm-before-rope"),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        STDiT2(**{**parity.SIZES, **settings})


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match="XL/2, tiny"):
        STDiT2.preset("XXL")


def test_a_saved_model_computes_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = STDiT2.from_pretrained(tmp_path)
    case = parity.case("forward_cases", "vid_even")
    assert torch.equal(forward(model, case), forward(again.eval(), case))


def test_more_heads_than_a_kernel_takes_are_attended_to_in_parts(model, monkeypatch):
    case = parity.case("forward_cases", "vid_even")

    def run():
        model.zero_grad(set_to_none=True)
        out = model(case["x"], case["t"], case["y"], **parity.sizes(case), mask=case["mask"])
        out.square().mean().backward()
        return out.detach(), {name: part.grad for name, part in model.named_parameters() if part.grad is not None}

    whole, gradients = run()
    monkeypatch.setattr("brickreel.models.stdit2.attention.MOST_HEADS", 7)
    parts, found = run()
    model.zero_grad(set_to_none=True)
    assert torch.allclose(parts, whole, atol=1e-6)
    assert gradients
    for name, gradient in gradients.items():
        assert torch.allclose(found[name], gradient, atol=1e-5), name
