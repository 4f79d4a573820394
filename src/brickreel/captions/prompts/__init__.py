"""Prompts: one Markdown file per kind and version. A changed prompt is a new file, so that old captions keep theirs."""

from functools import cache
from importlib.resources import files
from string import Template

VERSIONS = {"clip": "clip-2", "still": "still-2"}
"""The prompt in use for each kind of picture."""
AGAIN = "again-1"


@cache
def _template(version: str) -> Template:
    return Template(files(__package__).joinpath(f"{version}.md").read_text(encoding="utf-8").strip())


def render(kind: str, material: str, pictures: int, pose_rate: float, banned: tuple[str, ...]) -> str:
    """The prompt for a clip or still."""
    shown = f"{pictures} pictures" if pictures > 1 else "1 picture"
    return _template(VERSIONS[kind]).substitute(
        material=material, pictures=shown, pose_rate=f"{pose_rate:g}", banned=", ".join(banned)
    )


def again(reason: str) -> str:
    """What is added when an answer cannot be used."""
    return _template(AGAIN).substitute(reason=reason)
