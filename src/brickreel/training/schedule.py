"""Learning rate as a function of the step: a resumed run needs no state for it."""

import math

from brickreel.config import Schedule


def learning_rate(schedule: Schedule, step: int) -> float:
    """The rate of a step, from 1.

    `cosine_const` and `1cycle` rise as half a cosine from `start_lr`; the last step of the warm-up has `lr`.
    """
    if step <= schedule.warmup_steps:
        share = step / schedule.warmup_steps
        rise = share if schedule.kind == "constant" else _half_cosine(share)
        return schedule.start_lr + (schedule.lr - schedule.start_lr) * rise
    if schedule.kind != "1cycle":
        return schedule.lr
    beyond = step - schedule.warmup_steps
    if beyond >= schedule.cooldown_steps:
        return schedule.final_lr
    return schedule.lr + (schedule.final_lr - schedule.lr) * _half_cosine(beyond / schedule.cooldown_steps)


def _half_cosine(share: float) -> float:
    return (1 - math.cos(math.pi * share)) / 2
