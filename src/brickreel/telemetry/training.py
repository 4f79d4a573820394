"""One training run, summarised: its time, speed, ranks, learning curve, held-out loss, machines and energy."""

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from brickreel.telemetry import goodput, peaks, stragglers, usage
from brickreel.telemetry.digest import Belongs, Digest
from brickreel.telemetry.goodput import Attempt
from brickreel.telemetry.project import RunFiles
from brickreel.telemetry.recordings import DEAD_AFTER_S, Array

CURVE_POINTS = 240
SLACK_S = 2.0
"""Between the clocks of two nodes, and for a recorder that starts late."""
STARTING_S = 60.0
"""An attempt without steps and without an end counts as alive for so long."""
NOT_TOLD = "not measured with this backend"

Recorded = Sequence[Digest]


def attempts_of(run: RunFiles, recorded: Recorded) -> list[Attempt]:
    """The run's attempts, each as long as the recorder saw its processes.

    An attempt writes its first row when its ranks have met and passed the quick check, and one that was cut off writes
    no last one: the recorder was there before and after.
    """
    seen: dict[int, tuple[float, float]] = {}
    for item in recorded:
        if (number := attempt_of(run, item.span_s)) is not None:
            low, high = seen.get(number, item.span_s)
            seen[number] = (min(low, item.span_s[0]), max(high, item.span_s[1]))
    return goodput.attempts_of(run.attempts, run.steps, seen, _survived(run, recorded))


def saved_step(run: RunFiles) -> int:
    """The last step whose result lies in a checkpoint or in the final weights; 0 where there is none."""
    return max([*run.checkpoints, run.final_step or 0])


def _survived(run: RunFiles, recorded: Recorded) -> int | None:
    """The last step whose result survived; None while the run lives, or where that is not known.

    A run that finished keeps the steps up to its final weights, and may have been shortened to them. One is dead when
    its last attempt ended otherwise, took no step yet, or took none for long while its recorders have ended. A recorder
    ends with its stage. One that was killed alone proves nothing, which the steps then show; without a
    recording nobody can tell a dead run from a suspended one, and it counts as alive.
    """
    numbers = {row["attempt"] for row in run.attempts if row["event"] == "start"} | run.steps.keys()
    if not numbers:
        return None
    number = max(numbers)
    ends = [row["outcome"] for row in run.attempts if row["event"] == "end" and row["attempt"] == number]
    if ends:
        return run.final_step if ends[-1] == "ok" else saved_step(run)
    taken = run.steps.get(number)
    if taken is None or not len(taken.number):
        return saved_step(run)  # the attempt before it died
    seen = [item for item in recorded if attempt_of(run, item.span_s) == number]
    last_s = float(np.nanmax(taken.by_rank["time_s"]))
    dead = bool(seen) and all(item.ended for item in seen) and time.time() - last_s > DEAD_AFTER_S
    return saved_step(run) if dead else None


def members_of(runs: Sequence[RunFiles]) -> Belongs:
    """Says of a recording whether it belongs: one of training, to an attempt of the run whose name it bears."""
    by_name = {run.name: run for run in runs if run.attempts}
    return lambda stage, part, span_s: (
        stage != "train" or part not in by_name or attempt_of(by_name[part], span_s) is not None
    )


def allotted_s(attempts: Sequence[Attempt]) -> dict[str, float]:
    """Node -> seconds for which the attempts held it, recorded or not."""
    held: dict[str, float] = defaultdict(float)
    for attempt in attempts:
        for node in set(attempt.nodes):
            held[node] += attempt.length_s
    return held


def attempt_of(run: RunFiles, span_s: tuple[float, float]) -> int | None:
    """The attempt that a recording saw: the one that began in it, or that was still alive when it began.

    None for a start that never became an attempt, a look at a finished run, and an earlier training of that name.
    """
    first, last = span_s
    starts = sorted((row["time_s"], row["attempt"]) for row in run.attempts if row["event"] == "start")
    within = [number for begin, number in starts if first - SLACK_S <= begin <= last + SLACK_S]
    before = [(begin, number) for begin, number in starts if begin < first]
    if within or not before:
        return within[-1] if within else None
    begin, number = before[-1]
    ends = [row["time_s"] for row in run.attempts if row["event"] == "end" and row["attempt"] == number]
    times = run.steps[number].by_rank["time_s"] if number in run.steps else ()
    alive_until = ends[-1] if ends else float(np.nanmax(times)) if len(times) else begin + STARTING_S
    return number if first - SLACK_S <= alive_until else None


def summarise(
    run: RunFiles, attempts: Sequence[Attempt], recorded: Recorded, gpus: Sequence[dict[str, Any]], site: dict[str, str]
) -> dict[str, Any]:
    """Everything about the training of one run. What was not measured is None."""
    shares = goodput.shares(attempts)
    hours = sum(attempt.length_s * attempt.gpus for attempt in attempts) / 3600
    rank_hours = sum(attempt.length_s * attempt.ranks for attempt in attempts) / 3600
    lost, chance = stragglers.wait_for_slowest_pct(attempts)
    found = stragglers.find(attempts)
    has_gpus = any(attempt.gpus for attempt in attempts)
    return {
        "run": run.name,
        "state": _state(attempts),
        "attempts": [_attempt(attempt) for attempt in attempts],
        "world_size": attempts[-1].ranks if attempts else None,
        "gpus": attempts[-1].gpus if attempts else None,
        "nodes": sorted({item.node for item in recorded} | _nodes(run)),
        "steps_kept": int(sum(attempt.kept.sum() for attempt in attempts)),
        "steps_unsaved": _unsaved(attempts, saved_step(run)),
        "steps_computed": int(sum(len(attempt.steps) for attempt in attempts)),
        "last_step": int(max((attempt.steps[-1] for attempt in attempts if len(attempt.steps)), default=0)),
        "step_s_median": _median([wall for attempt in attempts for wall in goodput.step_wall(attempt)]),
        "wall_hours": sum(attempt.length_s for attempt in attempts) / 3600,
        "gpu_hours": hours if has_gpus else None,
        "rank_hours": rank_hours,
        "time_pct": shares,
        **goodput.throughput(attempts),
        **_flop_use(run, attempts, gpus),
        "data_wait_pct": goodput.data_wait_pct(attempts),
        "wait_for_slowest_pct": lost,
        "wait_for_slowest_by_chance_pct": chance,
        "stragglers": [_straggler(item) for item in found],
        "slow_nodes": [_slow_node(item) for item in stragglers.slow_nodes(found, attempts)],
        "slow_ranks_missing": _slow_ranks_missing(attempts),
        "ranks": _ranks(attempts),
        "gpu_mem_peak_gib": _gib(usage.largest(gpu["mem_peak_b"] for gpu in gpus)),
        "energy": _energy(gpus, hours if has_gpus else None, site, goodput.throughput(attempts)["clips_trained"]),
        "curve": _curve(attempts),
        "gauge": _gauge(run),
        "checkpoints": run.checkpoints,
        "exported": run.exported,
    }


def _state(attempts: Sequence[Attempt]) -> str:
    if not attempts:
        return "not started"
    outcome = attempts[-1].outcome
    return {"ok": "finished", "failed": "failed", "dropped": "stopped", None: "no end was recorded"}[outcome]


def _unsaved(attempts: Sequence[Attempt], saved: int) -> int:
    """Steps of a run that may still live, and that would be lost if it died now."""
    if not attempts or attempts[-1].outcome == "ok":
        return 0
    return int(sum((attempt.kept & (attempt.steps > saved)).sum() for attempt in attempts))


def _attempt(attempt: Attempt) -> dict[str, Any]:
    seconds: dict[str, float | None] = {**goodput.causes(attempt)}
    if not goodput.tells_communication(attempt):
        seconds["comm_exposed"] = None
    return {
        "attempt": attempt.number,
        "start_s": attempt.start_s,
        "hours": attempt.length_s / 3600,
        "ranks": attempt.ranks,
        "gpus": attempt.gpus,
        "first_step": int(attempt.steps[0]) if len(attempt.steps) else None,
        "last_step": int(attempt.steps[-1]) if len(attempt.steps) else None,
        "steps_redone": int((~attempt.kept & ~attempt.log.skipped).sum()),
        "steps_skipped": int(attempt.log.skipped.sum()),
        "outcome": attempt.outcome or "cut off",
        "reason": attempt.reason,
        "seconds": seconds,
    }


def _nodes(run: RunFiles) -> set[str]:
    return {node for row in run.attempts for node in row["nodes"] or ()}


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if len(values) else None


def _flop_use(run: RunFiles, attempts: Sequence[Attempt], gpus: Sequence[dict[str, Any]]) -> dict[str, Any]:
    flops = goodput.model_flops(attempts)
    names = {gpu["name"] for gpu in gpus if gpu["name"]}
    name = sorted(names)[0] if names else None
    peak = peaks.bf16_tflops(name)
    achieved = flops["tflop_per_s_per_gpu"]
    mfu = 100 * achieved / peak if achieved is not None and peak else None
    recomputed = float(setting(run.settings, "grad_checkpoint") or 0)
    # A forward pass is a third of forward and backward, and half of them where LoRA freezes the weights.
    forward = 1 / 2 if setting(run.settings, "lora") else 1 / 3
    why: str | None
    if peak is None:
        why = f"the peak of '{name}' is not in the table" if name else "no GPU"
    else:
        why = None if mfu is not None else "the step log has no FLOPs"
    return {
        **flops,
        "gpu_name": name,
        "peak_tflop_per_s": peak,
        "mfu_pct": mfu,
        "hfu_pct": None if mfu is None else mfu * (1 + recomputed * forward),
        "recomputes": recomputed > 0,
        "mfu_missing": why,
    }


def setting(settings: Any, name: str) -> Any:
    """A setting by name, however deep it stands."""
    if isinstance(settings, dict):
        if name in settings:
            return settings[name]
        for value in settings.values():
            if (found := setting(value, name)) is not None:
                return found
    return None


def _straggler(item: stragglers.Straggler) -> dict[str, Any]:
    return {
        "rank": item.rank,
        "node": item.node,
        "local_index": item.local_index,
        "slower_pct": item.slower_pct,
        "windows": item.windows,
        "of_windows": item.of_windows,
        "cost_hours": item.cost_rank_s / 3600,
    }


def _slow_node(item: stragglers.SlowNode) -> dict[str, Any]:
    return {
        "node": item.node,
        "ranks": item.ranks,
        "of_ranks": item.of_ranks,
        "slower_pct": item.slower_pct,
        "cost_hours": item.cost_rank_s / 3600,
    }


def _slow_ranks_missing(attempts: Sequence[Attempt]) -> str | None:
    """Why slow ranks were not looked for; None where they were."""
    if not any(attempt.ranks > 1 for attempt in attempts):
        return "a single rank" if attempts else "no step was taken yet"
    peers = [attempt for attempt in attempts if attempt.log.ranks > 1 and len(attempt.steps)]
    if not peers:
        return "no step was taken yet"
    if all(np.isnan(attempt.durations["local_s"]).all() for attempt in peers):
        return NOT_TOLD
    return None if any(stragglers.windows_of(len(attempt.steps)) for attempt in peers) else "too few steps to tell"


def _ranks(attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    """Per rank, over the attempts on the last one's nodes: own work, waiting, loading; medians in milliseconds."""
    stepped = [attempt for attempt in attempts if len(attempt.steps)]
    if not stepped:
        return []
    size, where = stepped[-1].log.ranks, stepped[-1].places
    alike = [attempt for attempt in stepped if (attempt.log.ranks, attempt.places) == (size, where)]
    columns = {
        name: np.concatenate([attempt.durations[name] for attempt in alike])
        for name in ("local_s", "comm_s", "data_s", "step_s")
    }
    samples = np.concatenate([attempt.durations["samples"] for attempt in alike])
    medians = {name: _column_median(values) for name, values in columns.items()}
    middle = _median([value for value in medians["local_s"] if value is not None])
    rows = []
    for rank in range(size):
        local = medians["local_s"][rank]
        rows.append(
            {
                "rank": rank,
                "node": where[rank][0] if rank < len(where) else None,
                "local_index": where[rank][1] if rank < len(where) else None,
                "local_ms": _ms(local),
                "local_vs_median_pct": 100 * (local / middle - 1) if local is not None and middle else None,
                "comm_ms": _ms(medians["comm_s"][rank]),
                "data_ms": _ms(medians["data_s"][rank]),
                "clips": int(np.nansum(samples[:, rank])),
                "spark": _spark(columns["local_s"][:, rank]),
            }
        )
    return rows


def _column_median(values: Array) -> list[float | None]:
    return [float(np.median(seen)) if len(seen := column[~np.isnan(column)]) else None for column in values.T]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _spark(values: Array, points: int = 40) -> list[float | None]:
    parts = np.array_split(values, min(points, len(values)))
    return [float(np.median(seen)) if len(seen := part[~np.isnan(part)]) else None for part in parts]


def _energy(
    gpus: Sequence[dict[str, Any]], gpu_hours: float | None, site: dict[str, str], clips: float | None
) -> dict[str, Any]:
    joules = usage.total(gpu["energy_j"] for gpu in gpus)
    kwh = None if joules is None else joules / 3.6e6
    recorded_pct = _recorded_pct(gpus, gpu_hours)
    whole = recorded_pct is None or recorded_pct >= usage.WHOLE_PCT
    prices = {name: price(site, variable) for name, variable in PRICES.items()}
    return {
        "kwh": kwh,
        "recorded_pct": recorded_pct,
        "joule_per_clip": joules / clips if joules is not None and clips and whole else None,
        "usd_gpu": _product(gpu_hours, prices["usd_per_gpu_hour"]),
        "usd_energy": _product(kwh, prices["usd_per_kwh"]),
        "co2_kg": _product(kwh, prices["kg_co2_per_kwh"]),
        **prices,
    }


def _recorded_pct(gpus: Sequence[dict[str, Any]], gpu_hours: float | None) -> float | None:
    """The share of the GPU time whose energy was read (%); None where none was. All of it but a last batch is all."""
    read_s = usage.total(gpu["energy_s"] for gpu in gpus)
    if read_s is None or not gpu_hours:
        return None
    whole_s = 3600 * gpu_hours
    return 100.0 if whole_s - read_s < usage.LAST_BATCH_S * len(gpus) else 100 * read_s / whole_s


PRICES = {
    "usd_per_gpu_hour": "BRICKREEL_USD_PER_GPU_HOUR",
    "usd_per_kwh": "BRICKREEL_USD_PER_KWH",
    "kg_co2_per_kwh": "BRICKREEL_KG_CO2_PER_KWH",
}


def price(site: dict[str, str], name: str) -> float | None:
    """A price of the site; None when it is not set or not a number."""
    try:
        value = float(site[name])
    except (KeyError, ValueError):
        return None
    return value if value >= 0 else None


def _gib(value: float | None) -> float | None:
    return None if value is None else value / 2**30


def _product(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a * b


def _curve(attempts: Sequence[Attempt]) -> dict[str, list[Any]]:
    """Loss, gradient norm and learning rate over steps that were not computed again: means of equal spans."""
    numbers = np.concatenate([attempt.steps[attempt.newest] for attempt in attempts] or [np.zeros(0, np.int64)])
    if not len(numbers):
        return {"step": [], "loss": [], "loss_low": [], "loss_high": [], "grad_norm": [], "lr": []}
    values = {
        name: np.concatenate([attempt.log.by_step[name][attempt.newest] for attempt in attempts])
        for name in ("loss", "grad_norm", "lr")
    }
    parts = np.array_split(np.argsort(numbers), min(CURVE_POINTS, len(numbers)))
    return {
        "step": [int(numbers[part[-1]]) for part in parts],
        "loss": [_safe(np.mean, values["loss"][part]) for part in parts],
        "loss_low": [_safe(np.min, values["loss"][part]) for part in parts],
        "loss_high": [_safe(np.max, values["loss"][part]) for part in parts],
        "grad_norm": [_safe(np.mean, values["grad_norm"][part]) for part in parts],
        "lr": [_safe(np.mean, values["lr"][part]) for part in parts],
    }


def _safe(reduce: Any, values: Array) -> float | None:
    seen = values[np.isfinite(values)]
    return float(reduce(seen)) if len(seen) else None


def asked_alike(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Readings of the held-out loss that asked what the newest one asked: only those make one curve."""
    return [row for row in rows if row.get("questions") == rows[-1].get("questions")]


def _gauge(run: RunFiles) -> dict[str, Any]:
    """The held-out loss: per set of weights and timestep bin, over steps; the latest reading of a step counts."""
    alike = asked_alike(run.gauge)
    latest = {(row["weights"], row["bin"], row["step"]): row for row in alike}
    series: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for (weights, index, _), row in sorted(latest.items(), key=lambda item: (item[0][0], item[0][1], item[0][2])):
        series[(weights, index)].append(row)
    return {
        "clips": max((row["clips"] or 0 for row in alike), default=0),
        "other_steps": sorted({row["step"] for row in run.gauge} - {row["step"] for row in alike}),
        "series": [
            {
                "weights": weights,
                "bin": index,
                "t_low": rows[0]["t_low"],
                "t_high": rows[0]["t_high"],
                "step": [row["step"] for row in rows],
                "loss": [row["loss"] for row in rows],
                "low": [row["low"] for row in rows],
                "high": [row["high"] for row in rows],
                "relative": [row["relative"] for row in rows],
            }
            for (weights, index), rows in series.items()
        ],
    }
