"""The request of one item: its prompt, its pictures, the key under which its answer is kept, and what it may cost."""

import hashlib
import json
from dataclasses import dataclass

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
    pictures: int

    def about(self, model: str) -> dict[str, str]:
        """What the ledger says of it."""
        return {
            "clip_id": self.item.clip_id,
            "kind": self.item.kind,
            "content_hash": self.item.content_hash,
            "model": model,
            "prompt_version": self.version,
        }


def request(item: Item, settings: Settings) -> Request:
    """The request of an item. The list of banned words is not in the key: stored answers are judged by it anew."""
    count = settings.frames if item.kind == "clip" else 1
    version = prompts.VERSIONS[item.kind]
    unique = [
        *(item.content_hash, settings.model, version, settings.material, count, item.pose_rate),
        *(settings.image_side, settings.jpeg_quality, settings.detail),
    ]
    key = hashlib.sha256(json.dumps(unique).encode()).hexdigest()[:32]
    prompt = prompts.render(item.kind, settings.material, count, item.pose_rate, settings.banned_words)
    return Request(item, prompt, version, key, count)


def jpegs(request: Request, settings: Settings) -> list[bytes]:
    """The item's pictures as JPEG. Raises ValueError or OSError when its file cannot be read."""
    item = request.item
    if item.kind == "still":
        found = [pictures.read_still(item.path, settings.image_side)]
    else:
        chosen = pictures.pose_frames(request.pictures, item.frames, item.holds, item.in_poses)
        found = [picture for _, picture in pictures.take(item.path, chosen, settings.image_side)]
    return [pictures.jpeg(picture, settings.jpeg_quality) for picture in found]


def most_usd(request: Request, settings: Settings, price: Price, ledger: Ledger) -> float:
    """The most that a request can cost: what is reserved for it."""
    seen = ledger.seen_tokens.get((settings.model, request.version), [0, 0, 0, 0])
    # A second round adds one sentence to the prompt.
    tokens_in = max(price.most_in(len(request.prompt) + 400, request.pictures), round(1.2 * seen[3]))
    return price.usd(tokens_in, settings.max_tokens)


def expected_tokens(request: Request, settings: Settings, price: Price, ledger: Ledger) -> tuple[int, int]:
    """Likely tokens in and out: the mean of the answers so far, or the list's rule."""
    answers, tokens_in, tokens_out, _ = ledger.seen_tokens.get((settings.model, request.version), [0, 0, 0, 0])
    if answers:
        return round(tokens_in / answers), round(tokens_out / answers)
    return price.expected(len(request.prompt), request.pictures)
