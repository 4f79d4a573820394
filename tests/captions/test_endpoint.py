import threading
import time

import pytest

from brickreel import config, files
from brickreel.captions import endpoint, request
from brickreel.captions.endpoint import forecast
from brickreel.captions.items import Item
from brickreel.captions.ledger import FOLDER, Ledger
from brickreel.captions.prices import price
from captions import project


def row(shard, usd, spent=0.0, model="m"):
    return {"shard": shard, "usd": usd, "usd_spent": spent, "model": model}


def test_forecast_is_the_sum_of_what_each_shard_first_expected():
    assert forecast([]) == 0
    assert forecast([row("00/2", 3.0), row("01/2", 4.0)]) == 7
    # Later runs expect less, since most is answered already.
    assert forecast([row("00/2", 3.0), row("01/2", 4.0), row("00/2", 0.5, 2.0)]) == 7


def test_forecast_starts_anew_with_another_model_or_division():
    assert forecast([row("00/1", 3.0), row("00/1", 5.0, model="other")]) == 5
    assert forecast([row("00/1", 3.0), row("00/2", 1.0, 1.0), row("01/2", 1.0, 1.5)]) == 3


def test_forecast_is_of_the_whole_ledger_as_what_was_spent_is(tmp_path, monkeypatch):
    """What another model had cost is in both."""
    monkeypatch.chdir(tmp_path)
    project.make(tmp_path, clips=0, stills=4)
    with project.serving() as server:
        for model in ("one", "two", "two"):
            project.run(url=server.url, model=model, api_key_env="")
    spent = endpoint.spent(project.settings("http://x").caption)
    first, second, _ = files.read_json_lines(tmp_path / FOLDER / endpoint.ESTIMATES)
    assert second["usd_spent"] == pytest.approx(spent["usd"] / 2)
    assert spent["usd_forecast"] == pytest.approx(second["usd_spent"] + first["usd"])


def test_forecast_leaves_out_shards_that_have_not_said_what_another_model_costs():
    assert forecast([row("00/2", 3.0), row("01/2", 4.0), row("00/2", 5.0, model="other")]) == 5


def test_forecast_starts_anew_with_other_prompts_or_pictures():
    old, new = ({"sent": {"prompts": {"clip": version}}} for version in ("clip-1", "clip-2"))
    assert forecast([row("00/1", 3.0) | old, row("00/1", 5.0) | new, row("00/1", 0.0) | new]) == 5
    assert forecast([row("00/1", 3.0), row("00/1", 5.0) | new]) == 5


def estimated(shard, budget_usd, requests=4):
    settings = config.load({"caption": {"captioner": "openai", "budget_usd": budget_usd}}).caption
    items = [Item(f"{shard}-{n}", "still", "x.jpg", 1, (), False, 0.0, 12.0, f"{n}") for n in range(requests)]
    asked = [request.request(each, settings) for each in items]
    endpoint.estimate(asked, asked, settings, price(settings), Ledger(FOLDER, shard, budget_usd))
    return files.read_json(endpoint.FORECAST)["usd"]


def test_each_shard_says_what_the_whole_run_costs_against_the_budget(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    one = estimated("00/4", 50.0)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    (tmp_path / FOLDER / endpoint.ESTIMATES).unlink()
    budget = 2.5 * one  # enough for each shard alone
    assert estimated("00/4", budget) == pytest.approx(one)
    assert estimated("01/4", budget) == pytest.approx(2 * one)
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(said) == 2
    assert all("lasts for about 62 % of the 4 shards" in each for each in said)
    assert any("all 4 shards, as 2 of them forecast: about" in r.getMessage() for r in caplog.records)


def test_budget_that_is_exceeded_lasts_for_what_costs_nothing(caplog):
    now = row("00/1", 0.0, spent=60.0)
    for first in (row("00/1", 3.0), now):
        endpoint._compare(now, [first], 50.0)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_forecast_is_not_overwritten_by_a_shards_older_reading(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write, others = files.write_json, []

    def slow(path, value):
        if not others:
            others.append(threading.Thread(target=estimated, args=("01/2", 50.0)))
            others[0].start()
            time.sleep(0.5)
        write(path, value)

    monkeypatch.setattr(endpoint.files, "write_json", slow)
    estimated("00/2", 50.0)
    others[0].join()
    expected = [row["usd"] for row in files.read_json_lines(tmp_path / FOLDER / endpoint.ESTIMATES)]
    assert len(expected) == 2
    assert files.read_json(endpoint.FORECAST)["usd"] == pytest.approx(sum(expected))
