"""The report for a terminal, 80 columns wide: what a person wants to know at the end of a run."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from brickreel.telemetry.render.numbers import hours_scale, plain
from brickreel.telemetry.render.words import CAUSE_WORDS
from brickreel.telemetry.training import NOT_TOLD
from brickreel.telemetry.usage import WHOLE_PCT

WIDTH = 80
LABEL, METER = 30, 34
MOST_NODES = 16
MOST_FINDINGS = 12


def text(summary: Mapping[str, Any]) -> str:
    """The whole text, ending with a line break."""
    lines = ["=" * WIDTH, clean(summary["project"]).center(WIDTH).rstrip(), "=" * WIDTH]
    lines += _stages(summary["stages"])
    for run in summary["runs"]:
        lines += ["", *_run(run)]
    lines += ["", *_findings(summary["findings"])]
    if summary["gaps"]:
        lines += [
            "",
            *wrapped(f"{len(summary['gaps'])} things could not be shown; the page lists them under Gaps.", ""),
        ]
    return "\n".join(lines) + "\n"


def clean(value: object) -> str:
    """A text from a file or a person, without characters that steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def wrapped(sentence: str, indent: str, first: str | None = None) -> list[str]:
    """Lines of at most 80 columns."""
    return textwrap.wrap(
        clean(sentence), WIDTH, initial_indent=indent if first is None else first, subsequent_indent=indent
    )


def meter(name: str, percent: float | None, note: str = "") -> str:
    """`  goodput          [||||||||        ]  41.2 %`; what was not measured is said."""
    if percent is None:
        return f"  {name:<{LABEL}} not measured{f' ({note})' if note else ''}"[:WIDTH]
    bars = round(METER * min(max(percent, 0.0), 100.0) / 100)
    return f"  {name:<{LABEL}}[{'|' * bars:<{METER}}] {percent:6.1f} %"


def _stages(stages: list[dict[str, Any]]) -> Iterator[str]:
    if not stages:
        yield "No stage was recorded."
        return
    yield f"{'stage':<11}{'elapsed, s':>12}{'cores':>8}{'of':>6}{'memory, GiB':>13}{'of':>8}{'core-hours':>12}"
    for row in stages:
        limit = row["mem_limit_gib"]
        yield (
            f"{row['stage']:<11}{row['elapsed_s']:>12,.1f}{_number(row['cores_mean'], 2):>8}"
            f"{_number(row['cores_allowed'], 0):>6}{_number(row['mem_peak_gib'], 2):>13}"
            f"{_number(limit, 0):>8}{_number(row['cpu_core_hours'], 3):>12}"
        )


def counted(number: int, noun: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{plain(number)} {noun}{'' if number == 1 else 's'}"


def _number(value: float | None, digits: int | None = None) -> str:
    return "-" if value is None else plain(value, digits)


def _run(run: Mapping[str, Any]) -> Iterator[str]:
    head = f"Run {clean(run['run'])}: {run['state']}, {plain(run['steps_kept'])} steps"
    yield head
    yield "-" * min(len(head), WIDTH)
    if run["time_pct"] is None:
        yield "  no training time was recorded yet"
        return
    hours, unit = (run["gpu_hours"], "GPU-hours") if run["gpu_hours"] is not None else (run["rank_hours"], "rank-hours")
    scale, unit = hours_scale(hours, unit)
    ranks, nodes = counted(run["world_size"], "rank"), counted(len(run["nodes"]), "node")
    yield f"  {'used':<{LABEL}} {plain(hours * scale)} {unit} on {ranks}, {nodes}"
    speed = f"{_number(run['clips_per_hour'], 0)} clips/h, {_number(run['step_s_median'], 3)} s per step"
    yield f"  {'speed':<{LABEL}} {speed}"
    energy = run["energy"]
    if energy["kwh"] is not None:
        cost = f", {plain(energy['usd_gpu'], 2)} USD" if energy["usd_gpu"] is not None else ""
        carbon = f", {plain(energy['co2_kg'])} kg CO2" if energy["co2_kg"] is not None else ""
        part = energy["recorded_pct"]
        of = f" of {plain(part, 1)} % of the GPU time" if part is not None and part < WHOLE_PCT else ""
        yield from wrapped(
            f"{plain(energy['kwh'])} kWh{of}{cost}{carbon}", " " * (LABEL + 3), f"  {'energy':<{LABEL}} "
        )
    yield meter("goodput", run["time_pct"]["goodput"])
    if run["steps_unsaved"]:
        yield f"    {counted(run['steps_unsaved'], 'step')} not yet in a checkpoint"
    yield meter("MFU", run["mfu_pct"], run["mfu_missing"] or "")
    for name, key in (
        ("time with a kernel", "kernel_time_pct"),
        ("SM active", "sm_active_pct"),
        ("tensor", "tensor_pct"),
    ):
        known = [gpu[key] for gpu in run["gpu_devices"] if gpu[key] is not None]
        if known:
            yield meter(name, sum(known) / len(known))
    for cause, share in sorted(run["time_pct"].items(), key=lambda item: -(item[1] or 0)):
        if share is None:
            yield meter(f"lost: {CAUSE_WORDS[cause]}", None, "within goodput")
        elif cause != "goodput" and share >= 0.5:
            yield meter(f"lost: {CAUSE_WORDS[cause]}", share)
    if run["slow_ranks_missing"] == NOT_TOLD:
        yield f"  {'slow ranks':<{LABEL}} {NOT_TOLD}"
    yield from _nodes(run)


def _nodes(run: Mapping[str, Any]) -> Iterator[str]:
    for host in run["hosts"][:MOST_NODES]:
        gpus = [gpu["sm_active_pct"] for gpu in run["gpu_devices"] if gpu["node"] == host["node"]]
        known = [value for value in gpus if value is not None]
        active = f"; {counted(len(gpus), 'GPU')}, SM {sum(known) / len(known):.0f} %" if known else ""
        cores = f"{_number(host['cores_mean'])} of {_number(host['cores_allowed'], 0)} cores"
        name = clean(host["node"])[:LABEL]
        if not host["recorded_hours"]:
            yield f"  {name:<{LABEL}} not recorded"
            continue
        yield f"  {name:<{LABEL}} {cores}, {_number(host['mem_peak_gib'])} GiB{active}"[:WIDTH]
    if len(run["hosts"]) > MOST_NODES:
        yield f"  and {len(run['hosts']) - MOST_NODES} nodes more"


def _cost(hours: float, unit: str) -> str:
    scale, unit = hours_scale(hours, unit)
    return f"{plain(hours * scale)} {unit}"


def _findings(findings: list[dict[str, Any]]) -> Iterator[str]:
    if not findings:
        yield "Findings: none of the rules fired."
        return
    yield "Findings"
    yield "--------"
    for finding in findings[:MOST_FINDINGS]:
        yield from wrapped(finding["claim"], "    ", f"  {finding['severity'].upper()}: ")
        cost = (
            f"Cost {_cost(finding['cost_hours'], finding['cost_unit'])}. " if finding["cost_hours"] is not None else ""
        )
        yield from wrapped(f"{cost}Next: {finding['do']}", "      ", "    ")
    if len(findings) > MOST_FINDINGS:
        yield f"  and {len(findings) - MOST_FINDINGS} more on the page"
