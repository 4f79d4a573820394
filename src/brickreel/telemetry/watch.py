"""`brickreel watch RUN`: a running job in the terminal, from the shared folder alone; starts and stops nothing."""

import time
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live as Screen
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from brickreel.telemetry import digest, project, recorder, summary, training
from brickreel.telemetry.live import Live, State
from brickreel.telemetry.render.numbers import plain
from brickreel.telemetry.render.text import clean

FINDINGS_EVERY_S = 30.0
FINDINGS_SHARE = 0.05
"""Looking for findings reads all logs: it may take this share of the time, on long runs less often."""
MOST_NODES = 40
STALE_S = 30.0
"""A node that has written nothing for so long is marked: batches come every ten seconds."""


@click.command()
@click.argument("run")
@click.option("--every", default=2.0, show_default=True, help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="Print the state once and end.")
def command(run: str, every: float, once: bool) -> None:
    """Follow RUN in the terminal: step, loss, speed, time left, nodes, findings. Ends with the run, or with Ctrl-C.

    Call it in the project's folder, on any machine that sees it.
    """
    live, findings = Live(run), Findings(run)
    console = Console()
    if not live.folder.is_dir():
        raise click.ClickException(f"{live.folder} is not there: run this in the project's folder, after train began")
    if once or not console.is_terminal:
        console.print(picture(live.read(), findings.now()))
        return
    try:
        with Screen(console=console, auto_refresh=False, screen=False) as screen:
            while True:
                state = live.read()
                screen.update(picture(state, findings.now()), refresh=True)
                if state.ended is not None:
                    return
                time.sleep(every)
    except KeyboardInterrupt:
        return


class Findings:
    """The findings so far, looked for now and then."""

    def __init__(self, run: str) -> None:
        self.run, self.due = run, 0.0
        self.found: list[dict[str, Any]] = []

    def now(self) -> list[dict[str, Any]]:
        """The newest findings; those of a moment ago while a new look is not due."""
        started = time.monotonic()
        if started >= self.due:
            self.found = look(self.run)
            spent = time.monotonic() - started
            self.due = time.monotonic() + max(FINDINGS_EVERY_S, spent / FINDINGS_SHARE)
        return self.found


def look(run: str) -> list[dict[str, Any]]:
    """Findings about one run from all that it has written."""
    files = project.one_run(run)
    recorded = digest.read_all(recorder.FOLDER, [], ("train", run), training.members_of(files.runs))
    tree, _ = summary.assemble(files, recorded)
    return tree["findings"]


def picture(state: State, findings: list[dict[str, Any]]) -> RenderableType:
    """The whole screen."""
    parts: list[RenderableType] = [_head(state)]
    if state.nodes:
        parts.append(_nodes(state))
    slow = [rank for rank in state.ranks if rank["behind"] > 1 or (rank["slower_pct"] or 0) > 2]
    if len(state.ranks) > 1:
        measured = any(rank["slower_pct"] is not None for rank in state.ranks)
        parts.append(_ranks(slow, len(state.ranks), measured))
    if state.gauge:
        parts.append(_gauge(state))
    parts.append(_findings(findings))
    return Group(*parts)


def _head(state: State) -> RenderableType:
    if state.attempt is None:
        return Panel("no attempt has started yet", title=escape(clean(state.run)))
    grid = Table.grid(padding=(0, 3))
    step = "none yet" if state.step is None else f"{state.step:,}"
    of = f" of {state.steps_planned:,}" if state.steps_planned else ""
    grid.add_row("step", step + of, "loss", _text(state.loss, 4), "clips/h", _text(state.clips_per_hour, 0))
    grid.add_row(
        "step time",
        _text(state.step_s, 3, " s"),
        "left",
        "-" if state.ended else duration(state.left_s),
        "ranks",
        str(len(state.ranks)),
    )
    parts: list[RenderableType] = [grid]
    if state.steps_planned and state.step is not None:
        bar = Table.grid(expand=True)
        bar.add_row(ProgressBar(total=state.steps_planned, completed=state.step))
        parts.insert(0, bar)
    if state.ended is not None:
        word = {"ok": "finished", "failed": "failed", "dropped": "stopped"}.get(state.ended["outcome"], "ended")
        parts.append(Text(clean(f"{word}: {state.ended['reason']}" if state.ended["reason"] else word)))
    elif state.step_at_s is not None and time.time() - state.step_at_s > STALE_S + 3 * (state.step_s or 0):
        parts.append(Text(f"no step for {duration(time.time() - state.step_at_s)}", style="bold red"))
    return Panel(Group(*parts), title=escape(clean(f"{state.run}, attempt {state.attempt['attempt']}")))


def duration(seconds: float | None) -> str:
    """`2 h 05 min`, `45 s`."""
    if seconds is None:
        return "not known"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _text(value: float | None, digits: int, unit: str = "") -> str:
    return "-" if value is None else plain(value, digits) + unit


def _nodes(state: State) -> RenderableType:
    table = Table("node", box=None, header_style="dim")
    for name in ("cores", "of", "GiB", "GPUs", "kernel %", "SM %", "tensor %", "W", "°C", "seen"):
        table.add_column(name, justify="right")
    for node in state.nodes[:MOST_NODES]:
        stale = node["age_s"] > STALE_S
        table.add_row(
            escape(clean(node["node"])),
            _text(node["cores"], 1),
            _text(node["cores_allowed"], 0),
            _text(node["memory_gib"], 1),
            str(node["gpus"]) if node["gpus"] else "-",
            *(_text(node[key], 0) for key in ("kernel_time_pct", "sm_active_pct", "tensor_pct", "power_w", "temp_c")),
            Text(f"{duration(node['age_s'])} ago", style="bold red" if stale else ""),
        )
    if len(state.nodes) > MOST_NODES:
        table.add_row(f"and {len(state.nodes) - MOST_NODES} more")
    return table


def _ranks(slow: list[dict[str, Any]], count: int, measured: bool) -> RenderableType:
    if not slow:
        pace = "keep pace" if measured else f"are at the same step; slow ranks: {training.NOT_TOLD}"
        return Text(f"all {count} ranks {pace}", style="dim")
    worst = sorted(slow, key=lambda rank: (-rank["behind"], -(rank["slower_pct"] or 0)))[:5]
    said = [
        f"rank {rank['rank']} ({clean(rank['node'])}): "
        + (f"{rank['behind']} steps behind" if rank["behind"] > 1 else f"{rank['slower_pct']:.1f} % slower just now")
        for rank in worst
    ]
    return Text("; ".join(said), style="yellow")


def _gauge(state: State) -> RenderableType:
    table = Table("held-out loss", "step", "timesteps", "loss", "relative to step 0", box=None, header_style="dim")
    for row in state.gauge:
        span = f"{row['t_low']}-{(row['t_high'] or 1) - 1}" if row["t_low"] is not None else "all"
        table.add_row(clean(row["weights"]), f"{row['step']:,}", span, _text(row["loss"], 4), _text(row["relative"], 3))
    return table


def _findings(findings: list[dict[str, Any]]) -> RenderableType:
    if not findings:
        return Text("findings so far: none", style="dim")
    styles = {"error": "bold red", "warning": "yellow", "note": ""}
    lines = [
        Text(clean(f"{item['severity']}: {item['claim']}"), style=styles[item["severity"]]) for item in findings[:8]
    ]
    return Group(Text("findings so far", style="dim"), *lines)
