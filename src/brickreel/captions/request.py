"""The request of one item: its prompt, its pictures, the key under which its answer is kept, and what it may cost."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from brickreel.captions import pictures, prompts
from brickreel.captions.items import Item
from brickreel.captions.ledger import Ledger
from brickreel.captions.prices import Price
from brickreel.config import Caption as Settings


@dataclass(frozen=True)
class Request:
    """An item with everything but its pictures, which are read when they are needed."""

    item: Item
    prompt: str
    version: str
    key: str
    frames: tuple[int, ...]
    """The clip's frames that are shown; none of a still, or of a clip without frames."""
    sent: str
    """Number, side and detail of the pictures: what the tokens depend on."""
    max_tokens: int

    @property
    def pictures(self) -> int:
        """How many pictures are shown."""
        return len(self.frames) or 1

    def about(self, model: str) -> dict[str, Any]:
        """What the ledger says of it."""
        return {
            "clip_id": self.item.clip_id,
            "kind": self.item.kind,
            "content_hash": self.item.content_hash,
            "model": model,
            "prompt_version": self.version,
            "pictures": self.sent,
            "max_tokens": self.max_tokens,
        }


def request(item: Item, settings: Settings) -> Request:
    """The request of an item. The list of banned words is not in the key: stored answers are judged by it anew."""
    is_clip, version = item.kind == "clip", prompts.VERSIONS[item.kind]
    frames: tuple[int, ...] = ()
    if is_clip and item.frames > 0:
        # Of a clip with few poses some would be shown twice.
        chosen = pictures.pose_frames(settings.frames, item.frames, item.holds, item.in_poses)
        frames = tuple(dict.fromkeys(chosen))
    count = len(frames) or 1
    unique = [
        *(item.content_hash, settings.model, version, settings.material, count, item.pose_rate if is_clip else None),
        *(settings.image_side, settings.jpeg_quality, settings.detail),
    ]
    key = hashlib.sha256(json.dumps(unique).encode()).hexdigest()[:32]
    prompt = prompts.render(item.kind, settings.material, count, item.pose_rate, settings.banned_words)
    sent = f"{count} x {settings.image_side} {settings.detail}"
    return Request(item, prompt, version, key, frames, sent, settings.max_tokens)


def jpegs(request: Request, settings: Settings) -> list[bytes]:
    """The item's pictures as JPEG. Raises ValueError or OSError when its file cannot be read."""
    item = request.item
    if item.kind == "still":
        found = [pictures.read_still(item.path, settings.image_side)]
    elif request.frames:
        found = [picture for _, picture in pictures.take(item.path, request.frames, settings.image_side)]
    else:
        raise ValueError("the clip has no frames")
    return [pictures.jpeg(picture, settings.jpeg_quality) for picture in found]


def most_usd(request: Request, settings: Settings, price: Price, ledger: Ledger) -> float:
    """The most that a request can cost: what is reserved for it."""
    seen = ledger.seen_tokens.get((settings.model, request.version, request.sent), [0, 0, 0, 0])
    # A second round adds one sentence to the prompt.
    tokens_in = max(price.most_in(len(request.prompt) + 400, request.pictures), round(1.2 * seen[3]))
    return price.usd(tokens_in, settings.max_tokens)


def expected_tokens(request: Request, settings: Settings, price: Price, ledger: Ledger) -> tuple[int, int]:
    """Likely tokens in and out: the mean of the answers so far, or the list's rule."""
    answers, tokens_in, tokens_out, _ = ledger.seen_tokens.get(
        (settings.model, request.version, request.sent), [0, 0, 0, 0]
    )
    if answers:
        return round(tokens_in / answers), round(tokens_out / answers)
    return price.expected(len(request.prompt), request.pictures)
