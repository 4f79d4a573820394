"""What is captioned, and the row of the table that comes of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from brickreel import files
from brickreel.captions.answer import Answer


class Item(NamedTuple):
    """A clip or still of the dataset's manifest."""

    clip_id: str
    kind: str
    path: str
    frames: int
    holds: tuple[int, ...]
    in_poses: bool
    fps: float
    pose_rate: float
    content_hash: str

    @property
    def name(self) -> tuple[str, str]:
        """What makes it unique: a clip and its still share the id."""
        return self.clip_id, self.kind


def item(row: Mapping[str, Any]) -> Item:
    """An item from a row of `cut_index`; the content is hashed where the manifest does not say."""
    return Item(
        clip_id=row["clip_id"],
        kind=row["kind"],
        path=row["path"],
        frames=row["frames"] or 0,
        holds=tuple(row["holds"] or ()),
        in_poses=bool(row["in_poses"]),
        fps=row["fps"] or 0.0,
        pose_rate=row["pose_rate"] or row["fps"] or 0.0,
        content_hash=row["sha256"] or files.sha256(row["path"]),
    )


@dataclass(frozen=True)
class Caption:
    """How the captioning of one item ended."""

    outcome: str
    reason: str = ""
    answer: Answer | None = None
    source: str = "machine"
    model: str | None = None
    prompt_version: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0


def by_person(text: str) -> Caption:
    """A caption that somebody wrote."""
    answer = Answer(
        outcome="described", caption=text, subjects="", action="", camera="", setting="", style="", confidence=1.0
    )
    return Caption("ok", answer=answer, source="person")


def row(clip_id: str, kind: str, caption: Caption) -> dict[str, Any]:
    """The row of the table `captions`; only an ok caption has a text."""
    answer = caption.answer if caption.outcome == "ok" else None
    fields = ("subjects", "action", "camera", "setting", "style", "confidence")
    return {
        "clip_id": clip_id,
        "kind": kind,
        "text": " ".join(answer.caption.split()) if answer else None,
        **{name: getattr(answer, name) if answer else None for name in fields},
        "source": caption.source,
        "model": caption.model,
        "prompt_version": caption.prompt_version,
        "tokens_in": caption.tokens_in,
        "tokens_out": caption.tokens_out,
        "usd": caption.usd,
        "outcome": caption.outcome,
        "reason": caption.reason,
    }
