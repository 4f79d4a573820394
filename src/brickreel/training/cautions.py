"""Settings that are allowed and rarely meant. `plan` and the training log say so; none of them is refused."""

import math

from brickreel.config import Run

MOST_BASE = 0.05
"""Share of the base model in the moving average at a run's end that is worth a word."""
LITTLE_BASE = 0.01


def of(run: Run, ranks: int) -> list[str]:
    """A sentence for each of them."""
    return [sentence for sentence in (_dealing(run.micro_batches, ranks), _average(run)) if sentence]


def _dealing(micro_batches: int, ranks: int) -> str:
    """Ranks that wait: all compute the same number of micro-batches, and what is missing is padded."""
    rounds = -(-micro_batches // ranks)
    padding = rounds * ranks - micro_batches
    if not padding:
        return ""
    enough = -(-micro_batches // rounds)
    sentence = (
        f"micro_batches: {micro_batches} per step on {ranks} ranks leave {padding} of {rounds * ranks} turns to padding"
    )
    if enough < ranks:
        sentence += f": {enough} ranks are as fast, the other {ranks - enough} are paid for nothing"
    return sentence


def _average(run: Run) -> str:
    left = run.ema_decay**run.max_steps
    if left <= MOST_BASE:
        return ""
    wanted = LITTLE_BASE ** (1 / run.max_steps)
    wanted = round(wanted, 1 + math.ceil(-math.log10(1 - wanted)))
    return (
        f"ema_decay: {run.ema_decay} over {run.max_steps} steps leaves {100 * left:.0f} % of the base model in the"
        " moving average, which is what is sampled and exported unless sample.weights and export.weights are raw:"
        f" ema_decay: {wanted} would leave {100 * LITTLE_BASE:.0f} %"
    )
