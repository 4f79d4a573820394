"""Where every GPU-hour went, on one page: `index.html`, `summary.json` and `media/` under `results/report/`."""

import logging
import sys
from pathlib import Path

from brickreel import files
from brickreel.config import Config
from brickreel.telemetry import digest, media, project, recorder, summary, training
from brickreel.telemetry.render.page import page
from brickreel.telemetry.render.text import text

logger = logging.getLogger("brickreel")

FOLDER = Path("results/report")


def run(config: Config, text_only: bool = False) -> None:
    """Read whatever the project's folder holds and write the page; what is missing is named on it.

    May be called at any time, also while stages run and after a crash. With `text_only` nothing is written, and the
    summary for the terminal is all there is.
    """
    tree, maps, files_of = build(config, settle=not text_only)
    sys.stdout.write(text(tree))
    if text_only:
        return
    shown = {run.name: media.collect(run, FOLDER / "media") for run in files_of.runs}
    title = config.report.title or config.project.name
    files.write_json(FOLDER / "summary.json", tree)
    files.write_text(FOLDER / "index.html", page(tree, maps, shown, title))
    logger.info("report: %s, %d findings, %d gaps", FOLDER / "index.html", len(tree["findings"]), len(tree["gaps"]))


def build(config: Config, settle: bool = False) -> tuple[dict, dict, project.ProjectFiles]:
    """The summary, the heat maps of each run, and what was read; `settle` finishes what dead recorders left."""
    configured = list(config.project.runs or config.runs)
    found = project.read(config.project.name, project.known_runs(configured))
    unreadable: list[tuple[str, str]] = []
    recorded = digest.read_all(recorder.FOLDER, unreadable, belongs=training.members_of(found.runs), settle=settle)
    found.gaps += [project.Gap(what, why) for what, why in unreadable]
    tree, maps = summary.assemble(found, recorded)
    return tree, maps, found
