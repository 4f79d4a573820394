import threading
import time

import pytest
import torch

from brickreel import config, tables
from brickreel.training.buckets import plan_buckets
from brickreel.training.dataset import Dataset, prefetched, read_encoded
from brickreel.training.latents import Sample
from brickreel.training.order import Order
from training import project


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Run settings, index and plan of a small project."""
    folder = tmp_path_factory.mktemp("dataset")
    run = config.load(project.make(folder)).run("small")
    index = tables.read("encode_index", folder / "results/encode/index.parquet")
    rows = [row | {name: str(folder / row[name]) for name in ("file", "text_file")} for row in index.to_pylist()]
    table = tables.table("encode_index", rows)
    return run, table, plan_buckets(table, run)


def dataset(parts, reader=None) -> Dataset:
    run, table, plan = parts
    return Dataset(table, run.data, plan, "identity", (4, 16), reader)


def test_a_batch_holds_what_its_clips_hold_with_texts_padded(parts):
    data, order = dataset(parts), Order(parts[2], 0)
    rows = {row["sample_id"]: row for row in parts[1].to_pylist()}
    seen = set()
    for number in range(order.per_epoch):
        batch = data.batch(order.micro_batch(number))
        seen |= set(batch.ids)
        for place, name in enumerate(batch.ids):
            sample = read_encoded(rows[name], None)
            assert torch.equal(batch.mean[place], sample.mean)
            assert torch.equal(batch.logvar[place], sample.logvar)
            assert torch.equal(batch.text[place, 0, : batch.lengths[place]], sample.text)
            assert not batch.text[place, 0, batch.lengths[place] :].any()
    assert seen == {row["sample_id"] for row in rows.values() if row["split"] == "train"}


def test_an_unreadable_sample_is_zeros_that_do_not_count(parts):
    def reader(row, showing):
        if row["sample_id"] == "clip003.clip":
            raise ValueError("torn")
        return read_encoded(row, showing)

    data, order = dataset(parts, reader), Order(parts[2], 0)
    batches = [data.batch(order.micro_batch(number)) for number in range(order.per_epoch)]
    batch = next(batch for batch in batches if "clip003.clip" in batch.ids)
    place = batch.ids.index("clip003.clip")
    assert batch.problems == ["torn"]
    assert batch.valid.tolist() == [float(other != place) for other in range(len(batch.ids))]
    assert not batch.mean[place].any()


def test_a_batch_of_nothing_readable_still_has_the_right_rank_and_channels(parts):
    def reader(row, showing):
        raise OSError("gone")

    batch = dataset(parts, reader).batch(Order(parts[2], 0).micro_batch(0))
    assert batch.mean.shape[1:] == (4, batch.frames, 2, 2)
    assert batch.text.shape[-1] == 16
    assert not batch.valid.any()


def test_longer_samples_are_cut_to_the_buckets_length(parts):
    def reader(row, showing):
        sample = read_encoded(row, showing)
        return Sample(torch.cat([sample.mean] * 3, 1), torch.cat([sample.logvar] * 3, 1), sample.text)

    order = Order(parts[2], 0)
    for number in range(order.per_epoch):
        batch = dataset(parts, reader).batch(order.micro_batch(number))
        assert batch.mean.shape[2] == batch.frames


def test_a_plan_of_another_dataset_is_refused(parts):
    run, table, plan = parts
    with pytest.raises(ValueError, match="the plan was made from another dataset: run the plan stage again"):
        Dataset(table.slice(1), run.data, plan, "identity", (4, 16))


def test_batches_come_in_order_and_no_further_ahead_than_asked():
    begun: list[int] = []
    lock = threading.Lock()

    def make(number):
        with lock:
            begun.append(number)
        time.sleep(0.002 * (number % 3))
        return number

    taken = []
    for number in prefetched(make, range(20), threads=3, ahead=4):
        taken.append(number)
        assert max(begun) <= number + 4
    assert taken == list(range(20))


def test_an_error_of_a_loader_thread_reaches_training():
    def make(number):
        if number == 2:
            raise RuntimeError("broken reader")
        return number

    batches = prefetched(make, range(5), threads=2, ahead=2)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(RuntimeError, match="broken reader"):
        next(batches)
