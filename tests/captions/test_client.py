import asyncio
import contextlib
import json
import socket
import threading
import time
from email.utils import formatdate

import pytest

from brickreel.captions import client
from brickreel.captions.answer import Answer, response_format
from brickreel.config import Caption
from captions import project

ANSWER = {
    "outcome": "described",
    "caption": "A red figure walks to the left.",
    "subjects": "figure",
    "action": "walks",
    "camera": "still",
    "setting": "street",
    "style": "bright",
    "confidence": 0.9,
}


def completion(content=None, finish="stop", **other):
    message = {"role": "assistant", "content": json.dumps(ANSWER) if content is None else content, "refusal": None}
    value = {
        "choices": [{"index": 0, "message": message | other.pop("message", {}), "finish_reason": finish}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20},
    }
    return value | other


def test_structured_answer_is_read_with_its_tokens():
    reply = client.read(completion())
    assert (reply.outcome, reply.billed, reply.tokens_in, reply.tokens_out) == ("ok", "reported", 100, 20)
    assert reply.answer == Answer(**ANSWER)


@pytest.mark.parametrize(
    ("value", "outcome", "reason", "billed"),
    [
        (completion(message={"refusal": "I cannot."}), "dropped", "refusal: I cannot.", "reported"),
        (completion(finish="content_filter"), "dropped", "refusal: content filter", "reported"),
        (completion('{"capt', finish="length"), "dropped", "the answer was cut at max_tokens", "reported"),
        (completion('{"caption": "x"}'), "failed", "the answer does not follow the schema", "reported"),
        (completion("plain words"), "failed", "the answer does not follow the schema", "reported"),
        (completion("\ud83d {}"), "failed", "the answer does not follow the schema", "reported"),
        (completion(json.dumps(ANSWER | {"confidence": 7})), "failed", "does not follow the schema", "reported"),
        (completion(message={"content": None}), "failed", "the answer does not follow the schema", "reported"),
        (completion(choices=[]), "failed", "the response has no choices", "reported"),
        (completion(choices=None, usage=None), "failed", "the response has no choices", "unknown"),
        ({"result": 1}, "failed", "the response has no choices", "unknown"),
        (["a list"], "failed", "the response has no choices", "unknown"),
        (None, "failed", "the response has no choices", "unknown"),
    ],
)
def test_every_other_shape_has_an_outcome_a_reason_and_says_whether_it_was_paid(value, outcome, reason, billed):
    reply = client.read(value)
    assert (reply.outcome, reply.billed) == (outcome, billed)
    assert reason in reply.reason
    assert reply.answer is None


@pytest.mark.parametrize(
    "form",
    [
        "```json\n{}\n```",
        "```\n{}```",
        "Here it is: {} I hope it helps.",
        "\n {}\n",
        "<think>{a}</think>{}",
        "{}}",
        '{"a": 1} {} {b}',
    ],
)
def test_object_between_fences_or_words_is_read(form):
    assert client.read(completion(form.replace("{}", json.dumps(ANSWER)))).answer == Answer(**ANSWER)


def test_body_that_is_not_json_counts_as_paid():
    assert client.read_bytes(b'{"choices": [').billed == "unknown"


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, None), (402, None), (403, None), (404, None), (429, "insufficient_quota"), (400, "model_not_found")],
)
def test_errors_that_concern_every_request_are_raised(status, code):
    with pytest.raises(client.EndpointError, match=f"refuses every request .{status}.: the words"):
        client.read_error(status, code, "the words", {})


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, 403, "m requires moderation on P. Your input was flagged for x"),
        (400, "content_policy_violation", "Your request was rejected"),
        (400, "content_filter", "The response was filtered"),
        (403, None, "Your request was rejected as a result of our safety system."),
    ],
)
def test_refusal_of_one_clip_is_its_outcome_and_not_the_end(status, code, said):
    reply = client.read_error(status, code, said, {})
    assert (reply.outcome, reply.reason, reply.billed) == ("dropped", f"refusal: {said}", "none")


@pytest.mark.parametrize(
    ("code", "param", "said", "unsupported"),
    [
        ("unsupported_parameter", "max_tokens", "words", "max_tokens"),
        (None, None, "'max_tokens' is not supported. Use 'max_completion_tokens'.", "max_tokens"),
        (None, None, "max_tokens or max_completion_tokens is too large: 500.", ""),
        ("unsupported_value", "temperature", "Only the default (1) value is supported.", "temperature"),
        ("unsupported_parameter", "response_format", "words", "response_format"),
        (None, "response_format", "words", "response_format"),
        ("invalid_request_error", None, "This response_format type is unavailable now", "response_format"),
        (
            *(
                None,
                None,
                "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
            ),
            "response_format",
        ),
        (None, None, "too many tokens: 9000 in the messages, 90 in the response_format", ""),
        ("invalid_image", None, "words", ""),
    ],
)
def test_refused_parameter_is_named_where_the_request_can_do_without(code, param, said, unsupported):
    reply = client.read_error(400, code, said, {}, param)
    assert (reply.outcome, reply.unsupported, reply.pointless) == ("failed", unsupported, not unsupported)


@pytest.mark.parametrize(
    ("status", "limited", "pointless", "billed"),
    [
        (429, True, False, "none"),
        (500, False, False, "none"),
        (503, False, False, "none"),
        (408, False, False, "unknown"),
        (502, False, False, "unknown"),
        (504, False, False, "unknown"),
        (524, False, False, "unknown"),
        (400, False, True, "none"),
        (413, False, True, "none"),
    ],
)
def test_other_errors_say_whether_to_wait_or_to_give_up_and_whether_they_may_have_been_paid(
    status, limited, pointless, billed
):
    reply = client.read_error(status, None, "words", {"retry-after": "3"})
    assert (reply.outcome, reply.limited, reply.pointless, reply.billed) == ("failed", limited, pointless, billed)
    if not pointless:
        assert reply.retry_after_s == 3


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2),
        ({"retry-after-ms": "150", "retry-after": "2"}, 0.15),
        ({"retry-after": "-5"}, 0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_its_forms(headers, seconds):
    assert client.retry_after(headers) == seconds


def test_retry_after_may_be_a_date():
    date = formatdate(time.time() + 90, usegmt=True)
    assert 80 < client.retry_after({"retry-after": date}) <= 90


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 100, "completion_tokens": "many"},
        {"prompt_tokens": 100, "completion_tokens": [1]},
        {"prompt_tokens": -100, "completion_tokens": 20},
        {"prompt_tokens": 100, "completion_tokens": -20},
        {"prompt_tokens": True, "completion_tokens": 20},
        {"prompt_tokens": 10**40, "completion_tokens": 20},
        {"prompt_tokens": 99.5},
        "free",
    ],
)
def test_count_of_tokens_that_is_none_is_not_believed(usage):
    """A negative count would give money back to the budget."""
    reply = client.read(completion(usage=usage))
    assert (reply.outcome, reply.billed, reply.tokens_in, reply.tokens_out) == ("ok", "unknown", 0, 0)


def test_refusal_with_half_a_character_can_be_written_down():
    reply = client.read(completion(message={"refusal": "I can\ud83d not."}))
    assert reply.reason == "refusal: I can? not."


def test_body_has_prompt_pictures_schema_and_what_was_wrong_before_in_one_message():
    body = client.body(Caption(model="m", detail="high", max_tokens=7), "Describe.", [b"one", b"two"], "Again.")
    (message,) = body["messages"]
    assert [part["type"] for part in message["content"]] == ["text", "image_url", "image_url", "text"]
    assert message["content"][1]["image_url"] == {"url": "data:image/jpeg;base64,b25l", "detail": "high"}
    assert message["content"][-1]["text"] == "Again."
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 7, 0)
    assert body["response_format"] == response_format("clip")


def test_body_has_no_parameter_that_the_model_refused():
    body = client.body(Caption(max_tokens=7), "Describe.", [], unsupported=client._REPLACED)
    assert body["max_completion_tokens"] == 7
    assert set(body) == {"model", "messages", "max_completion_tokens"}


def test_schema_asks_for_every_field_and_nothing_else():
    schema = response_format("clip")["json_schema"]["schema"]
    assert set(schema["required"]) == set(schema["properties"]) == set(Answer.model_fields)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["outcome"]["enum"] == [
        "described", "not enough information", "single image", "no movement",
    ]  # fmt: skip


def test_schema_of_a_still_has_no_outcome_that_only_a_clip_can_have():
    body = client.body(Caption(), "Describe.", [b"one"], kind="still")
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["outcome"]["enum"] == ["described", "not enough information"]


@pytest.mark.parametrize("base_url", [None, ""])
def test_openais_key_goes_to_openai_whatever_the_environment_says(monkeypatch, base_url):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert str(client.connect(Caption(), base_url, "sk-1").base_url) == "https://api.openai.com/v1/"


def test_key_comes_from_the_environment_and_is_not_needed_for_a_server_of_ones_own(monkeypatch):
    monkeypatch.setenv("A_KEY", " sk-1 ")
    assert client.api_key(Caption(api_key_env="A_KEY")) == "sk-1"
    monkeypatch.delenv("A_KEY")
    with pytest.raises(ValueError, match="A_KEY"):
        client.api_key(Caption(api_key_env="A_KEY"))
    assert client.api_key(Caption(api_key_env="")) == "none"
    assert client.api_key(Caption(api_key_env="A_KEY", server={"command": ["x", "{port}"]})) == "none"


def test_key_that_an_endpoint_quotes_back_is_taken_out():
    assert client.clean("bad key sk-1\n  given", "sk-1") == "bad key [key] given"
    assert client.clean("there is none", client.NO_KEY) == "there is none"
    assert client.clean("at https://me:p@ss@host/v1 it is", "sk-1") == "at https://host/v1 it is"
    assert len(client.clean("x" * 1000, "sk-1")) == 200


def asked(server, timeout_s=5.0):
    async def once():
        settings = Caption(model="m", base_url=server.url, timeout_s=timeout_s)
        async with client.connect(settings, server.url, "sk-1") as api:
            return await client.ask(api, client.body(settings, "Describe.", [b"x"]))

    return asyncio.run(once())


@pytest.mark.parametrize(
    ("fault", "outcome", "billed", "reason"),
    [
        (None, "ok", "reported", ""),
        ("500", "failed", "none", "status 500"),
        ("504", "failed", "unknown", "status 504"),
        ("fenced", "ok", "reported", ""),
        ("prose", "failed", "reported", "does not follow the schema"),
        ("429-after", "failed", "none", "rate limit"),
        ("drop", "failed", "unknown", "the connection was dropped"),
        ("half-body", "failed", "unknown", "the connection was dropped"),
        ("slow", "failed", "unknown", "no answer in time"),
        ("drip", "failed", "unknown", "no answer in time"),
        ("truncated", "failed", "reported", "does not follow the schema"),
        ("wrong-shape", "failed", "reported", "no choices"),
    ],
)
def test_one_request_is_one_request_whatever_comes_of_it(fault, outcome, billed, reason):
    with project.serving(script=[fault]) as server:
        reply, _, seconds = asked(server, timeout_s=1.0 if fault in ("slow", "drip") else 5.0)
        assert server.requests == 1, "the client repeated a request past the ledger"
    assert (reply.outcome, reply.billed) == (outcome, billed)
    assert reason in reply.reason
    assert seconds > 0


@contextlib.contextmanager
def full():
    """The address of a server that takes no further connection, nor refuses one."""
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9/v1", "the connection was refused"),
        ("http://nowhere.invalid/v1", "no connection: ["),
        ("ftp://127.0.0.1/v1", "no connection: Request URL has an unsupported protocol"),
    ],
)
def test_request_that_never_left_costs_nothing_and_says_why(monkeypatch, url, reason):
    monkeypatch.setenv("no_proxy", "*")
    with project.serving() as server:
        server.url = url
        reply, _, _ = asked(server)
    assert (reply.outcome, reply.billed) == ("failed", "none")
    assert reply.reason.startswith(reason)


def test_server_that_speaks_no_tls_costs_nothing(monkeypatch):
    def answer(listener):
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.recv(1000)

    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as listener, project.serving() as server:
        server.url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        reply, _, _ = asked(server)
    assert (reply.outcome, reply.billed) == ("failed", "none")
    assert reply.reason.startswith("no connection: [SSL")


def test_connection_that_does_not_come_about_in_time_costs_nothing():
    with full() as url, project.serving() as server:
        server.url = url
        reply, _, _ = asked(server, timeout_s=1.0)
    assert (reply.reason, reply.billed) == ("no connection in time", "none")


def test_proxy_that_refuses_costs_nothing_and_its_password_is_not_told(monkeypatch):
    with project.serving() as server:
        monkeypatch.setenv("HTTPS_PROXY", server.url.replace("//", "//me:secret@"))
        server.url = "https://nowhere.invalid/v1"
        reply, _, _ = asked(server)
    assert (reply.outcome, reply.billed) == ("failed", "none")
    assert reply.reason.startswith("no connection: 404")
    assert "secret" not in reply.reason
