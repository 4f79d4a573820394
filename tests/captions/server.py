"""A small OpenAI-compatible captioning server: chat completions, files, batches, models, health.

    python server.py --port 8000 [--faults 0.2] [--latency 0.05] [--log FILE]

It answers with a caption that is a function of the pictures it was sent, charges for tokens as a real endpoint does,
and makes the faults that it is told to make. `GET /stats` tells what was asked and paid. Every paid answer is also
written to the log, so that the count survives the caller's death. Used by the tests and as a `caption.server` command.
"""

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import random
import time
import uuid

# Faults that cost nothing, and faults for which a real endpoint charges.
FREE_FAULTS = ("429", "429-after", "500", "502", "drop")
PAID_FAULTS = ("truncated", "no-choices", "refusal", "length", "wrong-shape", "banned", "half-body", "drop-paid")
FAULTS = FREE_FAULTS + PAID_FAULTS

PICTURE_TOKENS = 85
WANTS_OTHER_TOKENS = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "orange", "brown")
MOVES = ("walks to the left", "walks to the right", "turns around", "jumps up and down", "falls over slowly")


class Server:
    """State of one server. Faults: a list to be made one after another, then a share of the rest at random."""

    def __init__(
        self,
        key="",
        faults=0.0,
        latency_s=0.0,
        slots=0,
        seed=0,
        log=None,
        script=(),
        kinds=FAULTS,
        batch_s=0.0,
        batch_script=(),
    ):
        self.key, self.faults, self.latency_s, self.kinds, self.batch_s = key, faults, latency_s, kinds, batch_s
        self.slots = asyncio.Semaphore(slots) if slots else contextlib.nullcontext()
        self.random = random.Random(seed)
        self.script = list(script)
        # What goes wrong with the next batches: 429, drop-before, drop-after, 408-after, 502-after (creation); failed,
        # expired, cancelled, no-room.
        self.batch_script = list(batch_script)
        self.poll_script = []  # what the next questions after batches are answered: 429, 503, drop
        self.log = open(log, "a", buffering=1) if log else None  # noqa: SIM115
        self.paid, self.requests, self.most_at_once, self.at_once = {}, 0, 0, 0
        self.tokens_in = self.tokens_out = 0
        self.good = {}
        self.made = {}
        # Parameters that the model refuses, as newer ones do.
        self.refused = ()
        # What is said of a schema, in words alone, where the model takes none.
        self.no_schema = ""
        self.bodies = []
        self.keep_bodies = False
        self.no_batches = False
        self.healthy_from = 0.0
        self.files, self.batches, self.uploads = {}, {}, []
        self.url = ""

    async def start(self, port=0):
        self.listener = await asyncio.start_server(self._connection, "127.0.0.1", port, limit=1 << 26)
        self.url = f"http://127.0.0.1:{self.listener.sockets[0].getsockname()[1]}/v1"
        return self

    async def stop(self):
        self.listener.close()

    async def _connection(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                method, path, _ = lines[0].split(" ", 2)
                headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:] if ": " in line)}
                data = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self._answer(method, path, headers, data, writer):
                    break
        writer.close()

    async def _answer(self, method, path, headers, data, writer):
        if path in ("/health", "/v1/health"):
            return await send(writer, 200 if time.monotonic() >= self.healthy_from else 503, {})
        if path == "/stats":
            return await send(writer, 200, self.stats())
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            said = headers.get("authorization", "")
            return await send(writer, 401, error(f"Incorrect API key provided: {said}", "invalid_api_key"))
        if path == "/v1/models":
            return await send(writer, 200, {"object": "list", "data": [{"id": "test-model", "object": "model"}]})
        if path == "/v1/chat/completions":
            return await self._chat(json.loads(data), writer)
        return await self._files_and_batches(method, path, headers, data, writer)

    async def _chat(self, body, writer):
        self.requests += 1
        if self.keep_bodies:
            self.bodies.append(body)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            roles = [message["role"] for message in body["messages"]]
            if any(role == after for role, after in itertools.pairwise(roles)):
                return await send(writer, 400, error("Conversation roles must alternate user/assistant", None))
            if refusal := self._refusal(body):
                return await send(writer, 400, refusal)
            fault = self._fault()
            async with self.slots:
                if fault not in FREE_FAULTS:
                    await asyncio.sleep(self.latency_s)
                return await self._reply(body, fault, writer)
        finally:
            self.at_once -= 1

    def _refusal(self, body):
        for name in self.refused:
            if name in body:
                words = f"Unsupported parameter: '{name}' is not supported with this model."
                return error(words, "unsupported_parameter", name)
        return error(self.no_schema, None) if self.no_schema and "response_format" in body else None

    def _fault(self):
        if self.script:
            fault = self.script.pop(0)
        else:
            fault = self.random.choice(self.kinds) if self.random.random() < self.faults else None
        if fault:
            self.made[fault] = self.made.get(fault, 0) + 1
        return fault

    async def _reply(self, body, fault, writer):
        if fault == "429":
            return await send(writer, 429, error("Rate limit reached", "rate_limit_exceeded"))
        if fault == "429-after":
            return await send(writer, 429, error("Rate limit reached", "rate_limit_exceeded"), {"retry-after": "0.2"})
        if fault == "quota":
            return await send(writer, 429, error("You exceeded your current quota", "insufficient_quota"))
        if fault in ("429-now", "429-hours"):
            after = {"retry-after": "0" if fault == "429-now" else "7200"}
            return await send(writer, 429, error("Rate limit reached", "rate_limit_exceeded"), after)
        if fault == "wants-other-tokens":
            return await send(writer, 400, error(WANTS_OTHER_TOKENS, None))
        if fault == "moderated":
            words = "test-model requires moderation. Your input was flagged for violence"
            return await send(writer, 403, error(words, 403))
        if fault in ("402", "408", "504", "524"):
            return await send(writer, int(fault), error("The server had an error", None))
        if fault in ("500", "502"):
            return await send(writer, int(fault), error("The server had an error", None))
        if fault == "400":
            return await send(writer, 400, error("Invalid image", "invalid_image"))
        if fault == "drop":
            return False
        if fault == "slow":
            await asyncio.sleep(3600)
        name = identity(body)
        value = completion(body, name, fault)
        self._pay(name, charged(value), good=fault in (None, "drop-paid"))
        if fault == "drop-paid":
            return False
        if fault == "half-body":
            return await send(writer, 200, value, cut=True)
        if fault == "drip":
            writer.write(b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n")
            for _ in range(300):
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.1)
        hours = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2h"}
        return await send(writer, 200, value, hours if fault == "limit-for-hours" else None)

    def _pay(self, name, usage, good):
        self.paid[name] = self.paid.get(name, 0) + 1
        self.tokens_in += usage["prompt_tokens"]
        self.tokens_out += usage["completion_tokens"]
        if good:
            self.good[name] = self.good.get(name, 0) + 1
        if self.log:
            self.log.write(json.dumps({"name": name, "good": good, **usage}) + "\n")

    def stats(self):
        return {
            "requests": self.requests,
            "paid": sum(self.paid.values()),
            "paid_twice": sum(n > 1 for n in self.good.values()),
            "most_at_once": self.most_at_once,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "faults": self.made,
        }

    async def _files_and_batches(self, method, path, headers, data, writer):
        parts = path.split("?")[0].strip("/").split("/")[1:]
        if self.no_batches:
            return await send(writer, 404, error("Not Found", None))
        if method == "POST" and parts == ["files"]:
            name = "file-" + uuid.uuid4().hex
            self.files[name] = multipart_file(headers["content-type"], data)
            self.uploads.append(len(self.files[name]))
            return await send(writer, 200, {"id": name, "object": "file", "purpose": "batch", "bytes": len(data)})
        if method == "GET" and parts[0] == "files" and parts[-1] == "content" and parts[1] in self.files:
            return await send(writer, 200, self.files[parts[1]])
        if method == "DELETE" and parts[0] == "files":
            self.files.pop(parts[1], None)
            return await send(writer, 200, {"id": parts[1], "object": "file", "deleted": True})
        if method == "POST" and parts == ["batches"]:
            asked = json.loads(data)
            fault = self.batch_script.pop(0) if self.batch_script else ""
            if fault == "drop-before":
                return False
            if fault == "429":
                return await send(writer, 429, error("Too many batches", "rate_limit_exceeded"), {"retry-after": "0.1"})
            if fault == "slow":
                await asyncio.sleep(1.5)
            batch = {
                "id": "batch_" + uuid.uuid4().hex,
                "object": "batch",
                "status": "in_progress",
                "created_at": int(time.time()),
                "ready": time.monotonic() + self.batch_s,
                "fault": fault,
                **{k: asked.get(k) for k in ("endpoint", "input_file_id", "completion_window", "metadata")},
            }
            self.batches[batch["id"]] = batch
            if fault == "drop-after":
                return False
            if fault in ("408-after", "502-after"):
                return await send(writer, int(fault[:3]), error("Bad gateway", None))
            return await send(writer, 200, batch)
        if method == "GET" and parts[0] == "batches" and self.poll_script:
            fault = self.poll_script.pop(0)
            return fault != "drop" and await send(writer, int(fault), error("Not now", None))
        if method == "GET" and parts == ["batches"]:
            return await send(writer, 200, {"object": "list", "data": list(self.batches.values()), "has_more": False})
        if method == "GET" and parts[0] == "batches" and parts[1] in self.batches:
            batch = self.batches[parts[1]]
            if batch["status"] == "in_progress" and time.monotonic() >= batch["ready"]:
                self._complete(batch)
            return await send(writer, 200, batch)
        return await send(writer, 404, error(f"no such thing: {method} {path}", "not_found"))

    def _complete(self, batch):
        """Answer a batch's lines in another order than asked, failures in the error file, as real endpoints do."""
        answered, failed = [], []
        if batch["fault"] == "failed":
            batch["status"] = "failed"
            batch["errors"] = {
                "object": "list",
                "data": [{"code": "token_limit", "message": "Too many tokens,\n" * 99}],
            }
            return
        if batch["fault"] == "no-room":
            batch["status"] = "failed"
            problem = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}
            batch["errors"] = {"object": "list", "data": [problem]}
            return
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines() if line]
        self.random.shuffle(lines)
        if batch["fault"] in ("expired", "cancelled"):
            lines = lines[: len(lines) // 2]
        for line in lines:
            if body := self._refusal(line["body"]):
                row = {"id": "req_" + uuid.uuid4().hex, "custom_id": line["custom_id"], "error": None}
                failed.append(row | {"response": {"status_code": 400, "body": body}})
                continue
            fault = self._fault()
            fault = {"drop": "500", "drop-paid": "500", "half-body": "500", "slow": "500"}.get(fault, fault)
            row = {"id": "req_" + uuid.uuid4().hex, "custom_id": line["custom_id"], "error": None}
            if fault in ("429", "429-after", "500", "502", "400"):
                row["response"] = {"status_code": int(fault[:3]), "body": error("The server had an error", None)}
                failed.append(row)
                continue
            if fault == "wants-other-tokens":
                failed.append(row | {"response": {"status_code": 400, "body": error(WANTS_OTHER_TOKENS, None)}})
                continue
            if fault == "words":
                failed.append(row | {"error": "The server had an error", "response": "none"})
                continue
            name = identity(line["body"])
            value = completion(line["body"], name, fault)
            self._pay(name, charged(value), good=fault is None)
            answered.append({**row, "response": {"status_code": 200, "body": value}})
        for field, rows in (("output_file_id", answered), ("error_file_id", failed)):
            if rows:
                batch[field] = "file-" + uuid.uuid4().hex
                self.files[batch[field]] = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        batch["status"] = batch["fault"] if batch["fault"] in ("expired", "cancelled") else "completed"


def identity(body):
    """What the request is about: a hash of the pictures in it."""
    digest = hashlib.sha256()
    for message in body["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image_url":
                digest.update(part["image_url"]["url"].encode())
    return digest.hexdigest()[:16]


def completion(body, name, fault):
    """A chat completion about the pictures with this hash."""
    number = int(name, 16)
    first, second = COLOURS[number % 8], COLOURS[number // 8 % 8]
    text = f"A {first} figure with a {second} hat {MOVES[number // 64 % 5]} on the {second} ground near house {name}."
    if fault == "banned":
        text = "In this video " + text
    answer = {
        "outcome": "described",
        "caption": text,
        "subjects": f"{first} figure",
        "action": MOVES[number // 64 % 5],
        "camera": "still",
        "setting": f"{second} ground",
        "style": "bright",
        "confidence": 0.9,
    }
    content = json.dumps(answer)
    pictures = sum(p["type"] == "image_url" for m in body["messages"] for p in m["content"])
    words = sum(len(p.get("text", "")) for m in body["messages"] for p in m["content"])
    usage = {"prompt_tokens": pictures * PICTURE_TOKENS + words // 4, "completion_tokens": len(content) // 4}
    usage["total_tokens"] = sum(usage.values())
    message = {"role": "assistant", "content": content, "refusal": None}
    finish = "stop"
    if fault == "truncated":
        message["content"] = content[: len(content) // 2]
    elif fault == "prose":
        message["content"] = text
    elif fault == "fenced":
        message["content"] = f"Here it is:\n```json\n{content}\n```"
    elif fault == "no-movement":
        message["content"] = json.dumps(answer | {"outcome": "no movement", "caption": ""})
    elif fault == "refusal":
        message |= {"content": None, "refusal": "I'm sorry, I can't help with that."}
    elif fault == "length":
        message["content"], finish = content[:20], "length"
    value = {
        "id": "chatcmpl-" + uuid.uuid4().hex,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": usage,
    }
    if fault == "strange-usage":
        value["usage"] |= {"completion_tokens": {"text": 20}}
    if fault == "no-usage":
        del value["usage"]
    if fault == "no-choices":
        value["choices"] = []
    elif fault == "wrong-shape":
        return {"result": "fine", "usage": usage}
    return value


def charged(value):
    """The tokens that are billed for an answer, whatever it says of them."""
    usage = value.get("usage") or {}
    return {name: n if isinstance(n := usage.get(name), int) else 0 for name in ("prompt_tokens", "completion_tokens")}


def error(message, code, param=None):
    return {"error": {"message": message, "type": "error", "param": param, "code": code}}


def multipart_file(content_type, data):
    """The bytes of the part called `file` in a multipart form."""
    boundary = b"--" + content_type.split("boundary=")[1].encode()
    for part in data.split(boundary):
        head, _, content = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return content.removesuffix(b"\r\n")
    raise ValueError("the form has no file")


async def send(writer, status, value, headers=None, cut=False):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(data)}"]
    lines += [f"{name}: {text}" for name, text in (headers or {}).items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (data[: len(data) // 2] if cut else data))
    await writer.drain()
    return not cut


async def serve(arguments):
    server = Server(
        key=arguments.key,
        faults=arguments.faults,
        latency_s=arguments.latency,
        slots=arguments.slots,
        seed=arguments.seed,
        log=arguments.log,
        batch_s=arguments.batch_s,
    )
    if arguments.unhealthy_s:
        server.healthy_from = time.monotonic() + arguments.unhealthy_s
    await server.start(arguments.port)
    print(server.url, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default=os.environ.get("VLLM_API_KEY", ""))
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--slots", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unhealthy-s", type=float, default=0.0)
    parser.add_argument("--batch-s", type=float, default=0.0)
    parser.add_argument("--log")
    asyncio.run(serve(parser.parse_args()))
