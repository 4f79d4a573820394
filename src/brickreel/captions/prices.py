"""What a request may cost, before it is sent, and what it did cost, after."""

import math
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from brickreel.config import Caption

# Pictures of a model that is not in the list, until the first answer tells the true number: more than the common open
# vision models use, which have a token for each patch of 14 pixels at most.
_UNKNOWN_PICTURE_TOKENS, _PATCH = 3000, 14
# English text has about four characters per token; two is a safe upper bound.
_CHARACTERS_PER_TOKEN, _LEAST_CHARACTERS_PER_TOKEN = 4, 2
_EXPECTED_TOKENS_OUT = 160
# The schema and the roles of the messages come on top of the text.
_OVERHEAD_TOKENS = 250


@dataclass(frozen=True)
class Price:
    """USD per token, and tokens per picture."""

    usd_in: float
    usd_out: float
    picture_tokens: int
    exact_pictures: bool
    """Whether `picture_tokens` comes from a published rule."""

    def usd(self, tokens_in: int, tokens_out: int) -> float:
        """Price of a request."""
        return tokens_in * self.usd_in + tokens_out * self.usd_out

    def expected(self, characters: int, pictures: int) -> tuple[int, int]:
        """Likely tokens in and out of a request with a prompt of so many characters."""
        return (
            characters // _CHARACTERS_PER_TOKEN + pictures * self.picture_tokens + _OVERHEAD_TOKENS // 2,
            _EXPECTED_TOKENS_OUT,
        )

    def most_in(self, characters: int, pictures: int) -> int:
        """Upper bound of the tokens in."""
        return characters // _LEAST_CHARACTERS_PER_TOKEN + pictures * self.picture_tokens + _OVERHEAD_TOKENS


@cache
def _listed() -> dict[str, Any]:
    return tomllib.loads(files("brickreel.captions").joinpath("prices.toml").read_text(encoding="utf-8"))


def price(settings: Caption) -> Price:
    """The price that the settings name or the list knows, in batches its share; a `server` of one's own costs nothing.

    Raises ValueError when the model's price is not known.
    """
    # Dated versions of a model, gpt-4o-2024-08-06, cost what the model costs.
    entry = _listed()["models"].get(re.sub(r"-\d{4}-\d{2}-\d{2}$", "", settings.model))
    usd_in, usd_out = settings.usd_per_million_in, settings.usd_per_million_out
    if settings.server.command:
        usd_in, usd_out = usd_in or 0.0, usd_out or 0.0
    elif entry and not settings.base_url:
        share = _listed()["batch_share"] if settings.batch else 1.0
        usd_in = entry["usd_in"] * share if usd_in is None else usd_in
        usd_out = entry["usd_out"] * share if usd_out is None else usd_out
    if usd_in is None or usd_out is None:
        raise ValueError(
            f"the price of the model '{settings.model}' at this endpoint is not known: set caption.usd_per_million_in "
            "and caption.usd_per_million_out (0 where nothing is charged)"
        )
    unknown = max(_UNKNOWN_PICTURE_TOKENS, math.ceil(settings.image_side / _PATCH) ** 2)
    tokens = _picture_tokens(entry, settings) if entry else unknown
    return Price(usd_in / 1e6, usd_out / 1e6, tokens, entry is not None)


def _picture_tokens(entry: dict[str, Any], settings: Caption) -> int:
    if settings.detail == "low":
        return int(entry["low"])
    tiles = math.ceil(settings.image_side / 512) ** 2
    return int(entry["base"] + entry["tile"] * tiles)
