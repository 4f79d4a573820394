import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

import parity
from brickreel.diffusion.iddpm import IDDPM
from brickreel.diffusion.sampling import ancestral, guided, noise_like, recorded, solve
from brickreel.models import load


@pytest.mark.parametrize("device", parity.DEVICES)
@pytest.mark.parametrize("name", ["plain10_c3", "ref10"])
def test_sampling_with_recorded_noise_equals_the_original(name, device):
    case, model = parity.on(device, parity.case("sampling_cases", name)), parity.model().to(device)
    steps, channels = case["meta"].tolist()
    null = model.y_embedder.y_embedding.expand(2, 1, -1, -1)
    sizes = parity.made_sizes(2, case["z"].shape[2], fps=8.0, device=device)
    denoise = guided(model, case["y"], null, 7.0, channels, mask=case["mask"], **sizes)
    draw = recorded([noise[:2] for noise in case["noises"]])
    with torch.no_grad():
        out = ancestral(denoise, case["z"], IDDPM(steps), draw, case.get("edit_mask"))
    assert (out.cpu() - case["out"]).abs().max() <= 1e-4 * case["out"].abs().max()


def test_guidance_moves_the_first_channels_only():
    def model(x, t, y, x_mask=None):
        return y.view(-1, 1, 1, 1, 1).expand(-1, 8, *x.shape[2:])

    x, t = torch.zeros(1, 4, 1, 2, 2), torch.zeros(1)
    out = guided(model, torch.tensor([3.0]), torch.tensor([1.0]), 2.0, 3)(x, t, None)
    assert out[0, :, 0, 0, 0].tolist() == [5, 5, 5, 3, 3, 3, 3, 3]
    with pytest.raises(ValueError, match="must be 0 to 4, not 5"):
        guided(model, torch.tensor([3.0]), torch.tensor([1.0]), 2.0, 5)(x, t, None)


def test_a_reference_frame_joins_at_its_level_and_is_kept_until_then():
    seen = []

    def denoise(x, t, x_mask):
        seen.append((x_mask[0].tolist(), x[0, 0, :, 0, 0].tolist()))
        return torch.zeros(1, 8, *x.shape[2:])

    x = torch.tensor([5.0, 0.5, 9.0]).view(1, 1, 3, 1, 1).expand(1, 4, 3, 1, 1)
    ratios = torch.tensor([[1.0, 0.5, 0.0]])
    ancestral(denoise, x, IDDPM(4), lambda: torch.zeros(1, 4, 3, 1, 1), ratios)
    assert [mask for mask, _ in seen] == [[True, False, False]] * 2 + [[True, True, False]] * 2
    assert [values[2] for _, values in seen[:-1]] == [9.0] * 3
    assert seen[0][1][1] == 0.5


def test_the_fast_solver_finds_the_mean_of_a_gaussian():
    """A model that knows the exact noise for data of one point leads every start there."""
    process, target = IDDPM(), torch.full((1, 4, 1, 2, 2), 0.3)

    def denoise(x, t, x_mask):
        t = t.long()
        shift = process.at("sqrt_alphas_cumprod", t, x) * target
        noise = (x - shift) / process.at("sqrt_one_minus_alphas_cumprod", t, x)
        return torch.cat([noise, torch.zeros_like(noise)], 1)

    solver = DPMSolverMultistepScheduler.from_config(
        load.scheduler("iddpm").config, algorithm_type="dpmsolver++", variance_type=None
    )
    counted = []
    out = solve(denoise, torch.randn(1, 4, 1, 2, 2), solver, 12, lambda: counted.append(1))
    assert torch.allclose(out, target, atol=0.02)
    assert len(counted) == 12


def test_the_schedulers_noise_levels_are_the_tables():
    scheduler = load.scheduler("iddpm")
    assert torch.allclose(scheduler.alphas_cumprod.float(), IDDPM().alphas_cumprod, rtol=2e-4)


def test_each_samples_noise_depends_on_its_generator_alone():
    def draw(*seeds):
        return noise_like(torch.zeros(len(seeds), 4, 2, 3, 3), [torch.Generator().manual_seed(s) for s in seeds])()

    both, alone = draw(1, 2), draw(2)
    assert torch.equal(both[1], alone[0])
    assert not torch.equal(both[0], both[1])
