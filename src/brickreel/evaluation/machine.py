"""What the run will run on, and at which price: facts of the cluster, from the environment."""

import os
from collections.abc import Mapping
from typing import NamedTuple

VARIABLES = {
    "BRICKREEL_GPU": "GPU model as NVML names it, such as H100",
    "BRICKREEL_GPUS": "number of GPUs of a training run, over all nodes",
    "BRICKREEL_USD_PER_GPU_HOUR": "price of one GPU for one hour, in USD",
    "BRICKREEL_USD_PER_KWH": "price of electricity in USD per kWh, for who owns the GPUs",
}


class Machine(NamedTuple):
    """None where it is not known."""

    gpu: str | None = None
    gpus: int | None = None
    usd_per_gpu_hour: float | None = None
    usd_per_kwh: float | None = None


def from_environment(environment: Mapping[str, str] | None = None) -> Machine:
    """Read the BRICKREEL_* variables that `slurm/site.env` sets. Raises ValueError naming one that is no number."""
    env = os.environ if environment is None else environment
    gpus = _number(env, "BRICKREEL_GPUS")
    if gpus is not None and (gpus != int(gpus) or gpus < 1):
        raise ValueError(
            f"BRICKREEL_GPUS={env['BRICKREEL_GPUS']!r} is not a count: it is the {VARIABLES['BRICKREEL_GPUS']}"
        )
    return Machine(
        (env.get("BRICKREEL_GPU") or "").strip() or None,
        None if gpus is None else int(gpus),
        _number(env, "BRICKREEL_USD_PER_GPU_HOUR"),
        _number(env, "BRICKREEL_USD_PER_KWH"),
    )


def _number(env: Mapping[str, str], name: str) -> float | None:
    text = (env.get(name) or "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} is not a number: it is the {VARIABLES[name]}") from None
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={text!r} must be 0 or more: it is the {VARIABLES[name]}")
    return value
