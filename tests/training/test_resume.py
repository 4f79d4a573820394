import time
from pathlib import Path

import pytest
import torch

from brickreel.training.checkpoint import list_checkpoints
from training import project, ranks
from training.test_loop import assert_same_training

RUN = {
    "max_steps": 4,
    "checkpoint_every": 2,
    "gauge_every": 2,
    "schedule": {"kind": "1cycle", "lr": 1e-3, "cooldown_steps": 4},
}
COLUMNS = ("loss", "lr", "grad_norm", "weight_norm", "sample_ids", "samples", "skipped")


def make(folder: Path, **changes) -> Path:
    folder.mkdir()
    project.make(folder, **RUN | changes)
    return folder


def train(folder: Path, world_size: int) -> None:
    """Train on to `max_steps` of config.json."""
    if world_size == 1:
        project.train_here(folder)
    else:
        project.train(folder, world_size)


@pytest.mark.parametrize(
    ("backend", "world_size", "more"),
    [
        ("ddp", 1, {"weight_decay": 0.01, "precision": "bf16"}),
        ("fsdp2", 2, {}),
        pytest.param("ddp", 2, {}, marks=pytest.mark.slow),
        pytest.param("colossalai", 2, {"zero_stage": 2}, marks=pytest.mark.slow),
        pytest.param("fsdp2", 2, {"precision": "bf16"}, marks=pytest.mark.slow),
        pytest.param("colossalai", 2, {"zero_stage": 1, "precision": "bf16"}, marks=pytest.mark.slow),
        pytest.param("colossalai", 2, {"zero_stage": 2, "precision": "bf16"}, marks=pytest.mark.slow),
        pytest.param("ddp", 2, {"lora": {"rank": 2, "targets": ["qkv", "proj"]}}, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(tmp_path, backend, world_size, more):
    whole = make(tmp_path / "whole", backend=backend, **more)
    train(whole, world_size)
    parted = make(tmp_path / "parted", backend=backend, **more | {"max_steps": 2})
    train(parted, world_size)
    project.change(parted, max_steps=4)
    train(parted, world_size)
    assert {row["attempt"] for row in project.step_rows(parted)} == {0, 1}
    assert project.columns(parted, *COLUMNS) == project.columns(whole, *COLUMNS)
    mine, theirs = (project.checkpoint_tensors(folder, 4) for folder in (parted, whole))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_too_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(tmp_path, precision):
    gpu = {"device": "cuda"}
    whole = make(tmp_path / "whole", precision=precision)
    project.train_here(whole, train=gpu)
    parted = make(tmp_path / "parted", precision=precision, max_steps=2)
    project.train_here(parted, train=gpu)
    project.change(parted, max_steps=4)
    project.train_here(parted, train=gpu)
    assert project.columns(parted, *COLUMNS) == project.columns(whole, *COLUMNS)
    assert project.readings(parted) == project.readings(whole)
    mine, theirs = (project.checkpoint_tensors(folder, 4) for folder in (parted, whole))
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())
    for row in project.step_rows(whole):
        parts = ("data", "forward", "backward", "comm", "optimizer", "checkpoint", "gauge")
        assert 0 < sum(row[f"{part}_s"] for part in parts) <= row["step_s"] * 1.01
        assert min(row["forward_s"], row["backward_s"], row["optimizer_s"]) > 0


@pytest.mark.gpu
def test_fsdp2_on_one_gpu_finds_what_ddp_finds(tmp_path):
    project.train_here(make(tmp_path / "ddp", backend="ddp"), train={"device": "cuda"})
    # The stage itself starts no process group for one rank, but ends it.
    meeting = f"file://{tmp_path}/meeting"
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl", meeting, rank=0, world_size=1)
    project.train_here(make(tmp_path / "fsdp2", backend="fsdp2"), train={"device": "cuda"})
    assert_same_training(tmp_path / "fsdp2", tmp_path / "ddp")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "fsdp2", "colossalai"])
def test_after_4_then_2_then_3_ranks_the_samples_are_identical_and_losses_agree(tmp_path, backend):
    whole = make(tmp_path / "whole", backend="ddp", max_steps=50, checkpoint_every=10, gauge_every=50)
    train(whole, 1)
    elastic = make(tmp_path / "elastic", backend=backend, max_steps=15, checkpoint_every=10, gauge_every=50)
    for world_size, steps in ((4, 15), (2, 30), (3, 50)):
        project.change(elastic, max_steps=steps)
        train(elastic, world_size)
    assert_same_training(elastic, whole, 1e-5, 1e-4)


@pytest.mark.slow
def test_all_ranks_killed_while_a_checkpoint_is_written_lose_no_sample(tmp_path):
    """The write under way is forgotten, the one before is loaded, and what followed it is shown again."""
    whole = make(tmp_path / "whole", backend="ddp", max_steps=12, checkpoint_every=1, keep_last=2)
    train(whole, 1)
    killed = make(tmp_path / "killed", backend="ddp", max_steps=12, checkpoint_every=1, keep_last=2)
    folder = killed / "results/train/small/checkpoints"
    processes = ranks.start(killed, project.words(), 2)
    deadline = time.monotonic() + 100
    while not (list_checkpoints(folder) and list(folder.glob(".step-*.partial"))):
        assert time.monotonic() < deadline
        assert all(process.exitcode is None for process in processes), ranks.output(killed)
    for process in processes:
        process.kill()
    ranks.finish(processes)
    train(killed, 1)
    assert project.ids_by_step(killed) == project.ids_by_step(whole)
    mine, theirs = (project.final_weights(where) for where in (killed, whole))
    assert all((mine[name] - value).norm() <= 1e-2 * value.norm() + 1e-3 for name, value in theirs.items())
    assert not list(folder.glob(".step-*"))


@pytest.mark.slow
def test_a_checkpoint_that_only_rank_0_cannot_finish_holds_nobody_up(tmp_path):
    folder = make(tmp_path / "run", backend="ddp", max_steps=30, checkpoint_every=20, gauge_every=100)
    processes = ranks.start(folder, project.words(), 2)
    while not (folder / "results/train/small/steps/0-1.jsonl").exists():
        assert all(process.exitcode is None for process in processes), ranks.output(folder)
        time.sleep(0.01)
    # Where the state belongs there is a folder: the shards of all ranks are written, the last file is not.
    (folder / "results/train/small/checkpoints/.step-00000020.partial/state.json").mkdir(parents=True)
    assert ranks.finish(processes) == [0, 0], ranks.output(folder)
    assert ranks.output(folder).count("a checkpoint could not be written") == 2
    assert [step for step, _ in list_checkpoints(folder / "results/train/small/checkpoints")] == [30]
