"""A training that goes on where it was stopped: weights, the optimizer's moments and the log, in a folder."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from brickreel import files
from brickreel.config import Schedule
from brickreel.progress import Bar
from brickreel.training.schedule import learning_rate

WARMUP_SHARE = 0.05
LOG_EVERY = 25

Loss = Callable[[int], tuple[Tensor, dict[str, float]]]
"""Of a step: what is minimised, and figures for the log."""


def train(
    label: str,
    module: nn.Module,
    loss: Loss,
    steps: int,
    lr: float,
    folder: Path,
    minutes: float | None = None,
    betas: tuple[float, float] = (0.9, 0.99),
) -> list[dict[str, Any]] | None:
    """Train in place with AdamW on one cycle of the learning rate, beginning where `folder` stands.

    Everything random must follow from the step's number: then a training in slices is the same as one at a stretch.

    Args:
        loss: called with the step, from 1.
        minutes: stop after about as many, with everything kept in `folder`; None: train to the end.

    Returns:
        The log, a row every 25 steps, which says of how many steps the cycle then was; None when there are steps left.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=betas, weight_decay=0.0)
    warmup = max(1, int(steps * WARMUP_SHARE))
    schedule = Schedule(
        kind="1cycle", lr=lr, final_lr=lr / 100, warmup_steps=warmup, cooldown_steps=max(1, steps - warmup)
    )
    first, rows = _load(folder, module, optimizer)
    before = rows[-1] if rows else {"wall_s": 0.0, "cpu_s": 0.0}
    wall, cpu = time.monotonic() - before["wall_s"], time.process_time() - before["cpu_s"]
    until = time.monotonic() + (minutes * 60 if minutes else float("inf"))
    sums: dict[str, float] = {}
    done = first
    with Bar(label, steps - first, "steps") as bar:
        for step in range(first + 1, steps + 1):
            optimizer.param_groups[0]["lr"] = learning_rate(schedule, step)
            value, figures = loss(step)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            done = step
            sums = {name: sums.get(name, 0.0) + figure for name, figure in figures.items()}
            bar.advance(note=f"loss {value.item():.4f}")
            if step % LOG_EVERY == 0 or step == steps:
                count = (step - 1) % LOG_EVERY + 1
                means = {name: round(total / count, 5) for name, total in sums.items()}
                times = {"wall_s": time.monotonic() - wall, "cpu_s": time.process_time() - cpu}
                rate = round(optimizer.param_groups[0]["lr"], 7)
                rounded = {name: round(value, 1) for name, value in times.items()}
                rows.append({"step": step, "of": steps, "lr": rate, **means, **rounded})
                sums = {}
                if time.monotonic() > until:
                    break
    _save(folder, done, module, optimizer, rows)
    return rows if done == steps else None


def _save(folder: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, rows: list[Any]) -> None:
    tensors = {f"module.{name}": tensor.detach().clone() for name, tensor in module.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor.clone() for name, tensor in moments.items()}
    with files.replacing(folder / "state.safetensors") as temporary:
        save_file(tensors, temporary)
    files.write_json(folder / "state.json", {"step": step, "rows": rows})


def _load(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict[str, Any]]]:
    """Steps done, and their log."""
    if not (folder / "state.json").is_file():
        return 0, []
    tensors = load_file(folder / "state.safetensors")
    module.load_state_dict(
        {name.removeprefix("module."): value for name, value in tensors.items() if name.startswith("module.")}
    )
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, moment = name.split(".")
            moments.setdefault(int(number), {})[moment] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    stored = files.read_json(folder / "state.json")
    return stored["step"], stored["rows"]
