import asyncio

import pytest

from brickreel import config, files
from brickreel.captions import client, prices
from brickreel.captions import request as requests
from brickreel.captions.asking import Asking
from brickreel.captions.items import Item
from brickreel.captions.ledger import Ledger, Reservation, ledger_row
from brickreel.progress import Bar
from captions import project


@pytest.fixture
def settings():
    return config.Caption(
        captioner="openai", model="test-model", usd_per_million_in=1.0, usd_per_million_out=1.0, api_key_env=""
    )


def wanted(settings):
    return requests.request(Item("c", "clip", "", 8, (), False, 24.0, 12.0, content_hash="h"), settings)


def answered(ledger, request, settings, reply):
    """A row for this request by the shard of this ledger."""
    known = len(ledger.rows.get(request.key, ()))
    asked = Reservation(f"{ledger.shard}-{known}", request.key, 0.001, known, request.about(settings.model))
    assert ledger.commit([], [asked]) == ["granted"]
    ledger.commit([ledger_row(ledger.shard, asked, reply, prices.price(settings), 0.1)], [])


def test_answer_that_another_shard_gets_while_pictures_are_read_is_not_paid_for_again(tmp_path, settings):
    request = wanted(settings)
    mine, other = (Ledger(tmp_path, f"{index}/2", 10.0) for index in range(2))
    for ledger in (mine, other):
        ledger.open()
    answered(other, request, settings, client.Reply("failed", "status 500", billed="none"))
    mine.commit([], [])
    good = client.read(completion())

    def read(request, settings):
        answered(other, request, settings, good)
        mine.commit([], [])  # as any other request of this shard would
        return [b"picture"]

    async def ask(url):
        async with client.connect(settings, url, client.NO_KEY) as api:
            with Bar("test", 1, "clips") as bar:
                return await Asking(settings, prices.price(settings), mine, api, 0, read=read).run([request], bar)

    with project.serving() as server:
        found = asyncio.run(ask(server.url))
        assert server.requests == 0
    assert found["c", "clip"].answer == good.answer
    assert len(files.read_json_lines(tmp_path / "ledger.jsonl")) == 2


def completion():
    content = (
        '{"outcome": "described", "caption": "A red figure walks to the left.", "subjects": "", "action": "", '
        '"camera": "", "setting": "", "style": "", "confidence": 0.9}'
    )
    return {
        "choices": [{"index": 0, "message": {"content": content}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20},
    }
