"""Every setting, its default and what it does: `brickreel settings`, and docs/settings.md, which is made from it."""

import inspect
from collections.abc import Iterator
from textwrap import dedent, fill
from typing import Any, Literal, NamedTuple, get_args, get_origin

import click
import yaml
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from brickreel.config import Config
from brickreel.config.section import Section


class Setting(NamedTuple):
    """One line of a section."""

    name: str
    default: str
    """As YAML; `required` where there is none."""
    choices: tuple[str, ...]
    """What it may be, where that can be listed."""
    purpose: str


class Part(NamedTuple):
    """A section, or a part of one."""

    path: str
    """Dotted; NAME is any name of the user's."""
    purpose: str
    settings: list[Setting]


def parts(section: type[Section] = Config, path: str = "", purpose: str = "") -> Iterator[Part]:
    """Sections in the configuration's order, each before those within it."""
    settings, within = [], []
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        if inner is None:
            settings.append(Setting(name, _default(field), tuple(_choices(field.annotation)), _sentence(field)))
        else:
            below = ".".join(filter(None, (path, name)))
            within.append((inner, f"{below}.NAME" if _is_mapping(field.annotation) else below, _sentence(field)))
    if settings:
        yield Part(path, purpose or " ".join(inspect.cleandoc(section.__doc__ or "").split()), settings)
    for inner, below, told in within:
        yield from parts(inner, below, told)


def _section_in(annotation: Any) -> type[Section] | None:
    """The section that a setting is, holds under names, or may be."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation if issubclass(annotation, Section) else None
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def _is_mapping(annotation: Any) -> bool:
    return hasattr(get_origin(annotation), "keys")


def _choices(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        for inner in get_args(annotation):
            yield from _choices(inner)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = to_jsonable_python(field.get_default(call_default_factory=True))
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _sentence(field: FieldInfo) -> str:
    return " ".join(dedent(field.description or "").split())


def markdown() -> str:
    """docs/settings.md."""
    lines = [
        "# Every setting",
        "",
        "Made by `make settings` from `src/brickreel/config/`; `brickreel settings [SECTION]` prints the same in a",
        "terminal. The defaults are the program's: [config.yaml](../config.yaml) and",
        "[config/demo.yaml](../config/demo.yaml) set some of them otherwise. An unknown key is an error.",
    ]
    for part in parts():
        lines += ["", f"## {part.path}", "", part.purpose, "", "| setting | default | |", "|---|---|---|"]
        for setting in part.settings:
            told = setting.purpose + (f" One of {_listed(setting.choices)}." if setting.choices else "")
            lines.append(f"| `{setting.name}` | {_code(setting.default)} | {told.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _listed(choices: tuple[str, ...]) -> str:
    return ", ".join(f"`{choice}`" for choice in choices)


def _code(default: str) -> str:
    return default if default == "required" else f"`{default}`".replace("|", "\\|")


def of(name: str) -> list[Part]:
    """A section with those within it, or one setting, by its dotted name; a run's own name may stand for NAME."""
    words = name.split(".") if name else []

    def leads_to(path: str, words: list[str]) -> bool:
        return all(own in (word, "NAME") for own, word in zip(path.split("."), words, strict=False))

    found = [part for part in parts() if len(part.path.split(".")) >= len(words) and leads_to(part.path, words)]
    if found:
        return found
    *above, last = words
    return [
        part._replace(settings=[setting])
        for part in parts()
        if len(part.path.split(".")) == len(above) and leads_to(part.path, above)
        for setting in part.settings
        if setting.name == last
    ]


@click.command("settings", help="Print every setting, its default and what it does; of one SECTION when it is named.")
@click.argument("section", required=False, default="")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print docs/settings.md.")
def command(section: str, as_markdown: bool) -> None:
    """Print the reference."""
    if as_markdown:
        click.echo(markdown(), nl=False)
        return
    found = of(section)
    if not found:
        names = ", ".join(name for name in Config.model_fields)
        raise click.ClickException(f"there is no section or setting '{section}': choose from {names}")
    for part in found:
        click.echo(f"\n{part.path}: {part.purpose}")
        for setting in part.settings:
            may_be = f"  ({' | '.join(setting.choices)})" if setting.choices else ""
            click.echo(f"\n  {setting.name}: {setting.default}{may_be}")
            click.echo(fill(setting.purpose, 100, initial_indent="      ", subsequent_indent="      "))
