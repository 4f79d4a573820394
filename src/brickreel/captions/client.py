"""One request to an OpenAI-compatible endpoint: what is sent, and what came of it.

The client's own retries are off: every request must pass the budget and stand in the ledger.
"""

import asyncio
import base64
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import openai
from pydantic import ValidationError

from brickreel.captions.answer import Answer, response_format
from brickreel.config import Caption

Billed = Literal["reported", "none", "unknown"]

NO_KEY = "none"
"""What is sent as the key where none is needed: the client insists on one."""


_MOST_TOKENS = 1 << 31
"""More than any request has: a count beyond it is none."""


class EndpointError(ValueError):
    """The endpoint will answer no request: a wrong key, an unknown model, an exhausted account."""


@dataclass(frozen=True)
class Reply:
    """What came of one request."""

    outcome: Literal["ok", "dropped", "failed"]
    """ok: a structured answer. dropped: the endpoint answered, but will not describe this. failed: nothing usable."""
    reason: str = ""
    answer: Answer | None = None
    billed: Billed = "none"
    tokens_in: int = 0
    tokens_out: int = 0
    retry_after_s: float | None = None
    limited: bool = False
    """429: not a failure of the request, but of its hour."""
    pointless: bool = False
    """The same request would fail again."""


def api_key(settings: Caption) -> str:
    """The key from the environment. Raises ValueError when the endpoint needs one and there is none."""
    if not settings.api_key_env or settings.server.command:
        return os.environ.get(settings.api_key_env or "", "") or NO_KEY
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise ValueError(
            f"the captioner 'openai' needs an API key in the environment variable {settings.api_key_env}: export it, "
            "set caption.api_key_env to '' for an endpoint without keys, or use `captioner: embedded`"
        )
    return key


def connect(settings: Caption, base_url: str | None, key: str) -> openai.AsyncOpenAI:
    """A client for an endpoint."""
    # A proxy of the site has no business between a process and the server that it started on its own machine.
    direct = openai.DefaultAsyncHttpxClient(trust_env=False) if settings.server.command else None
    return openai.AsyncOpenAI(
        api_key=key, base_url=base_url, timeout=settings.timeout_s, max_retries=0, http_client=direct
    )


def body(settings: Caption, prompt: str, jpegs: Sequence[bytes], again: str = "") -> dict[str, Any]:
    """The body of a chat request with pictures."""
    content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
    for data in jpegs:
        url = "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
        content.append({"type": "image_url", "image_url": {"url": url, "detail": settings.detail}})
    messages = [{"role": "user", "content": content}]
    if again:
        messages.append({"role": "user", "content": [{"type": "text", "text": again}]})
    return {
        "model": settings.model,
        "messages": messages,
        "max_tokens": settings.max_tokens,
        "temperature": 0,
        "response_format": response_format(),
    }


async def ask(client: openai.AsyncOpenAI, request: dict[str, Any]) -> tuple[Reply, Mapping[str, str], float]:
    """Send one request: the reply, the response's headers, and the seconds it took.

    Raises EndpointError when no request to this endpoint can succeed.
    """
    started = time.monotonic()
    headers: Mapping[str, str] = {}
    try:
        # The client's own limit is for each part of an answer: a server that drips would be waited for for ever.
        async with asyncio.timeout(_seconds(client.timeout)):
            raw = await client.chat.completions.with_raw_response.create(**request)
        headers = raw.headers
        reply = read_bytes(raw.http_response.content)
    except openai.APIStatusError as error:
        headers = error.response.headers
        reply = read_error(error.status_code, error.code, words(error, client.api_key), headers)
    except (openai.APITimeoutError, TimeoutError):
        reply = Reply("failed", "no answer in time", billed="unknown")
    except openai.APIConnectionError as error:
        refused = (
            "refused" in f"{error.__cause__}".lower()
            or "all connection attempts failed" in f"{error.__cause__}".lower()
        )
        reply = Reply(
            "failed",
            "the connection was " + ("refused" if refused else "dropped"),
            billed="none" if refused else "unknown",
        )
    except (openai.OpenAIError, ValueError) as error:
        reply = Reply("failed", f"unusable response: {clean(str(error), client.api_key)}", billed="unknown")
    return reply, headers, time.monotonic() - started


def read_bytes(data: bytes) -> Reply:
    """The reply in the body of a response with status 200."""
    try:
        value = json.loads(data)
    except ValueError:
        return Reply("failed", "the response is not JSON", billed="unknown")
    return read(value)


def read(value: Any) -> Reply:
    """The reply in a parsed chat completion, of a single request or of a line of a batch's output."""
    paid = _paid(value.get("usage") if isinstance(value, dict) else None)
    try:
        choice = value["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        refusal, text = message.get("refusal"), message.get("content")
    except (TypeError, LookupError, AttributeError):
        return Reply("failed", "the response has no choices", **paid)
    if refusal or finish == "content_filter":
        return Reply("dropped", clean(f"refusal: {refusal or 'content filter'}", ""), **paid)
    if finish == "length":
        return Reply("dropped", "the answer was cut at max_tokens", **paid)
    try:
        return Reply("ok", answer=Answer.model_validate_json(text), **paid)
    except (ValidationError, TypeError):
        return Reply("failed", "the answer does not follow the schema", **paid)


def _paid(usage: Any) -> dict[str, Any]:
    """What an answer says that it cost. Counts that are none are no counts: the highest price is then assumed."""
    tokens = [usage.get("prompt_tokens"), usage.get("completion_tokens") or 0] if isinstance(usage, dict) else [None]
    if all(type(count) is int and 0 <= count < _MOST_TOKENS for count in tokens):
        return {"billed": "reported", "tokens_in": tokens[0], "tokens_out": tokens[1]}
    return {"billed": "unknown"}


def read_error(status: int, code: Any, words: str, headers: Mapping[str, str]) -> Reply:
    """The reply that an error status stands for. Raises EndpointError for those that concern every request."""
    if status in (401, 403) or (status == 404) or code in ("insufficient_quota", "model_not_found"):
        raise EndpointError(f"the captioning endpoint refuses every request ({status}): {words}")
    if status == 429:
        return Reply("failed", "rate limit", retry_after_s=retry_after(headers), limited=True)
    pointless = status in (400, 413, 415, 422)
    return Reply("failed", f"status {status}: {words}", retry_after_s=retry_after(headers), pointless=pointless)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, from `retry-after-ms` or `retry-after`; None when it does not say.

    `retry-after` may be a date (RFC 9110, 10.2.3).
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError):
        return None


def words(error: openai.APIStatusError, key: str) -> str:
    """What the endpoint says of an error, on one line and without the key."""
    found = error.body.get("message") if isinstance(error.body, dict) else None
    return clean(str(found or error.message), key)


def clean(text: str, key: str) -> str:
    """One short line without the key: some servers quote it back. Characters that no file can hold become `?`."""
    if key and key != NO_KEY:
        text = text.replace(key, "[key]")
    return " ".join(text.encode("utf-8", "replace").decode().split())[:200]


def _seconds(timeout: Any) -> float | None:
    return float(timeout) if isinstance(timeout, int | float) else None
