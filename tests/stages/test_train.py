import shutil
import subprocess
import sys

import pytest
import torch

from brickreel import config, files
from brickreel.cluster import exits, lock
from brickreel.models import load
from brickreel.models.stdit2 import model
from brickreel.stages import train
from training import project, ranks


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project whose run is finished."""
    folder = tmp_path_factory.mktemp("trained")
    project.make(folder, max_steps=2, gauge_every=2, checkpoint_every=2)
    project.train_here(folder)
    return folder


def test_the_run_leaves_what_the_stages_after_it_read(trained):
    folder = trained / "results/train/small"
    assert {path.name for path in folder.iterdir()} == {
        *("attempts.jsonl", "checkpoints", "dataset.json", "final", "finished.json", "gauge.jsonl", "settings.json"),
        *("steps", "tensorboard", "train.lock"),
    }
    assert config.Run.model_validate(files.read_json(folder / "settings.json")).max_steps == 2
    about = files.read_json(folder / "dataset.json")
    assert (about["clips"], about["heldout"]) == (18, 6)
    for which in ("raw", "ema"):
        assert load.transformer(str(folder / "final" / which)).config.hidden_size == 48


def test_a_finished_run_starts_nothing(trained):
    before = {path: path.stat().st_mtime_ns for path in (trained / "results").rglob("*") if path.is_file()}
    project.train_here(trained)
    assert {path: path.stat().st_mtime_ns for path in (trained / "results").rglob("*") if path.is_file()} == before


def test_a_finished_run_tells_the_graph_so_again_and_keeps_its_weights(trained):
    folder = trained / "results/train/small"
    told = (folder / "finished.json").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    (folder / "finished.json").unlink()  # as Snakemake does
    project.change(trained, keep_last=9)
    project.train_here(trained)
    assert (folder / "finished.json").read_bytes() == told
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert after | {folder / "finished.json": before[folder / "finished.json"]} == before


@pytest.mark.parametrize(("share", "blocks"), [(True, 2), (0.5, 1), (False, 0)])
def test_the_runs_share_of_blocks_is_recomputed(share, blocks, tmp_path, monkeypatch):
    recomputed = []
    run = model.as_recomputed
    monkeypatch.setattr(model, "as_recomputed", lambda block, *given: recomputed.append(block) or run(block, *given))
    project.make(tmp_path, max_steps=1, grad_checkpoint=share)
    project.train_here(tmp_path)
    assert len(set(recomputed)) == blocks


def test_raising_max_steps_continues_a_finished_run(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    project.change(folder, max_steps=3)
    project.train_here(folder)
    assert [(row["attempt"], row["step"]) for row in project.step_rows(folder)] == [(0, 1), (0, 2), (1, 3)]
    assert files.read_json(folder / "results/train/small/final/final.json")["step"] == 3
    assert [row["outcome"] for row in project.attempts(folder)] == ["ok", "ok"]


@pytest.mark.parametrize("left", ["final weights", "attempts alone"])
def test_a_run_whose_checkpoints_are_gone_does_not_start_anew(left, trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    run = folder / "results/train/small"
    shutil.rmtree(run / "checkpoints")
    if left == "attempts alone":
        shutil.rmtree(run / "final")
    project.change(folder, max_steps=3)
    with pytest.raises(
        ValueError, match=r"small was at step 2 already, .*checkpoints has no checkpoint: restore one, or"
    ):
        project.train_here(folder)
    assert (run / "final").exists() == (left == "final weights")
    shutil.rmtree(run)
    project.train_here(folder)
    assert [row["step"] for row in project.step_rows(folder)] == [1, 2, 3]


def test_a_finished_run_takes_another_order_only_where_it_has_steps_for_it(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    about = folder / "results/train/small/dataset.json"
    before = files.read_json(about)
    project.change(folder, seed=7)
    fresh = {"train": {"new_dataset": "fresh_order"}}
    with pytest.raises(ValueError, match=r"changed after step-00000002, the last step: restore them, raise max_steps"):
        project.train_here(folder, **fresh)
    assert files.read_json(about) == before
    project.change(folder, max_steps=3)
    for _ in range(2):  # also where it is finished
        project.train_here(folder, **fresh)
    after = files.read_json(about)
    assert [(row["order"], row["first_step"]) for row in after["datasets"]] == [
        (before["order"], 1),
        (after["order"], 3),
    ]
    assert after["order"] != before["order"]
    assert files.read_json(folder / "results/train/small/final/final.json")["order"] == after["order"]


def test_the_list_of_datasets_is_what_the_weights_were_trained_on(tmp_path):
    path = tmp_path / "dataset.json"
    old, new = ({"fingerprint": name, "order": name, "clips": 1, "heldout": 1} for name in ("old", "new"))
    files.write_json(path, old)  # as it was before there was a list
    train.write_dataset(path, old, 11)
    assert files.read_json(path) == old | {"datasets": [old | {"first_step": 1}]}
    train.write_dataset(path, new, 21)
    train.write_dataset(path, new, 31)
    both = [old | {"first_step": 1}, new | {"first_step": 21}]
    assert files.read_json(path) == new | {"datasets": both}
    train.write_dataset(path, old, 21)  # restored before the other one came into a checkpoint
    assert files.read_json(path)["datasets"] == both[:1]
    train.write_dataset(path, new, 1)
    assert files.read_json(path)["datasets"] == [new | {"first_step": 1}]


def test_lowering_max_steps_takes_the_checkpoint_of_that_step_or_says_which_there_are(tmp_path):
    project.make(tmp_path, max_steps=4, gauge_every=9, checkpoint_every=2)
    project.train_here(tmp_path)
    project.change(tmp_path, max_steps=3)
    with pytest.raises(ValueError, match=r"max_steps is 3, and training is at step 4 already: set it to .*\(2, 4\)"):
        project.train_here(tmp_path)
    project.change(tmp_path, max_steps=2)
    project.train_here(tmp_path)
    assert files.read_json(tmp_path / "results/train/small/final/final.json")["step"] == 2
    final, second = project.final_weights(tmp_path), project.checkpoint_tensors(tmp_path, 2)
    trained = [name.removeprefix("model.") for name in second if name.startswith("model.")]
    assert all(torch.equal(final[name], second[f"model.{name}"]) for name in trained)
    project.change(tmp_path, max_steps=5)
    project.train_here(tmp_path)
    assert [row["step"] for row in project.step_rows(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_second_process_of_a_run_ends_before_it_touches_anything(tmp_path, monkeypatch):
    project.make(tmp_path, backend="ddp")
    folder = tmp_path / "results/train/small"
    half = folder / "checkpoints/.step-00000002.partial"
    half.mkdir(parents=True)
    with lock.acquire(folder / "train.lock", ""):
        monkeypatch.setattr(lock, "LAUNCH_PATIENCE_S", 0.0)
        with pytest.raises(OSError, match=r"'small' is being trained by process \d+ on") as caught:
            project.train_here(tmp_path)
        assert exits.passes(caught.value), "a lost node's lock may stand for a while: no verdict"
        assert {path.name for path in folder.iterdir()} == {"checkpoints", "train.lock"}
        assert half.is_dir()
    project.change(tmp_path, max_steps=1)
    project.train_here(tmp_path)
    assert not half.exists()


@pytest.mark.slow  # ranks wait half a minute for whoever may be about to end
def test_a_second_job_of_a_run_ends_on_all_ranks_with_one_sentence_and_no_verdict(tmp_path):
    project.make(tmp_path, backend="ddp")
    verdict = tmp_path / "verdict"
    words = [word for word in project.words() if word != "--debug"]
    with lock.acquire(tmp_path / "results/train/small/train.lock", ""):
        assert ranks.run(tmp_path, words, 2, BRICKREEL_VERDICT=str(verdict)) == [1, 1]
    for rank in (0, 1):
        last = (tmp_path / f"rank-{rank}.log").read_text().splitlines()[-1]
        assert "brickreel train: 'small' is being trained by process" in last
    assert not verdict.exists()


def test_weights_of_another_recipe_pass_neither_as_finished_nor_as_a_start(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    settings = folder / "results/train/small/settings.json"
    before = settings.read_text()
    project.change(folder, objective="rectified-flow")
    with pytest.raises(ValueError, match=r"results/train/small/final was made with another objective: restore what"):
        project.train_here(folder)
    project.change(folder, max_steps=3)
    with pytest.raises(ValueError, match=r"checkpoint step-00000002 was made with another objective"):
        project.train_here(folder)
    assert settings.read_text() == before
    project.change(folder, objective="iddpm", schedule={"lr": 1e-4})
    project.train_here(folder)
    assert files.read_json(folder / "results/train/small/final/final.json")["recipe"]["schedule"]["lr"] == 1e-4


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        ("no plan", r"results/plan/small/plan.json does not exist: run the plan stage first"),
        ("empty plan", r"plan.json has no buckets: run the plan stage again"),
        ("no index", r"results/encode/index.parquet"),
        ("other index", r"the plan was made from another dataset: run the plan stage again"),
        ("no base", r"base.transformer: there is no folder base/transformer|neither a folder nor in the hub cache"),
    ],
)
def test_what_is_missing_is_one_sentence(tmp_path, harm, sentence):
    project.make(tmp_path)
    results = tmp_path / "results"
    if harm == "no plan":
        (results / "plan/small/plan.json").unlink()
    elif harm == "empty plan":
        (results / "plan/small/plan.json").write_text("{}")
    elif harm == "no index":
        shutil.rmtree(results / "encode/index.parquet")
    elif harm == "other index":
        project.make(tmp_path / "other", clips=4)
        shutil.copytree(tmp_path / "other/results/encode", results / "encode", dirs_exist_ok=True)
    else:
        shutil.rmtree(tmp_path / "base")
    with pytest.raises((ValueError, OSError), match=sentence):
        project.train_here(tmp_path)


def test_a_run_that_is_not_configured_lists_those_that_are(trained, monkeypatch):
    monkeypatch.chdir(trained)
    with pytest.raises(ValueError, match=r"no run 'large' in `runs:`: choose from \['small'\]"):
        train.run(config.load("config.json"), "large")


@pytest.mark.slow
def test_torchrun_starts_the_same_training(trained, tmp_path):
    project.make(tmp_path, max_steps=2, gauge_every=2, checkpoint_every=2)
    # torchrun takes what stands behind `--` as it is: without it, it would read --run as its own --run-path.
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    done = subprocess.run(
        [*words, "brickreel", *project.words()], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert project.ids_by_step(tmp_path) == project.ids_by_step(trained)
