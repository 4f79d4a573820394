"""The command line: `brickreel STAGE` for every stage, and the tools beside them.

A stage's module is imported only when its command is called, so that `--help` and the graph stay fast. Every stage
runs under the telemetry recorder, one per node.
"""

import importlib
from typing import Any

import click

from brickreel import __version__
from brickreel.running import guarded, run_stage, set_up_logging
from brickreel.stages import BY_NAME, STAGES, Stage

# Tools beside the stages: command -> (module, click command in it, purpose).
TOOLS = {
    "settings": ("brickreel.config.reference", "command", "Print every setting and what it does"),
    "demo-films": ("brickreel.films.demo", "command", "Render the demo's stop-motion films"),
    "inspect": ("brickreel.films.inspect", "command", "Show what brickreel would make of one film"),
    "lineage": ("brickreel.stages.lineage", "lineage_command", "List what a film went into"),
    "withdraw": ("brickreel.stages.lineage", "withdraw_command", "Take a film out of the dataset"),
    "convert": ("brickreel.models.stdit2.convert", "command", "Convert Open-Sora 1.1 weights"),
    "generate": ("brickreel.evaluation.generate", "command", "Generate a video from a prompt"),
    "web": ("brickreel.evaluation.web", "command", "Try a model in the browser"),
    "launch": ("brickreel.cluster.launch", "command", "Run a stage on many processes: Slurm, local, in process"),
    "doctor": ("brickreel.cluster.doctor", "command", "Look at the cluster and propose the profile's lines"),
    "watch": ("brickreel.telemetry.watch", "command", "Follow a run in the terminal"),
    "compare": ("brickreel.telemetry.compare", "command", "Set two runs side by side"),
}


class Commands(click.Group):
    """Commands by name, loaded when called."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Stages in their order, then the tools."""
        return [stage.name for stage in STAGES] + list(TOOLS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of a stage or tool; None when there is no such word."""
        if name in BY_NAME:
            return stage_command(BY_NAME[name])
        if name in TOOLS:
            module, attribute, _ = TOOLS[name]
            return getattr(importlib.import_module(module), attribute)
        return None

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List purposes without importing what they describe."""
        with formatter.section("Stages, in the order of the graph"):
            formatter.write_dl([(stage.name, stage.purpose) for stage in STAGES])
        with formatter.section("Tools"):
            formatter.write_dl([(name, purpose) for name, (_, _, purpose) in TOOLS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """From a folder of films to a fine-tuned text-to-video model.

    The whole chain runs with `snakemake`; each stage also runs by itself, here.
    """


def stage_command(stage: Stage) -> click.Command:
    """The click command of a stage, with the options that its scope asks for."""
    options: list[click.Parameter] = [
        click.Option(
            ["--config", "configs"],
            multiple=True,
            type=click.Path(dir_okay=False),
            help="YAML or JSON settings; may be given several times, later ones win. Default: config.yaml.",
        ),
        click.Option(
            ["--log", "log_file"], type=click.Path(dir_okay=False), help="Write the log to this file as well."
        ),
        click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
    ]
    if stage.scope == "shard":
        options.append(
            click.Option(
                ["--shard"],
                default="0/1",
                show_default=True,
                help="INDEX/COUNT of the work; all/COUNT deals it to the ranks. COUNT `project`: project.shards.",
            )
        )
    if stage.scope == "run":
        options.append(click.Option(["--run"], required=True, help="Name of the run in `runs:`."))
    if stage.name == "report":
        options.append(click.Option(["--text", "text_only"], is_flag=True, help="Only print it, for a terminal."))
    if stage.name == "export":
        for name, what in (("--push", "the model"), ("--push-dataset", "the clips")):
            options.append(click.Option([name], default="", help=f"Send {what} to OWNER/NAME on a hub."))

    def call(configs: tuple[str, ...], log_file: str | None, debug: bool, **scope: Any) -> None:
        set_up_logging(log_file)
        guarded(stage.name, debug, lambda: run_stage(stage.name, configs, **scope))

    return click.Command(stage.name, params=options, callback=call, help=stage.purpose + ".")


if __name__ == "__main__":
    main()
