"""Does the held-out loss tell how good the samples are? Rank correlation over checkpoints, whatever it turns out."""

from collections.abc import Mapping, Sequence
from typing import Any

from brickreel.evaluation import statistics

Rows = Sequence[Mapping[str, Any]]


def gauge_correlation(metrics: Rows, ceiling: Rows, gauge: Rows, weights: str) -> list[dict[str, Any]]:
    """Spearman's rho of every metric with the held-out loss, per timestep bin and for their mean.

    Metrics that are best near the held-out clips' value are taken by their distance from it. The base model counts as
    step 0. Positive rho: where the loss is lower, so is the metric.
    """
    at_best = {row["name"]: row["value"] for row in ceiling}
    losses = _losses(gauge, weights)
    results = []
    for name, values in _over_steps(metrics, weights).items():
        better = next(row["better"] for row in metrics if row["name"] == name)
        best = at_best.get(name)
        for (number, low, high), by_step in losses.items():
            steps = sorted(set(values) & set(by_step))
            if better == "near held-out" and best is None:
                estimate = statistics.not_measured("there is no held-out value to compare with")
            else:
                target = best if better == "near held-out" else None
                ours = [values[step] if target is None else abs(values[step] - target) for step in steps]
                estimate = statistics.spearman([by_step[step] for step in steps], ours)
            results.append(
                {
                    "metric": name,
                    "weights": weights,
                    "bin": number,
                    "t_low": low,
                    "t_high": high,
                    **estimate._asdict(),
                    "steps": steps,
                }
            )
    return results


def _over_steps(metrics: Rows, weights: str) -> dict[str, dict[int, float]]:
    """Metric -> step -> value, of the usual videos; metrics without any value are left out."""
    found: dict[str, dict[int, float]] = {}
    for row in metrics:
        usual = row["conditional"] and row["length"] == 1 and row["weights"] in ("base", weights)
        if usual and row["value"] is not None:
            found.setdefault(row["name"], {})[row["step"]] = row["value"]
    return found


def _losses(gauge: Rows, weights: str) -> dict[tuple[int | None, int | None, int | None], dict[int, float]]:
    """(bin, first timestep, one after the last) -> step -> loss; the mean over bins under (None, None, None).

    The loss is taken relative to step 0, so that no bin outweighs the others in the mean. Of a step that was read
    twice the newest reading counts.
    """
    found: dict[tuple[int | None, int | None, int | None], dict[int, float]] = {}
    for row in gauge:
        if row["weights"] == weights and row["relative"] is not None:
            found.setdefault((row["bin"], row["t_low"], row["t_high"]), {})[row["step"]] = row["relative"]
    if not found:
        return {}
    steps = set.intersection(*(set(by_step) for by_step in found.values()))
    mean = {step: sum(by_step[step] for by_step in found.values()) / len(found) for step in steps}
    return {**found, (None, None, None): mean}
