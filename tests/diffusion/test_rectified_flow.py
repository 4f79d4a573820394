import pytest
import torch

from brickreel.diffusion.rectified_flow import RectifiedFlow, euler, logit_normal, resolution_shift, shifted


def test_the_path_is_straight_and_the_target_its_direction():
    flow, x0, noise = RectifiedFlow(), torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)
    assert torch.equal(flow.add_noise(x0, torch.zeros(2), noise), x0)
    assert torch.equal(flow.add_noise(x0, torch.full((2,), 1000.0), noise), noise)
    x_mask = torch.tensor([[True, True, True], [False, True, True]])
    given = []

    def model(x, t, x_mask):
        given.append(x)
        return torch.cat([x0 - noise, torch.full_like(x0, 99.0)], 1)

    losses = flow.training_losses(model, x0, torch.tensor([300, 700]), noise, x_mask=x_mask)
    assert torch.allclose(losses["loss"], torch.zeros(2), atol=1e-6)
    assert torch.equal(given[0][1, :, 0], x0[1, :, 0])


def test_a_model_without_variances_is_trained_and_sampled():
    x0, noise = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)
    losses = RectifiedFlow().training_losses(lambda x, t, x_mask: x0 - noise, x0, torch.tensor([300, 700]), noise)
    assert torch.allclose(losses["loss"], torch.zeros(2), atol=1e-6)
    assert torch.allclose(euler(lambda x, t, x_mask: x0 - noise, noise, 4), x0, atol=1e-5)


def test_clean_frames_do_not_count():
    def model(x, t, x_mask):
        return torch.zeros(1, 8, 2, 1, 1)

    x0 = torch.tensor([[3.0, 1.0]]).view(1, 1, 2, 1, 1).expand(1, 4, 2, 1, 1)
    loss = RectifiedFlow().training_losses(
        model, x0, torch.tensor([500]), torch.zeros_like(x0), x_mask=torch.tensor([[False, True]])
    )
    assert loss["loss"].tolist() == [1.0]


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (7, 1.0), (20, 3.0)])
def test_euler_follows_a_straight_field_exactly(steps, shift):
    target, start = torch.full((1, 4, 2, 2, 2), 0.7), torch.randn(1, 4, 2, 2, 2)
    out = euler(lambda x, t, x_mask: torch.cat([target - start, target], 1), start, steps, shift)
    assert torch.allclose(out, target, atol=1e-5)


def test_a_kept_frame_is_never_moved_and_an_edited_one_joins_late():
    masks = []

    def denoise(x, t, x_mask):
        masks.append(x_mask[0].tolist())
        return torch.ones(1, 8, *x.shape[2:])

    x = torch.zeros(1, 4, 3, 1, 1)
    out = euler(denoise, x, 4, draw=lambda: torch.zeros_like(x), edit_ratio_BT=torch.tensor([[1.0, 0.5, 0.0]]))
    assert masks == [[True, False, False]] * 2 + [[True, True, False]] * 2
    assert out[0, 0, :, 0, 0].tolist() == pytest.approx([1.0, 0.5, 0.0])


def test_timesteps_are_moved_towards_noise():
    share = torch.tensor([0.0, 0.5, 1.0])
    assert shifted(share, 3.0).tolist() == pytest.approx([0.0, 0.75, 1.0])
    assert resolution_shift(512, 512, 1) == 1.0
    assert resolution_shift(360, 640, 34) == pytest.approx(2.9647, abs=1e-3)
    assert resolution_shift(64, 64, 16) == 1.0, "never towards data"
    normal = torch.tensor([-3.0, 0.0, 1.5])
    drawn = [logit_normal(float(number), 3.0) for number in normal]
    assert drawn == pytest.approx((1000 * shifted(normal.sigmoid(), 3.0)).tolist())
    assert logit_normal(0.0) == 500
    with pytest.raises(ValueError, match="at least 1 step"):
        euler(lambda x, t, m: x, share, 0)
