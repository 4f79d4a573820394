"""The page's charts, from parts of the summary."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from brickreel.telemetry.heat import ENVELOPES, HeatMap
from brickreel.telemetry.render import svg
from brickreel.telemetry.render.numbers import plain


def time_bar(run: Mapping[str, Any], words: Mapping[str, str]) -> Markup:
    """Where the time of a run went."""
    shares = [(words[cause], share, f"cause-{cause}") for cause, share in run["time_pct"].items() if share is not None]
    said = ", ".join(f"{name} {share:.1f} %" for name, share, _ in shares if share >= 0.05)
    return svg.stacked_bar(f"Where the time of {run['run']} went", said, shares)


def curve(run: Mapping[str, Any]) -> Markup:
    """The training loss."""
    points = run["curve"]
    line = svg.Line("training loss", points["loss"], points["loss_low"], points["loss_high"])
    said = _ends("The training loss", points["step"], points["loss"], "step")
    return svg.line_chart(f"Training loss of {run['run']}", said, points["step"], [line], "step", "loss")


def small_curve(run: Mapping[str, Any], key: str, name: str) -> Markup:
    """Gradient norm or learning rate."""
    points = run["curve"]
    said = _ends(name, points["step"], points[key], "step")
    return svg.line_chart(
        f"{name} of {run['run']}", said, points["step"], [svg.Line(name, points[key], style=3)], "step", name, 0
    )


def gauge(run: Mapping[str, Any], weights: str) -> Markup:
    """The held-out loss relative to step 0, per timestep bin."""
    series = [item for item in run["gauge"]["series"] if item["weights"] == weights]
    steps = sorted({step for item in series for step in item["step"]})
    lines = []
    for index, item in enumerate(series):
        at = dict(zip(item["step"], item["relative"], strict=True))
        name = (
            f"timesteps {item['t_low']}–{(item['t_high'] or 1) - 1}" if item["t_low"] is not None else "all timesteps"
        )
        lines.append(svg.Line(name, [at.get(step) for step in steps], style=index))
    said = "; ".join(_ends(line.name, steps, line.y, "step") for line in lines)
    return svg.line_chart(
        f"Held-out loss of {run['run']}, {weights} weights",
        said,
        steps,
        lines,
        "step",
        "relative to step 0",
        mark=1.0,
    )


def envelope(run: Mapping[str, Any], columns: Sequence[str]) -> Markup:
    """Spread over the GPUs of several metrics on one axis."""
    hours, gpu = run["envelopes"]["hours"], run["envelopes"]["gpu"]
    lines = [
        svg.Line(
            f"{ENVELOPES[column]}: median, 5–95 %", gpu[column]["median"], gpu[column]["p5"], gpu[column]["p95"], index
        )
        for index, column in enumerate(columns)
        if column in gpu
    ]
    if not lines:
        return Markup("")
    unit = "W" if columns[0] == "gpu_power_w" else "%"
    said = "; ".join(_ends(line.name, hours, line.y, "hour") for line in lines)
    ceiling = None if unit == "W" else 100.0
    return svg.line_chart(f"GPUs of {run['run']} over time", said, hours, lines, "hours", unit, 0, ceiling)


def cores(run: Mapping[str, Any]) -> Markup:
    """Cores used on each node."""
    hours, nodes = run["envelopes"]["hours"], run["envelopes"]["cores"]
    lines = [svg.Line(node, values, style=index) for index, (node, values) in enumerate(list(nodes.items())[:6])]
    said = "; ".join(_ends(line.name, hours, line.y, "hour") for line in lines)
    minutes = [60 * hour for hour in hours]
    short = bool(hours) and hours[-1] < 1
    return svg.line_chart(
        f"Cores used by {run['run']}",
        said,
        minutes if short else hours,
        lines,
        "minutes" if short else "hours",
        "cores",
        0,
    )


def heat(item: HeatMap) -> Markup:
    """A heat map."""
    hours = (item.end_s - item.start_s) / 3600
    said = f"{len(item.rows)} rows over {hours:.2f} hours; dark is {item.low:g} %, bright {item.high:.0f} %."
    return svg.heat_map(item.title, said, item.rows, item.values, item.low, item.high, hours)


def timeline(bars: Sequence[Mapping[str, Any]], cores_of: Mapping[str, float | None]) -> Markup:
    """All recordings of the project, a row per stage; filled by the share of allowed cores in use."""
    first = min(bar["start_s"] for bar in bars)
    last = max(bar["end_s"] for bar in bars)
    unit, size = (60.0, "minutes") if last - first < 3 * 3600 else (3600.0, "hours")
    drawn = []
    for bar in bars:
        allowed = cores_of.get(bar["stage"])
        strength = bar["cores"] / allowed if bar["cores"] is not None and allowed else None
        used = f", {bar['cores']:.2f} cores" if bar["cores"] is not None else ""
        drawn.append(
            svg.Bar(
                bar["stage"],
                (bar["start_s"] - first) / unit,
                (bar["end_s"] - first) / unit,
                f"{bar['stage']} {bar['part']} on {bar['node']}: {bar['end_s'] - bar['start_s']:.1f} s{used}",
                strength,
            )
        )
    span = f"{len(drawn)} recordings over {(last - first) / unit:.1f} {size}"
    said = f"{span}; each bar is filled by its share of the allowed cores."
    return svg.timeline("When each stage ran", said, drawn, size)


def attempts(run: Mapping[str, Any]) -> Markup:
    """Attempts of a run over time, each split into starting up, steps and tail, with events as marks."""
    rows = run["attempts"]
    first = rows[0]["start_s"]
    last = max(row["start_s"] + 3600 * row["hours"] for row in rows)
    unit, size = (60.0, "minutes") if last - first < 3 * 3600 else (3600.0, "hours")
    bars = []
    for row in rows:
        name = f"attempt {row['attempt']}"
        start, end = (row["start_s"] - first) / unit, (row["start_s"] - first + 3600 * row["hours"]) / unit
        stepping = start + row["seconds"]["init"] / unit
        until = end - row["seconds"]["tail"] / unit
        if row["first_step"] is not None:
            bars.append(svg.Bar(name, start, stepping, "starting up"))
            bars.append(svg.Bar(name, stepping, until, f"steps {row['first_step']} to {row['last_step']}", 1.0))
            bars.append(svg.Bar(name, until, end, "after the last step"))
        else:
            bars.append(svg.Bar(name, start, end, "no step was taken"))
    for event in run["events"]:
        at = (event["time_s"] - first) / unit
        bars.append(
            svg.Bar("events", at, at, f"{event['event']} {event['detail']} on {event['node']} {event['device']}", 1.0)
        )
    said = "; ".join(
        f"attempt {row['attempt']}: {row['hours']:.2f} h, "
        f"steps {row['first_step']} to {row['last_step']}, {row['outcome']}"
        for row in rows
    )
    return svg.timeline(f"Attempts of {run['run']}", said, bars, size)


def spark(values: Sequence[float | None]) -> Markup:
    """A small line."""
    return svg.spark(values)


def _ends(name: str, x: Sequence[float], y: Sequence[float | None], unit: str) -> str:
    """A sentence for who cannot see the chart."""
    known = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    if not known:
        return f"{name}: nothing was measured"
    (a, b), (c, d) = known[0], known[-1]
    low, high = min(v for _, v in known), max(v for _, v in known)
    ends = f"{plain(b)} at {unit} {plain(a)}, {plain(d)} at {unit} {plain(c)}"
    return f"{name}: {ends}, between {plain(low)} and {plain(high)}"
