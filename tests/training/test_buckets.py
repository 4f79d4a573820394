import pyarrow as pa
import pytest

from brickreel import tables
from brickreel.config import Run
from brickreel.training.buckets import BucketPlan, data_key, plan_buckets, rows_of, split_of

ENDS = ("", ".1", ".2")


def run(buckets: dict, **data) -> Run:
    return Run.model_validate({"data": {"buckets": {"64p": buckets}} | data})


def index(settings: Run, counts: dict[int, int], heldout: int = 0, **columns):
    """Clips per length; `heldout` more of the first length."""
    rows = []
    for frames, count in counts.items():
        for number in range(count + (heldout if frames == next(iter(counts)) else 0)):
            name = f"{frames}-{number:03d}"
            rows.append(
                dict.fromkeys(tables.SCHEMAS["encode_index"].names)
                | {"sample_id": name, "clip_id": name, "kind": "clip" if frames > 1 else "still", "frames": frames}
                | {"bucket": f"64p-{frames}f-1.00-poses1", "height": 64, "width": 64, "crc32": number}
                | {"split": "train" if number < count else "heldout", "data_keys": [data_key(settings.data)]}
                | {"outcome": "ok", "reason": ""}
                | columns
            )
    return tables.table("encode_index", rows)


def shape(plan: BucketPlan) -> dict[int, tuple[int, int, int]]:
    """Frames -> clips, micro-batches, repeats."""
    return {bucket.frames: (bucket.items, bucket.micro_batches, bucket.repeats) for bucket in plan.buckets}


def test_every_clip_is_used_and_the_last_micro_batch_may_be_short():
    settings = run({16: (1.0, 4), 1: (1.0, 8)})
    plan = plan_buckets(index(settings, {16: 10, 1: 9}, heldout=3), settings)
    assert shape(plan) == {16: (10, 3, 1), 1: (9, 2, 1)}
    assert (plan.used, plan.heldout, plan.samples, dict(plan.dropped)) == (19, 3, 19, {})


def test_a_starving_bucket_is_shown_in_the_next_shorter_length():
    settings = run({32: (1.0, 4), 16: (1.0, 8), 8: (1.0, 16)})
    plan = plan_buckets(index(settings, {32: 3, 16: 20, 8: 30}), settings)
    assert shape(plan) == {16: (23, 3, 1), 8: (30, 2, 1)}
    assert plan.buckets[0].sources == ("64p-16f-1.00-poses1", "64p-32f-1.00-poses1")
    assert plan.notes == ("64p-32f-1.00-poses1 has 3 clips for micro-batches of 4: shown in 64p-16f-1.00-poses1",)


def test_clips_are_never_merged_into_stills_but_repeated_a_stated_number_of_times():
    settings = run({16: (1.0, 8), 1: (1.0, 2)})
    plan = plan_buckets(index(settings, {16: 3, 1: 4}), settings)
    assert shape(plan) == {16: (3, 2, 3), 1: (4, 2, 1)}
    assert "each shown 3 times per epoch" in plan.notes[0]
    few = plan_buckets(index(settings, {16: 1, 1: 4}), settings)
    assert shape(few)[16] == (1, 1, 4)


def test_the_origins_assignment_drops_what_does_not_fill_a_micro_batch():
    settings = run({16: (1.0, 4)}, assignment="opensora-1.1")
    plan = plan_buckets(index(settings, {16: 10}), settings)
    assert shape(plan) == {16: (10, 2, 1)}
    assert dict(plan.dropped) == {"remainder": 2}
    with pytest.raises(ValueError, match=r"no training clip is left .*3 remainder"):
        plan_buckets(index(settings, {16: 3}), settings)


def test_an_empty_dataset_is_refused_with_its_reasons():
    settings = run({16: (1.0, 4)})
    with pytest.raises(ValueError, match=r"no training clip is left.*the dataset is empty"):
        plan_buckets(index(settings, {}), settings)
    short = index(settings, {16: 2}, outcome="dropped", reason="too_short")
    with pytest.raises(ValueError, match="2 too_short"):
        plan_buckets(short, settings)


def test_a_plan_survives_json_and_another_version_is_refused():
    settings = run({32: (1.0, 4), 16: (1.0, 8)})
    plan = plan_buckets(index(settings, {32: 3, 16: 20}), settings)
    assert BucketPlan.from_json(plan.to_json()) == plan
    with pytest.raises(ValueError, match="has version 9: run the plan stage again"):
        BucketPlan.from_json(plan.to_json() | {"version": 9})
    with pytest.raises(ValueError, match="not a bucket plan"):
        BucketPlan.from_json({"version": 1})


def test_batch_sizes_change_neither_samples_nor_fingerprint_but_contents_do():
    settings, other = run({16: (1.0, 4)}), run({16: (1.0, 2)})
    table = index(settings, {16: 5})
    assert data_key(settings.data) == data_key(other.data)
    first = plan_buckets(table, settings).fingerprint
    assert plan_buckets(table, other).fingerprint == first
    assert plan_buckets(table.take(list(reversed(range(5)))), settings).fingerprint == first
    in_parts = pa.concat_tables([table.slice(3), table.slice(0, 3)])
    assert plan_buckets(in_parts, settings).fingerprint == first
    assert plan_buckets(in_parts.select([*reversed(table.column_names)]).to_batches(), settings).fingerprint == first
    assert plan_buckets(index(settings, {16: 5}, crc32=7), settings).fingerprint != first
    assert plan_buckets(index(settings, {16: 6}), settings).fingerprint != first
    assert rows_of(table, run({8: (1.0, 4)}).data).num_rows == 0


def test_a_clips_samples_stand_together_and_a_failed_one_is_not_among_them():
    settings = run({16: (1.0, 4), 8: (1.0, 4)})
    rows = index(settings, {16: 3, 8: 2}).to_pylist()
    more = [row | {"sample_id": f"{row['sample_id']}.{offset}", "offset": offset} for row in rows for offset in (1, 2)]
    more[0] |= {"outcome": "failed", "reason": "torn"}
    train = split_of(rows_of(tables.table("encode_index", more + rows), settings.data), "train")
    found = {
        bucket: [train.rows["sample_id"].slice(first, count).to_pylist() for first, count in clips.tolist()]
        for bucket, clips in train.clips.items()
    }
    assert found == {
        "64p-16f-1.00-poses1": [["16-000", "16-000.2"]] + [[f"16-00{n}{end}" for end in ENDS] for n in (1, 2)],
        "64p-8f-1.00-poses1": [[f"8-00{n}{end}" for end in ENDS] for n in (0, 1)],
    }
    assert len(train) == 5
    assert len(split_of(train.rows, "heldout")) == 0
