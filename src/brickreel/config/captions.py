"""Settings of the captioner."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from brickreel.config.section import Fraction, Positive, Section


class CaptionServer(Section):
    """A captioning server that the workflow starts itself, such as vLLM on a GPU node."""

    command: tuple[str, ...] = ()
    """Program and arguments that start one replica; nothing is started when empty. `{port}` stands for the port that it
    must listen on, `{model}` for `caption.model`: [vllm, serve, "{model}", --port, "{port}"]."""
    health: str = "/health"
    """Path that answers 200 as soon as the server can be asked."""
    start_s: Annotated[float, Field(gt=0)] = 1800
    """Longest wait for that, in seconds: loading a large model takes minutes."""

    @model_validator(mode="after")
    def _port_is_passed(self) -> "CaptionServer":
        if self.command and not any("{port}" in word for word in self.command):
            raise ValueError("the command must pass the port on: put '{port}' where the program takes it")
        return self


def _variable(name: str) -> str:
    """A variable's name, upper case as everybody has them: a key that was put in its place is not, and is refused
    before it can be written into any settings file."""
    if name and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise ValueError("must be the name of an environment variable such as OPENAI_API_KEY, never the key itself")
    return name


class Caption(Section):
    """Who describes the clips."""

    captioner: Literal["embedded", "openai"] = "embedded"
    """`embedded` measures and describes without network; `openai` asks any OpenAI-compatible endpoint."""
    model: str = "gpt-4o"
    """Model name at the endpoint."""
    base_url: str | None = None
    """The endpoint; OpenAI's own when absent."""
    api_key_env: Annotated[str, AfterValidator(_variable)] = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key. The key itself is never written anywhere."""
    batch: bool = False
    """Use the endpoint's Batch API: half the price, answers within a day."""
    budget_usd: Annotated[float, Field(ge=0)] = 50.0
    """Spending over all shards and restarts never exceeds this, requests in flight counted."""
    usd_per_million_in: Annotated[float, Field(ge=0)] | None = None
    """Price of a million prompt tokens; the built-in list's when absent, nothing for a `server` of one's own."""
    usd_per_million_out: Annotated[float, Field(ge=0)] | None = None
    """Price of a million answered tokens."""
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
    """Requests per clip before it fails: errors of the server and unusable answers together."""
    max_failed_share: Fraction = 0.02
    """The stage fails when more than this share of its clips fails."""
    banned_words: tuple[str, ...] = (
        "video", "image", "frame", "footage", "screenshot", "stop motion", "animation", "blocky",
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
