"""The plan against what happened."""

from collections.abc import Mapping
from typing import Any

from brickreel.telemetry.usage import WHOLE_PCT

# Name in plan.json -> (where the actual value stands in the run's summary, unit)
COMPARED = {
    "wall_h": (("wall_hours",), "h"),
    "gpu_hours": (("gpu_hours",), "GPU-h"),
    "energy_kwh": (("energy", "kwh"), "kWh"),
    "usd": (("energy", "usd_gpu"), "USD"),
    "memory_gib": (("gpu_mem_peak_gib",), "GiB of GPU memory"),
    "steps": (("steps_kept",), "steps"),
}

OF_ENERGY = ("kwh", "usd_energy")


def compare(plan: Mapping[str, Any] | None, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of quantity, planned value with its range, actual value, unit; only what the plan forecast."""
    rows = []
    for name, (path, unit) in COMPARED.items():
        planned: Any = (plan or {}).get(name)
        low = high = None
        if isinstance(planned, Mapping):
            planned, low, high = planned.get("value", planned.get("total")), planned.get("low"), planned.get("high")
        if isinstance(planned, int | float):
            energy = run.get("energy") or {}
            if name == "usd" and energy.get("usd_per_gpu_hour") is None:
                # As the plan: without a price of GPU-hours, money is that of their electricity.
                path, unit = ("energy", "usd_energy"), "USD of electricity"
            actual: Any = run
            for key in path:
                actual = actual.get(key) if isinstance(actual, Mapping) else None
            if path[-1] in OF_ENERGY and (energy.get("recorded_pct") or WHOLE_PCT) < WHOLE_PCT:
                actual = None  # a part of it says nothing about the plan
            rows.append({"what": name, "planned": planned, "low": low, "high": high, "actual": actual, "unit": unit})
    return rows
