"""Kills at random moments: no sample is skipped or repeated, and the weights come out as if nothing had happened."""

import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from training import project, ranks

RUN = {
    "backend": "ddp",
    "max_steps": 40,
    "checkpoint_every": 3,
    "gauge_every": 4,
    "keep_last": 2,
    "schedule": {"kind": "constant", "lr": 1e-4},
}
KILLS = 10
MOMENTS = ("a step", "a write", "a rename", "an epoch's end", "a held-out reading")
# 9 clips in pairs and 9 stills in fours are 8 micro-batches per epoch; a step shows 3.
STEPS_BEFORE_AN_EPOCH_ENDS = (2, 5, 7, 10, 13, 15, 18, 21, 23, 26, 29, 31, 34, 37, 39)


def lines(folder: Path) -> int:
    """Steps that rank 0 has logged, over all attempts."""
    return sum(path.read_text().count("\n") for path in (folder / "results/train/small/steps").glob("*-0.jsonl"))


def last_step(folder: Path) -> int:
    rows = project.step_rows(folder)
    return rows[-1]["step"] if rows else 0


def wait_for(moment: str, folder: Path, chance: random.Random, processes) -> None:
    """Until the moment has come, or the run has ended."""
    checkpoints = folder / "results/train/small/checkpoints"
    begun = lines(folder)
    names = {path.name for path in checkpoints.glob("step-*")}
    wanted = begun + chance.randint(1, 5)

    def come() -> bool:
        if lines(folder) <= begun:
            return False  # not before this attempt has made a step
        if moment == "a write":
            return any(checkpoints.glob(".step-*.partial"))
        if moment == "a rename":
            return any(path.name not in names for path in checkpoints.glob("step-*"))
        if moment == "an epoch's end":
            return last_step(folder) in STEPS_BEFORE_AN_EPOCH_ENDS
        if moment == "a held-out reading":
            return last_step(folder) % 4 == 3
        return lines(folder) >= wanted

    while not come() and all(process.exitcode is None for process in processes):
        time.sleep(0.002)
    time.sleep(chance.random() * 0.05)


def survive(folder: Path, sizes, chance: random.Random) -> list[tuple[int, str, str]]:
    """Kill and start again, then let it finish; what was done."""
    done = []
    for _ in range(KILLS):
        world_size, moment = next(sizes), chance.choice(MOMENTS)
        whom = chance.choice(("one rank", "all ranks"))
        processes = ranks.start(folder, project.words(), world_size)
        wait_for(moment, folder, chance, processes)
        for process in processes if whom == "all ranks" else [chance.choice(processes)]:
            process.kill()
        ranks.finish(processes)
        done.append((world_size, moment, whom))
    project.train(folder, next(sizes))
    return done


def check(folder: Path, whole: Path) -> None:
    assert project.ids_by_step(folder) == project.ids_by_step(whole)
    assert not list((folder / "results/train/small/checkpoints").glob(".step-*"))
    outcomes = {row["outcome"] for row in project.attempts(folder)}
    assert "ok" in outcomes


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run on two ranks."""
    folder = tmp_path_factory.mktemp("whole")
    project.make(folder, **RUN)
    project.train(folder, 2)
    return folder


@pytest.mark.slow
def test_kills_at_equal_world_size_leave_no_trace_in_the_weights(whole, tmp_path):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    project.make(tmp_path, **RUN)
    print(survive(tmp_path, itertools.repeat(2), random.Random(seed)))
    check(tmp_path, whole)
    mine, theirs = (project.checkpoint_tensors(folder, 40) for folder in (tmp_path, whole))
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())


@pytest.mark.slow
def test_kills_with_restarts_on_other_numbers_of_ranks_skip_and_repeat_nothing(whole, tmp_path):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    project.make(tmp_path, **RUN)
    print(survive(tmp_path, itertools.cycle((2, 4, 1, 3)), random.Random(seed)))
    check(tmp_path, whole)
    for which in ("raw", "ema"):
        mine, theirs = project.final_weights(tmp_path, which), project.final_weights(whole, which)
        apart = sum(float((mine[name] - value).square().sum()) for name, value in theirs.items())
        size = sum(float(value.square().sum()) for value in theirs.values())
        assert (apart / size) ** 0.5 < 1e-3


@pytest.mark.slow
def test_a_rank_that_stands_still_for_a_while_delays_the_others_and_changes_nothing(whole, tmp_path):
    project.make(tmp_path, **RUN)
    processes = ranks.start(tmp_path, project.words(), 2)
    wait_for("a step", tmp_path, random.Random(0), processes)
    os.kill(processes[1].pid, signal.SIGSTOP)
    time.sleep(2.0)
    os.kill(processes[1].pid, signal.SIGCONT)
    assert ranks.finish(processes) == [0, 0]
    check(tmp_path, whole)
    # The other rank's own rows are long too where it was stopped in the middle of its work.
    waited = [row["comm_s"] + row["backward_s"] for row in project.step_rows(tmp_path) if row["rank"] == 0]
    assert max(waited) > 1.5
