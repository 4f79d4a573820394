"""What made a run's weights, as a checkpoint tells it: under other settings they would be another run's.

The data's order has an identity of its own (`training.order`). How training is carried out and looked at may change at
any time. So may `max_steps`, and `schedule` while there are steps to come, which then follow the new one.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from brickreel.config import Base, Run
from brickreel.models import load

MAY_CHANGE = {
    *("data", "seed"),  # the order tells them
    *("max_steps", "max_skipped", "max_unreadable"),
    *("backend", "zero_stage", "grad_checkpoint", "compile_kernels"),
    *("checkpoint_every", "keep_last", "keep_every", "keep_best"),
    *("gauge_every", "gauge_share", "gauge_bins", "gauge_clips", "sample_during_training"),
}


def of(base: Base, run: Run) -> dict[str, Any]:
    """JSON values by name; without the base model where its weights are not on this machine."""
    found = run.model_dump(mode="json", exclude=MAY_CHANGE)
    # With their order, in which a draw takes them: a run goes on in the one that it began with.
    found["mask_ratios"] = [list(item) for item in run.mask_ratios.items()]
    if run.objective == "rectified-flow":
        found["objective"] += " with logit-normal, shifted timesteps"  # with others it is another objective
    with suppress(FileNotFoundError):
        found["base.transformer"] = load.fingerprint("transformer", **base.transformer.model_dump())
    return found


def check(whose: str, stored: Mapping[str, Any], wanted: Mapping[str, Any], steps_left: bool) -> None:
    """Raise ValueError when weights were made by another recipe. What only one of the two tells is not compared."""
    names = stored.keys() & wanted.keys() - ({"schedule"} if steps_left else set())
    changed = sorted(name for name in names if _compared(name, stored) != _compared(name, wanted))
    if changed:
        raise ValueError(
            f"{whose} made with another {', '.join(changed)}: restore what was, or start a run of another name"
        )


def _compared(name: str, told: Mapping[str, Any]) -> Any:
    return dict(told[name]) if name == "mask_ratios" else told[name]  # pairs; older ones are a mapping
