"""Settings of the project as a whole, its report and its recorder."""

from typing import Annotated

from pydantic import Field

from brickreel.config.section import Name, Positive, Section


class Project(Section):
    """What the project is called, how far its work is spread, and which runs are trained."""

    name: Name = "brickreel"
    """Stands on the report and the cards."""
    shards: Positive = 16
    """Jobs per sharded stage. Fixed, so that a million films give the same graph as ten. Another number makes `encode`
    start over."""
    runs: tuple[Name, ...] | None = None
    """Names from `runs:` that the graph trains; all of them when absent."""


class Report(Section):
    """The page."""

    title: str | None = None
    """Headline; the project's name when absent."""


class Telemetry(Section):
    """What the recorder samples on every node."""

    period_s: Annotated[float, Field(ge=0.1, le=60)] = 1.0
    """Seconds between two samples; GPM needs at least 0.1."""
    enabled: bool = True
    """False records nothing: the report then has no CPU, memory or GPU figures for what ran meanwhile."""
