"""One request to an OpenAI-compatible endpoint: what is sent, and what came of it.

The client's own retries are off: every request must pass the budget and stand in the ledger.
"""

import asyncio
import base64
import json
import math
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import openai

from brickreel.captions.answer import Answer, response_format
from brickreel.config import Caption

Billed = Literal["reported", "none", "unknown"]

NO_KEY = "none"
"""What is sent as the key where none is needed: the client insists on one."""
OPENAI_URL = "https://api.openai.com/v1"
CUT = "the answer was cut at max_tokens"
NO_SCHEMA = "the answer does not follow the schema"

_MOST_TOKENS = 1 << 31
"""More than any request has: a count beyond it is none."""
_CONNECT_S = 20.0
"""Longest wait for a connection; shorter than that for an answer, since nothing is paid before there is one."""
# The request never left. By name: the client has changed its HTTP library before.
_UNSENT = ("ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol", "SSLCertVerificationError")
# A gateway's words: the model behind it may have answered, and charged.
_MAYBE_PAID = (408, 502, 504, 520, 524)
# Parameters that some models refuse, and what they take instead.
_REPLACED = {"max_tokens": "max_completion_tokens", "temperature": "", "response_format": ""}
# What endpoints say of one request that they will not answer for what is in it, with 400 or 403.
_MODERATED = re.compile(
    r"moderat|content[ _-]?(policy|filter|management)|safety system|(input|prompt|image|content) (was|is) flagged", re.I
)


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
    unsupported: str = ""
    """The parameter that the model refuses, where the request can be repeated without it."""


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
    timeout = openai.Timeout(settings.timeout_s, connect=min(_CONNECT_S, settings.timeout_s / 2))
    # Said in full: the client would otherwise take OPENAI_BASE_URL, and the prices of the list would not be its.
    url = base_url or OPENAI_URL
    return openai.AsyncOpenAI(api_key=key, base_url=url, timeout=timeout, max_retries=0, http_client=direct)


def body(
    settings: Caption,
    prompt: str,
    jpegs: Sequence[bytes],
    again: str = "",
    kind: str = "clip",
    unsupported: Collection[str] = (),
) -> dict[str, Any]:
    """The body of a chat request with pictures, without the parameters that the model has refused."""
    content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
    for data in jpegs:
        url = "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
        content.append({"type": "image_url", "image_url": {"url": url, "detail": settings.detail}})
    if again:
        # In the same message: some servers insist that user and assistant take turns.
        content.append({"type": "text", "text": again})
    request = {
        "model": settings.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": settings.max_tokens,
        "temperature": 0,
        "response_format": response_format(kind),
    }
    for name in unsupported:
        value = request.pop(name)
        if _REPLACED[name]:
            request[_REPLACED[name]] = value
    return request


async def ask(client: openai.AsyncOpenAI, request: dict[str, Any]) -> tuple[Reply, Mapping[str, str], float]:
    """Send one request: the reply, the response's headers, and the seconds it took.

    Raises EndpointError when no request to this endpoint can succeed.
    """
    started = time.monotonic()
    headers: Mapping[str, str] = {}
    try:
        # The client's own limit is for each part of an answer: a server that drips would be waited for for ever.
        async with asyncio.timeout(getattr(client.timeout, "read", None)):
            raw = await client.chat.completions.with_raw_response.create(**request)
        headers = raw.headers
        reply = read_bytes(raw.http_response.content)
    except openai.APIStatusError as error:
        headers = error.response.headers
        reply = read_error(error.status_code, error.code, words(error, client.api_key), headers, error.param)
        if reply.unsupported and reply.unsupported not in request:
            reply = replace(reply, unsupported="", pointless=True)
    except (openai.APIConnectionError, TimeoutError) as error:
        reply = _unanswered(error, client.api_key)
    except (openai.OpenAIError, ValueError) as error:
        reply = Reply("failed", f"unusable response: {clean(str(error), client.api_key)}", billed="unknown")
    return reply, headers, time.monotonic() - started


def _unanswered(error: Exception, key: str) -> Reply:
    """The reply that a connection without an answer stands for: free where the request never left."""
    unsent = type(error.__cause__).__name__ in _UNSENT
    late = isinstance(error, openai.APITimeoutError | TimeoutError)
    causes = list(_causes(error))
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        reason = "the connection was refused"
    elif late:
        reason = "no connection in time" if unsent else "no answer in time"
    else:
        said = next((said for cause in reversed(causes) if (said := clean(str(cause), key))), "")
        reason = ("no connection" if unsent else "the connection was dropped") + (f": {said}" if said else "")
    return Reply("failed", reason, billed="none" if unsent else "unknown")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What an error came of, the deepest last."""
    cause = error.__cause__
    while cause:
        yield cause
        cause = cause.__cause__ or cause.__context__


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
        return Reply("dropped", CUT, **paid)
    answer = _answer(text) if isinstance(text, str) else None
    return Reply("ok", answer=answer, **paid) if answer else Reply("failed", NO_SCHEMA, **paid)


def _answer(text: str) -> Answer | None:
    """The first object in a text that follows the schema: servers that ignore `response_format` put it between fences,
    words or thoughts."""
    for found in re.finditer(r"\{", text):
        try:
            _, end = json.JSONDecoder().raw_decode(text, found.start())
            return Answer.model_validate_json(text[found.start() : end])
        except (ValueError, RecursionError):
            continue
    return None


def _paid(usage: Any) -> dict[str, Any]:
    """What an answer says that it cost. Counts that are none are no counts: the highest price is then assumed."""
    tokens = [usage.get("prompt_tokens"), usage.get("completion_tokens") or 0] if isinstance(usage, dict) else [None]
    if all(type(count) is int and 0 <= count < _MOST_TOKENS for count in tokens):
        return {"billed": "reported", "tokens_in": tokens[0], "tokens_out": tokens[1]}
    return {"billed": "unknown"}


def read_error(status: int, code: Any, words: str, headers: Mapping[str, str], param: str | None = None) -> Reply:
    """The reply that an error status stands for. Raises EndpointError for those that concern every request."""
    if status in (400, 403) and _MODERATED.search(f"{code} {words}"):
        return Reply("dropped", f"refusal: {words}")
    if status in (401, 402, 403, 404) or code in ("insufficient_quota", "model_not_found"):
        raise EndpointError(f"the captioning endpoint refuses every request ({status}): {words}")
    if status == 429:
        return Reply("failed", "rate limit", retry_after_s=retry_after(headers), limited=True)
    unsupported = _unsupported(code, param, words) if status == 400 else ""
    return Reply(
        "failed",
        f"status {status}: {words}",
        billed="unknown" if status in _MAYBE_PAID else "none",
        retry_after_s=retry_after(headers),
        pointless=status in (400, 413, 415, 422) and not unsupported,
        unsupported=unsupported,
    )


def _unsupported(code: Any, param: str | None, words: str) -> str:
    """The parameter that a model refuses and that the request can do without; empty for none."""
    if code in ("unsupported_parameter", "unsupported_value") and param in _REPLACED:
        return param or ""
    # Some gateways pass on the sentence alone; others name the parameter where its value is wrong.
    if _REPLACED["max_tokens"] in words and re.search(r"unsupported|not supported", words, re.I):
        return "max_tokens"
    # The prompt asks for the same object in words.
    named = "response_format" in words and re.search(r"support|unavailable|not available|enabled only", words, re.I)
    return "response_format" if named or param == "response_format" else ""


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
    """One short line without the key, which some servers quote back, and without the password in an address.

    Characters that no file can hold become `?`.
    """
    if key and key != NO_KEY:
        text = text.replace(key, "[key]")
    text = re.sub(r"//[^/\s]*@", "//", text)
    return " ".join(text.encode("utf-8", "replace").decode().split())[:200]
