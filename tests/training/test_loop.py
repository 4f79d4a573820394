import shutil
import signal
import time

import pytest
import torch

from brickreel import files
from brickreel.cluster.exits import INTERRUPTED
from brickreel.training import latents, loop, lora
from brickreel.training.checkpoint import list_checkpoints, read_state
from training import project, ranks

SHORT = {"max_steps": 3, "checkpoint_every": 10, "gauge_every": 3}


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A short run in one process: what all others are compared with."""
    folder = tmp_path_factory.mktemp("single")
    project.make(folder, **SHORT)
    project.train_here(folder)
    return folder


def assert_same_training(found, wanted, first=1e-5, later=1e-4):
    """Sample ids per step identical, losses and norms close: closer in the first step."""
    assert project.ids_by_step(found) == project.ids_by_step(wanted)
    mine, theirs = (project.columns(folder, "loss", "grad_norm", "weight_norm") for folder in (found, wanted))
    for step in {step for step, _ in theirs}:
        assert mine[step, 0] == pytest.approx(theirs[step, 0], rel=first if step == 1 else later)


@pytest.mark.parametrize("world_size", [3, *(pytest.param(number, marks=pytest.mark.slow) for number in (2, 4))])
def test_any_number_of_ranks_shows_the_same_samples_and_finds_the_same_losses(single, tmp_path, world_size):
    project.make(tmp_path, backend="ddp", **SHORT)
    project.train(tmp_path, world_size)
    assert_same_training(tmp_path, single)
    assert {rank for _, rank in project.columns(tmp_path)} == set(range(world_size))
    assert all(row["comm_s"] > 0 and row["local_s"] > 0 for row in project.step_rows(tmp_path))
    mine, theirs = project.readings(tmp_path), project.readings(single)
    assert mine.keys() == theirs.keys()
    for key, loss in theirs.items():
        assert mine[key] == pytest.approx(loss, rel=1e-6 if key[0] == 0 else 1e-4)


@pytest.mark.parametrize(
    ("backend", "more"),
    [
        ("fsdp2", {}),
        ("colossalai", {"zero_stage": 2}),
        pytest.param("colossalai", {"zero_stage": 1}, marks=pytest.mark.slow),
    ],
)
def test_every_backend_trains_as_a_single_process_does(single, tmp_path, backend, more):
    project.make(tmp_path, backend=backend, **SHORT, **more)
    project.train(tmp_path, 2)
    assert_same_training(tmp_path, single)
    # Gathering in every block hides both: a number would be read as a small one.
    assert all(row["comm_s"] is row["local_s"] is None for row in project.step_rows(tmp_path))
    for which in ("raw", "ema"):
        mine, theirs = project.final_weights(tmp_path, which), project.final_weights(single, which)
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            # Adam turns a gradient of nearly zero into a step of full size, whatever its sign.
            assert (mine[name] - value).abs().max() < 3e-3, name
            assert (mine[name] - value).norm() <= 5e-3 * value.norm() + 1e-4, name


def test_the_step_log_adds_up(single):
    for row in project.step_rows(single):
        parts = ("data", "forward", "backward", "comm", "optimizer", "checkpoint", "gauge")
        assert 0 < sum(row[f"{part}_s"] for part in parts) <= row["step_s"] * 1.01
        assert row["samples"] == len(row["sample_ids"])
        clips = sum(name.endswith("clip") for name in row["sample_ids"])
        assert row["tokens"] == (4 * clips + row["samples"] - clips) * 16
        assert row["flops"] > 0
        assert not row["skipped"]


def test_a_finished_run_is_not_repeated_and_writes_its_final_weights_again(single, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(single, folder)
    before = project.final_weights(folder)
    shutil.rmtree(folder / "results/train/small/final")
    project.train_here(folder)
    assert all(torch.equal(value, before[name]) for name, value in project.final_weights(folder).items())
    assert {row["attempt"] for row in project.step_rows(folder)} == {0}
    assert files.read_json(folder / "results/train/small/final/final.json")["step"] == 3


def test_another_dataset_is_refused_or_starts_a_fresh_order_with_the_weights(single, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(single, folder)
    project.change(folder, seed=7, max_steps=4)
    with pytest.raises(ValueError, match=r"step-00000003 was made with another dataset, bucket plan or seed"):
        project.train_here(folder)
    project.train_here(folder, train={"new_dataset": "fresh_order"})
    assert [row["step"] for row in project.step_rows(folder)] == [1, 2, 3, 4]
    assert "a fresh order starts" in project.attempts(folder)[-1]["reason"]
    _, path = list_checkpoints(folder / "results/train/small/checkpoints")[-1]
    assert (read_state(path)["micro_batches"], read_state(path)["step"]) == (3, 4)


def test_other_micro_batches_of_the_same_clips_are_another_order(single, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(single, folder)
    plan = folder / "results/plan/small/plan.json"
    content = files.read_json(plan)
    content["buckets"]["buckets"][0]["batch"] += 1
    files.write_json(plan, content)
    with pytest.raises(ValueError, match=r"step-00000003 was made with another dataset, bucket plan or seed"):
        project.train_here(folder)


def test_a_checkpoint_that_names_its_order_without_buckets_goes_on_in_it(single, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(single, folder)
    _, path = list_checkpoints(folder / "results/train/small/checkpoints")[-1]
    state, manifest = read_state(path), files.read_json(path / "manifest.json")
    fingerprint, _, seed = state["order"].split("/")
    files.write_json(path / "state.json", state | {"order": f"{fingerprint}/{seed}"})
    manifest["files"]["state.json"] = files.sha256(path / "state.json")
    files.write_json(path / "manifest.json", manifest)
    project.change(folder, max_steps=4)
    project.train_here(folder)
    assert files.read_json(folder / "results/train/small/final/final.json")["order"] == f"{fingerprint}/{seed}"


def test_a_checkpoint_of_another_kind_of_backend_is_refused(single, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(single, folder)
    project.change(folder, backend="colossalai", max_steps=4)
    assert any(ranks.run(folder, project.words(), 2))
    assert "ddp and fsdp2 continue each other's checkpoints" in ranks.output(folder)


def test_one_signalled_rank_stops_all_with_a_checkpoint_and_the_next_attempt_goes_on(tmp_path):
    project.make(tmp_path, backend="ddp", max_steps=500, checkpoint_every=1000, gauge_every=1000)
    processes = ranks.start(tmp_path, project.words(), 2)
    log = tmp_path / "results/train/small/steps/0-0.jsonl"
    while not log.exists() or log.read_text().count("\n") < 3:
        assert all(process.exitcode is None for process in processes), ranks.output(tmp_path)
        time.sleep(0.02)
    processes[1].terminate()
    assert ranks.finish(processes) == [INTERRUPTED] * 2, ranks.output(tmp_path)
    (step, _), *_ = list_checkpoints(tmp_path / "results/train/small/checkpoints")
    assert step == max(row["step"] for row in project.step_rows(tmp_path))
    end = project.attempts(tmp_path)[-1]
    assert (end["outcome"], end["last_step"]) == ("dropped", step)
    project.change(tmp_path, max_steps=step + 1)
    project.train_here(tmp_path)
    assert [row["step"] for row in project.step_rows(tmp_path) if row["attempt"] == 1] == [step + 1]


def test_a_signal_before_the_first_step_is_not_lost(tmp_path, monkeypatch):
    project.make(tmp_path, max_steps=2)
    processes = ranks.start(tmp_path, project.words(), 1)
    while not (tmp_path / "results/train/small/gauge.jsonl").exists():
        time.sleep(0.01)
    import os

    os.kill(processes[0].pid, signal.SIGUSR1)
    assert ranks.finish(processes)[0] in (0, INTERRUPTED)
    assert list_checkpoints(tmp_path / "results/train/small/checkpoints")


def poison(folder, *places):
    """Make the latents of some samples so large that their loss is not finite, and plan the run anew."""
    from brickreel import config, tables
    from brickreel.training import latents
    from brickreel.training.buckets import plan_buckets

    here = folder / "results/encode"
    rows = tables.read("encode_index", here / "index.parquet").to_pylist()
    writer = latents.Writer(here / "00", "test", 1)
    fresh = []
    for place, row in enumerate(rows):
        sample = latents.read(row | {"file": folder / row["file"], "text_file": folder / row["text_file"]})
        if place in places:
            sample = sample._replace(mean=torch.full_like(sample.mean, 3e38))
        made = writer.add(row, sample, {})
        fresh.append(made | dict.fromkeys(("file", "text_file"), f"results/encode/{writer.path.name}"))
    writer.flush()
    tables.write("encode_index", here / "index.parquet" / "00.parquet", fresh)
    run = config.load(folder / "config.json").run("small")
    plan = plan_buckets(tables.table("encode_index", fresh), run)
    files.write_json(folder / "results/plan/small/plan.json", {"run": "small", "buckets": plan.to_json()})


def test_a_step_that_is_not_finite_is_skipped_on_all_ranks_together_and_counted(tmp_path):
    project.make(tmp_path, backend="ddp", max_steps=8, checkpoint_every=20, gauge_every=20)
    poison(tmp_path, 0)
    project.train(tmp_path, 2)
    rows = project.step_rows(tmp_path)
    skipped = {row["step"] for row in rows if row["skipped"]}
    shown = {row["step"] for row in rows if "clip000.clip" in row["sample_ids"]}
    assert skipped == shown != set()
    assert skipped < {row["step"] for row in rows}
    assert all((row["loss"] is None) == row["skipped"] for row in rows)
    assert all(value.isfinite().all() for value in project.final_weights(tmp_path, "ema").values())
    _, path = list_checkpoints(tmp_path / "results/train/small/checkpoints")[-1]
    state = read_state(path)
    assert (state["skipped"], state["updates"]) == (len(skipped), 8 - len(skipped))


def test_too_many_skipped_steps_in_a_row_stop_the_run(tmp_path):
    project.make(tmp_path, max_steps=9, max_skipped=2)
    poison(tmp_path, *range(18))
    with pytest.raises(ValueError, match=r"2 steps in a row were not finite \(max_skipped\)"):
        project.train_here(tmp_path)
    assert project.attempts(tmp_path)[-1]["outcome"] == "failed"


def damage(folder):
    """Flip a byte in the middle of the latents."""
    path = next((folder / "results/encode").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def test_a_damaged_sample_counts_as_absent_and_too_many_stop_the_run(tmp_path):
    project.make(tmp_path, max_steps=8, checkpoint_every=20, gauge_every=20)
    damage(tmp_path)
    project.train_here(tmp_path)
    _, path = list_checkpoints(tmp_path / "results/train/small/checkpoints")[-1]
    assert read_state(path)["unreadable"] > 0
    assert all(row["loss"] is not None for row in project.step_rows(tmp_path))
    project.change(tmp_path, max_steps=20, max_unreadable=read_state(path)["unreadable"] + 1)
    with pytest.raises(ValueError, match=r"samples could not be read \(max_unreadable\): delete the files"):
        project.train_here(tmp_path)


@pytest.mark.parametrize("limits", [{"max_unreadable": 5}, {"max_skipped": 1, "max_unreadable": 20}])
def test_a_dataset_that_is_not_mounted_is_not_called_damaged(tmp_path, monkeypatch, limits):
    project.make(tmp_path, max_steps=8, checkpoint_every=1, gauge_every=20, **limits)
    (tmp_path / "away").mkdir()
    read = latents.read
    monkeypatch.setattr(latents, "read", lambda row: read(row | {"file": "away/00.safetensors"}))
    with pytest.raises(ConnectionError, match=r"the dataset is out of reach: .*away/00.safetensors"):
        project.train_here(tmp_path)
    monkeypatch.setattr(latents, "read", read)
    project.train_here(tmp_path)  # what was out of reach does not count any more


def test_a_step_of_which_nothing_can_be_read_says_so_and_is_not_one_that_is_not_finite(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(loop.logger, "propagate", True)
    project.make(tmp_path, max_steps=3, micro_batches=1, checkpoint_every=20, gauge_every=20, max_skipped=1)
    read, lost = latents.read, iter([{"sample_id": "none"}] * 4)
    monkeypatch.setattr(latents, "read", lambda row: read(row | (next(lost, {}) if row["split"] == "train" else {})))
    project.train_here(tmp_path, train={"loader_threads": 1})
    first, *_, last = project.step_rows(tmp_path)
    assert (first["skipped"], last["skipped"]) == (True, False)
    assert "none of the samples of step 1 could be read" in caplog.text
    assert "is not finite" not in caplog.text


def test_a_micro_batch_that_is_too_large_is_one_sentence_until_a_step_has_fitted(single, tmp_path, monkeypatch):
    project.make(tmp_path, **SHORT)
    backward, passes = torch.Tensor.backward, iter(range(1000))
    full_from = [0]

    def on_a_full_gpu(loss):
        if next(passes) >= full_from[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        backward(loss)

    monkeypatch.setattr(torch.Tensor, "backward", on_a_full_gpu)
    with pytest.raises(ValueError, match=r"memory for \d clips of \d x 64 x 64 in step 1: set grad_checkpoint: true"):
        project.train_here(tmp_path)
    full_from[0] = 5  # in the second step: memory may be in pieces by now
    with pytest.raises(torch.OutOfMemoryError):
        project.train_here(tmp_path)
    full_from[0] = 10_000
    project.train_here(tmp_path)
    project.change(tmp_path, max_steps=SHORT["max_steps"] + 1)
    full_from[0] = 0  # in the first step after a restart: others fitted before
    with pytest.raises(torch.OutOfMemoryError):
        project.train_here(tmp_path)


def test_where_memory_lacks_for_the_held_out_clips_they_are_named(tmp_path, monkeypatch):
    def on_a_full_gpu(trainer):
        raise torch.OutOfMemoryError("CUDA out of memory")

    project.make(tmp_path, **SHORT)
    read = loop.Trainer._read_gauge
    monkeypatch.setattr(loop.Trainer, "_read_gauge", on_a_full_gpu)
    with pytest.raises(ValueError, match="not enough memory for the held-out clips in step 1"):
        project.train_here(tmp_path)
    monkeypatch.setattr(loop.Trainer, "_read_gauge", read)
    monkeypatch.setattr(loop.Trainer, "_next", on_a_full_gpu_at_once)
    with pytest.raises(ValueError, match="not enough memory for its first micro-batch in step 1"):
        project.train_here(tmp_path)


def on_a_full_gpu_at_once(trainer, batches):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_run_goes_on_with_its_mask_strategies_in_the_order_that_it_began_with(tmp_path):
    masks = {"quarter_tail": 0.4, "image_head": 0.3, "quarter_random": 0.3}
    for name, order in (("apart", sorted(masks)), ("whole", masks)):
        (tmp_path / name).mkdir()
        project.make(tmp_path / name, max_steps=4, checkpoint_every=2, gauge_every=20, mask_ratios=masks)
        if name == "apart":
            project.change(tmp_path / name, max_steps=2)
            project.train_here(tmp_path / name)
            # Settings files of stages are sorted by name.
            project.change(tmp_path / name, max_steps=4, mask_ratios={strategy: masks[strategy] for strategy in order})
        project.train_here(tmp_path / name)
    apart, whole = (project.final_weights(tmp_path / name) for name in ("apart", "whole"))
    assert all(torch.equal(value, whole[name]) for name, value in apart.items())
    about = files.read_json(tmp_path / "apart/results/train/small/final/final.json")
    assert about["recipe"]["mask_ratios"] == [list(item) for item in masks.items()]


def test_recomputing_activations_changes_no_loss(single, tmp_path):
    project.make(tmp_path, **SHORT, grad_checkpoint=True)
    project.train_here(tmp_path)
    assert_same_training(tmp_path, single, 1e-6, 1e-6)


def test_lora_trains_additions_only_and_merges_them(single, tmp_path, monkeypatch):
    project.make(tmp_path, **SHORT, lora={"rank": 2, "alpha": 4, "targets": ["qkv"]}, ema_decay=0.5)
    project.train_here(tmp_path)
    _, path = list_checkpoints(tmp_path / "results/train/small/checkpoints")[-1]
    additions = lora.checkpoint.load_weights(path, "raw")
    assert {name.split(".")[-3] for name in additions} == {"lora_A", "lora_B"}
    base = project.stored_weights(tmp_path / "base/transformer")
    final = project.final_weights(tmp_path)
    assert final.keys() == base.keys()
    for name, value in base.items():
        if ".qkv.weight" in name:
            stem = name.removesuffix(".weight")
            low, high = (additions[f"{stem}.lora_{part}.default.weight"] for part in "AB")
            torch.testing.assert_close(final[name], value + 2.0 * high @ low)
            assert high.any()
        else:
            assert torch.equal(final[name], value), name


def test_rectified_flow_trains(tmp_path):
    project.make(tmp_path, max_steps=30, objective="rectified-flow", schedule={"lr": 5e-3}, gauge_every=30)
    project.train_here(tmp_path)
    losses = [row["loss"] for row in project.step_rows(tmp_path)]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


def test_the_average_follows_the_weights_in_fp32_while_products_are_bf16(tmp_path):
    project.make(tmp_path, max_steps=2, checkpoint_every=1, ema_decay=0.75, precision="bf16")
    project.train_here(tmp_path)
    first, second = (project.checkpoint_tensors(tmp_path, step) for step in (1, 2))
    for name, value in first.items():
        assert value.dtype == torch.float32
        if name.startswith("ema."):
            expected = value.lerp(second["model." + name.removeprefix("ema.")], 0.25)
            torch.testing.assert_close(second[name], expected, rtol=1e-6, atol=1e-8)
