import pytest
import torch

import parity
from brickreel.diffusion.iddpm import IDDPM, masked_mean, spaced_timesteps

# MKL's square roots and logarithms differ in the last place from one kind of CPU to another, hence the original's own.
ROUNDED_BY_CPU = {
    *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_log_variance_clipped"),
    *("posterior_mean_coef1", "posterior_mean_coef2"),
}


@pytest.mark.parametrize("steps", [1000, 10, 30, 50, 100, 250])
def test_tables_equal_the_original_to_the_bit(steps):
    label = "full" if steps == 1000 else str(steps)
    process = IDDPM(steps)
    wanted = parity.case("diffusion_tables", label)
    assert len(wanted) >= 3
    assert set(wanted) - ROUNDED_BY_CPU
    for name, values in wanted.items():
        places = 2 * torch.finfo(torch.float32).eps if name in ROUNDED_BY_CPU else 0.0
        assert torch.allclose(getattr(process, name), values, rtol=places, atol=0.0), name


@pytest.mark.parametrize("device", parity.DEVICES)
@pytest.mark.parametrize("name", ["nomask", "xmask"])
def test_losses_and_gradient_equal_the_original(name, device):
    case, model = parity.on(device, parity.case("train_loss_cases", name)), parity.model().to(device)
    kwargs = {"y": case["y"], "mask": case["mask"], **parity.made_sizes(3, case["x0"].shape[2], device=device)}
    losses = IDDPM().training_losses(model, case["x0"], case["t"], case["noise"], kwargs, case.get("x_mask"))
    for key in ("loss", "mse", "vb"):
        assert torch.allclose(losses[key], case[key], atol=1e-5), key
    losses["loss"].mean().backward()
    squares = sum(p.grad.double().square().sum() for p in model.parameters() if p.grad is not None)
    assert float(squares.sqrt()) == pytest.approx(float(case["grad_norm"]), rel=1e-5)


def test_clean_frames_do_not_count():
    value = torch.zeros(1, 2, 4, 3, 3)
    value[:, :, 1] = 8.0
    x_mask = torch.tensor([[False, True, True, False]])
    assert masked_mean(value, x_mask).tolist() == [4.0]
    assert masked_mean(value, None).tolist() == [2.0]


def test_a_model_without_variances_is_refused_in_a_sentence():
    x0, t = torch.randn(1, 4, 2, 2, 2), torch.tensor([5])
    with pytest.raises(ValueError, match="IDDPM needs a model with pred_sigma"):
        IDDPM().training_losses(lambda x, t, x_mask: x, x0, t, torch.randn_like(x0))


def test_clean_frames_carry_the_first_noise_level():
    process, x0, noise = IDDPM(), torch.randn(1, 4, 2, 3, 3), torch.randn(1, 4, 2, 3, 3)
    noised = process.noised(x0, torch.tensor([900]), noise, torch.tensor([[True, False]]))
    assert torch.equal(noised[:, :, 1], process.add_noise(x0, torch.tensor([0]), noise)[:, :, 1])
    assert torch.equal(noised[:, :, 0], process.add_noise(x0, torch.tensor([900]), noise)[:, :, 0])


@pytest.mark.parametrize("count", [0, 1001])
def test_step_counts_out_of_range_are_refused(count):
    with pytest.raises(ValueError, match="1 to 1000 steps"):
        spaced_timesteps(count)


def test_p2_weights_count_errors_of_the_clean_latents_alike_where_signal_prevails():
    process = IDDPM()
    t = torch.tensor([0, 10, 999])
    snr = (process.alphas_cumprod / (1 - process.alphas_cumprod))[t]

    found = process.p2_weights(t, k=0.01, gamma=1.0)

    torch.testing.assert_close((found * snr)[:2], torch.full((2,), 0.01), rtol=1e-2, atol=0)
    assert 0.99 < found[2] < 1
