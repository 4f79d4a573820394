import pytest

from brickreel.config import Schedule
from brickreel.training.schedule import learning_rate

ORIGIN_32F = Schedule(kind="1cycle", start_lr=1e-7, lr=1e-4, final_lr=1e-5, warmup_steps=1500, cooldown_steps=2500)
ORIGIN_64F = Schedule(kind="cosine_const", start_lr=1e-7, lr=1e-5, warmup_steps=500)


@pytest.mark.parametrize(
    ("step", "rate"), [(750, (1e-7 + 1e-4) / 2), (1500, 1e-4), (2750, (1e-4 + 1e-5) / 2), (4000, 1e-5), (99999, 1e-5)]
)
def test_1cycle_rises_falls_and_stays(step, rate):
    assert learning_rate(ORIGIN_32F, step) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(("step", "rate"), [(250, (1e-7 + 1e-5) / 2), (500, 1e-5), (5000, 1e-5)])
def test_cosine_const_rises_and_stays(step, rate):
    assert learning_rate(ORIGIN_64F, step) == pytest.approx(rate, rel=1e-12)


def test_rates_rise_without_a_step_backwards_and_constant_warms_up_linearly():
    rates = [learning_rate(ORIGIN_32F, step) for step in range(1, 1501)]
    assert rates == sorted(rates)
    warm = Schedule(kind="constant", lr=1.0, start_lr=0.0, warmup_steps=4)
    assert [learning_rate(warm, step) for step in (1, 2, 3, 4, 5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
