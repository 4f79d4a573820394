import json

import pytest

import tiny
from brickreel import config, files, tables
from brickreel.stages import encode, train
from brickreel.training import online as reading
from brickreel.training.buckets import plan_buckets
from brickreel.training.dataset import Dataset
from brickreel.training.order import Order
from training import clips, project

RUN = project.RUN | {"data": clips.POSES, "online": True, "max_steps": 2, "checkpoint_every": 5, "micro_batches": 2}


@pytest.fixture
def online(tmp_path, monkeypatch):
    """A project whose run encodes online; returns its folder and configuration."""
    monkeypatch.chdir(tmp_path)
    clips.make()
    base = tiny.save_base(tmp_path / "base")
    settings = clips.settings(base, RUN)
    encode.run(settings)
    run = settings.run("run0")
    plan = plan_buckets(tables.read("encode_index", train.INDEX), run)
    files.write_json("results/plan/run0/plan.json", {"run": "run0", "buckets": plan.to_json()})
    stored = settings.model_dump(mode="json", include={"base", "encode"}) | {
        "runs": {"run0": RUN},
        "telemetry": {"enabled": False},
    }
    (tmp_path / "config.json").write_text(json.dumps(stored))
    return tmp_path, settings


def dataset(settings: config.Config) -> tuple[Dataset, Order]:
    import torch

    run = settings.run("run0")
    index = tables.read("encode_index", train.INDEX)
    plan = plan_buckets(index, run)
    reader = train.online_reader(settings, run.data, torch.device("cpu"))
    return Dataset(index, run.data, plan, "identity", (4, 16), reader), Order(plan, 0)


def test_showings_differ_in_crop_and_start_and_each_repeats_itself(online):
    data, order = dataset(online[1])
    showings = [
        (name, place, batch)
        for number in range(6 * order.per_epoch)
        for batch in [data.batch(order.micro_batch(number))]
        for place, name in enumerate(batch.ids)
    ]
    of_one = [batch.mean[place] for name, place, batch in showings if name.startswith("clip0.64p-4f")]
    assert len(of_one) == 6
    assert len({tuple(mean.flatten().tolist()) for mean in of_one}) >= 4
    again = data.batch(order.micro_batch(0))
    first = data.batch(order.micro_batch(0))
    assert first.problems == []
    assert first.mean.equal(again.mean)
    assert first.text.equal(again.text)


def test_a_clip_that_is_gone_counts_as_absent(online):
    folder, settings = online
    for path in (folder / "results/cut/clips").iterdir():
        path.unlink()
    data, order = dataset(settings)
    batches = [data.batch(order.micro_batch(number)) for number in range(order.per_epoch)]
    for batch in batches:
        assert bool(batch.valid.any()) == (batch.frames == 1)
        assert bool(batch.problems) == (batch.frames > 1)


def test_a_clip_has_the_caption_stages_text_else_its_own_and_is_absent_without(tmp_path):
    path = tmp_path / "a.mp4"
    path.touch()
    cut = [clips.row(number, kind, path) for number in (2, 0, 1) for kind in ("still", "clip")]
    cut[0]["text"], cut[2]["text"] = "own words", "never read"
    captions = [
        dict.fromkeys(tables.SCHEMAS["captions"].names)
        | {"clip_id": f"clip{number}", "kind": kind, "text": text, "outcome": "ok"}
        for number, kind, text in ((0, "still", "old"), (1, "clip", "of clip 1"), (0, "still", "new"), (9, "clip", "x"))
    ]
    found = reading.Clips(tables.table("cut_index", cut), tables.table("captions", captions))
    texts = {
        (number, kind): (found.get(f"clip{number}", kind) or {}).get("text")
        for number in (0, 1, 2, 9)
        for kind in ("clip", "still")
    }
    expected = {(0, "still"): "new", (1, "clip"): "of clip 1", (2, "still"): "own words"}
    assert texts == {name: expected.get(name) for name in texts}
    assert found.get("clip0", "still") == cut[2] | {"text": "new"}


def test_online_training_is_the_same_on_one_rank_and_on_two(online):
    folder, _ = online
    project.train(folder, 2, name="run0")
    two = project.step_rows(folder, "run0")
    results = folder / "results/train/run0"
    results.rename(folder / "results/train/two")
    project.train_here(folder, "run0")
    one = {row["step"]: row["loss"] for row in project.step_rows(folder, "run0")}
    assert {row["step"] for row in two} == {1, 2}
    for row in two:
        assert row["loss"] == pytest.approx(one[row["step"]], rel=1e-5)
