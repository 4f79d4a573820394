"""Settings of the captioner."""

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from brickreel.config.section import Fraction, Positive, Section

_KEY_OPTION = re.compile(r"""(^|\s)--?api[-_]?key(=|\s|$)(?!\s*["']?\$)""", re.IGNORECASE)
"""Also within a word that a shell reads, where a variable's name may follow."""
_KEY = re.compile(r"(^|\W)(sk-(?=[\w-]*\d)[\w-]{16,}|hf_[A-Za-z0-9]{30,})")
"""Keys of OpenAI, which have digits as no word has, and of Hugging Face."""


def _secret(sentence: str) -> PydanticCustomError:
    """An error whose value must not be repeated: settings and logs are kept, and may be shown."""
    return PydanticCustomError("secret", sentence)  # type: ignore[arg-type]


def _variable(name: str) -> str:
    """A variable's name, upper case as everybody has them: a key that was put in its place is not, or has a long word
    with digits, and is refused before it can be written into any settings file."""
    if name and (not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name) or re.search(r"(?=[A-Z]*[0-9])[A-Z0-9]{16,}", name)):
        raise _secret(
            "must be the name of an environment variable, in upper case, such as OPENAI_API_KEY, never the key itself"
        )
    return name


def _address(url: str | None) -> str | None:
    parts = urlsplit(url or "")
    if "@" in parts.netloc or _KEY.search(url or ""):
        raise _secret("must hold no user, password or key: the key belongs into the variable that api_key_env names")
    if parts.query:
        raise _secret(
            "must have no query, which is what follows the '?': paths are added at its end, and it may hold a key"
        )
    return url


def _keyless(command: tuple[str, ...]) -> tuple[str, ...]:
    if any(_KEY_OPTION.search(word) or _KEY.search(word) for word in command):
        raise _secret(
            "must hold no key: the server finds one of its own in VLLM_API_KEY, and others in the environment"
        )
    return command


class CaptionServer(Section):
    """A captioning server that the workflow starts itself, such as vLLM on a GPU node."""

    command: Annotated[tuple[str, ...], AfterValidator(_keyless)] = ()
    """Program and arguments that start one replica; nothing is started when empty. `{port}` stands for the port that it
    must listen on, `{model}` for `caption.model`: [vllm, serve, "{model}", --host, 127.0.0.1, --port, "{port}"]. It is
    asked from its own node alone, and with the key that it finds in VLLM_API_KEY."""
    health: str = "/health"
    """Path that answers 200 as soon as the server can be asked."""
    start_s: Annotated[float, Field(gt=0)] = 1800
    """Longest wait for that, in seconds: loading a large model takes minutes."""

    @model_validator(mode="after")
    def _port_is_passed(self) -> "CaptionServer":
        if self.command and not any("{port}" in word for word in self.command):
            raise ValueError("the command must pass the port on: put '{port}' where the program takes it")
        return self


class Caption(Section):
    """Who describes the clips."""

    captioner: Literal["embedded", "openai"] = "embedded"
    """`embedded` measures and describes without network; `openai` asks any OpenAI-compatible endpoint."""
    model: str = "gpt-4o"
    """Model name at the endpoint."""
    base_url: Annotated[str | None, AfterValidator(_address)] = None
    """The endpoint; OpenAI's own when absent."""
    api_key_env: Annotated[str, AfterValidator(_variable)] = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key. The key itself is never written anywhere."""
    batch: bool = False
    """Use the endpoint's Batch API: half the price, answers within a day."""
    budget_usd: Annotated[float, Field(ge=0)] = 50.0
    """Spending over all shards and restarts never exceeds this, requests in flight counted."""
    usd_per_million_in: Annotated[float, Field(ge=0)] | None = None
    """Price of a million prompt tokens: what is charged; with `batch`, the batch's price. The built-in list's when
    absent, nothing for a `server` of one's own."""
    usd_per_million_out: Annotated[float, Field(ge=0)] | None = None
    """Price of a million answered tokens, likewise."""
    material: str = "small plastic toys"
    """What moves in the films; stands in the prompt."""
    frames: Annotated[int, Field(ge=1, le=32)] = 3
    """Pictures per clip, spread evenly over its poses from 10 % to 90 %."""
    image_side: Annotated[int, Field(ge=64, le=4096)] = 512
    """Longest side of the JPEGs that are sent, in pixels: tokens and money grow with it."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 85
    """Of the pictures that are sent; their size in bytes, not their tokens, grows with it."""
    detail: Literal["low", "high", "auto"] = "low"
    """How closely an OpenAI model looks: `high` costs several times the tokens of `low`."""
    max_tokens: Positive = 500
    """Longest answer; a longer one is cut, asked for again, and then dropped."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 32
    """Most requests in flight per shard; fewer while the endpoint answers 429."""
    requests_per_minute: Positive | None = None
    """Limit per shard, besides what the endpoint's answers say."""
    tokens_per_minute: Positive | None = None
    """Limit per shard, besides what the endpoint's answers say."""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Longest wait for one answer. A request without an answer counts at its highest possible price."""
    attempts: Positive = 6
    """Failed requests of one run after which a clip fails: errors of the server, and answers that are not whole or
    without the schema. However many it may have, it ends after three unusable answers of any kind, in all runs."""
    max_failed_share: Fraction = 0.02
    """The stage fails when more than this share of a shard's clips fails, rounded up: one may always, unless this
    is 0."""
    banned_words: tuple[str, ...] = (
        "video", "image", "frame", "footage", "screenshot", "photo", "photograph", "film", "movie", "clip",
        "stop motion", "claymation", "animation", "blocky",
        "lego", "duplo", "minifig", "minifigure", "playmobil", "mega bloks", "k'nex",
    )  # fmt: skip
    """Words that no caption may contain, with their plurals; asked for again without them, then dropped."""
    min_words: Positive = 5
    """A shorter caption is asked for again, then dropped."""
    max_words: Positive = 160
    """A longer caption is asked for again, then dropped."""
    corrections: Path | None = None
    """A CSV with clip_id, text and optionally kind: a person's captions, which win over any machine's."""
    server: CaptionServer = CaptionServer()
    """A captioning server of one's own; none by default."""
