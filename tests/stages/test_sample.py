import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from brickreel import config, files, tables
from brickreel.cluster.beside import SampleJobs
from brickreel.cluster.submission import Resources
from brickreel.evaluation import jobs, prompts, sheets, weights
from brickreel.films import video
from brickreel.models.pipeline import OpenSoraPipeline
from brickreel.stages import sample
from evaluation import project
from films import memory
from training import ranks


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was sampled; tests must not change it."""
    folder = tmp_path_factory.mktemp("sampled ü")
    with in_folder(folder):
        settings = project.make(folder, lengths=[1, 2], weights=["ema", "raw"])
        sample.run(settings, "r")
    return folder, settings


class in_folder:  # noqa: N801
    """Work in a folder for a while."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        self.before = os.getcwd()
        os.chdir(self.folder)

    def __exit__(self, *_):
        os.chdir(self.before)


def trained(source: Path, folder: Path) -> None:
    """A copy of the run before it was sampled."""
    (folder / "base").symlink_to(source / "base")
    shutil.copytree(source / "results/train", folder / "results/train")


def rows_of(folder: Path) -> list[dict]:
    paths = sorted((folder / "results/sample/r").glob("step-*/samples.parquet"))
    return [row for path in paths for row in tables.read("samples", path).to_pylist()]


def pictures(folder: Path, **wanted) -> dict[tuple, np.ndarray]:
    found = [row for row in rows_of(folder) if all(row[name] == value for name, value in wanted.items())]
    return {
        (row["step"], row["weights"], row["prompt"], row["seed"], row["conditional"], row["length"]): video.read(
            folder / row["path"]
        )
        for row in found
    }


def changed(settings: config.Config, **values) -> config.Config:
    return config.load(settings.model_dump(mode="json"), {"sample": values})


def test_every_prompt_seed_and_checkpoint_is_sampled_before_and_after(finished):
    folder, _ = finished
    rows = rows_of(folder)
    assert all(row["outcome"] == "ok" for row in rows)
    usual = [row for row in rows if row["conditional"] and row["length"] == 1]
    assert {(row["step"], row["weights"]) for row in usual} == {
        (0, "base"), (2, "ema"), (2, "raw"), (4, "ema"), (4, "raw"),
    }  # fmt: skip
    assert len(usual) == 5 * len(project.PROMPTS) * 2
    assert {(row["step"], row["weights"]) for row in rows if not row["conditional"]} == {
        (0, "base"), (4, "ema"), (4, "raw"),
    }  # fmt: skip
    assert {row["step"] for row in rows if row["length"] == 2} == {4}
    assert all(row["frames"] == 4 * row["length"] for row in rows)
    assert all(row["prompt"] in project.PROMPTS for row in rows)


def test_sheets_are_written_per_step_and_over_all_steps(finished):
    folder, _ = finished
    for path in [*folder.glob("results/sample/r/step-*/sheet.jpg"), folder / "results/sample/r/sheet.jpg"]:
        with Image.open(path) as picture:
            assert min(picture.size) > 300
    assert len(list(folder.glob("results/sample/r/step-*/sheet.jpg"))) == 3


def test_other_weights_another_seed_and_a_missing_prompt_give_another_video(finished):
    folder, _ = finished
    found = pictures(folder, length=1)
    first = project.PROMPTS[0]
    reference = found[4, "ema", first, 0, True, 1]
    for other in [
        (0, "base", first, 0, True, 1),
        (4, "raw", first, 0, True, 1),
        (4, "ema", first, 1, True, 1),
        (4, "ema", first, 0, False, 1),
        (4, "ema", project.PROMPTS[1], 0, True, 1),
    ]:
        assert not np.array_equal(found[other], reference), other


def test_video_depends_on_neither_order_nor_other_prompts(finished, tmp_path, monkeypatch):
    folder, settings = finished
    before = pictures(folder, weights="ema", conditional=True, length=1)
    trained(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    other = changed(settings, prompts=["another prompt", *reversed(project.PROMPTS)], seeds=[1, 5, 0])
    sample.run(changed(other, checkpoints="final", weights=["ema"], lengths=[1], unconditional=False), "r")
    after = pictures(tmp_path, weights="ema")
    for key in [key for key in before if key[0] == 4]:
        assert np.array_equal(before[key], after[key]), key


@pytest.mark.slow
def test_two_ranks_make_what_one_makes(finished, tmp_path):
    folder, settings = finished
    trained(folder, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(changed(settings, weights=["ema"], lengths=[1], unconditional=False).model_dump_json())
    statuses = ranks.run(tmp_path, ["sample", "--run", "r", "--config", "config.json"], 2)
    assert statuses == [0, 0], ranks.output(tmp_path)[-2000:]
    one, two = pictures(folder, conditional=True, length=1), pictures(tmp_path)
    assert len(two) == 3 * len(project.PROMPTS) * 2
    for key, frames in two.items():
        assert np.array_equal(frames, one[key]), (key[0], key[3], np.abs(frames.astype(int) - one[key]).max())


def test_restart_makes_only_what_is_missing_or_half_written(finished, tmp_path, monkeypatch):
    folder, settings = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    monkeypatch.chdir(copy)
    steps = copy / "results/sample/r"
    videos = sorted(steps.glob("step-*/*.mp4"))
    lost, unrecorded, empty = videos[0], videos[3], videos[7]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in videos}
    lost.unlink()
    unrecorded.with_suffix(".json").unlink()
    empty.with_suffix(".json").write_text("{half")
    (steps / "sheet.jpg").unlink()
    sample.run(settings, "r")
    remade = {path for path in videos if path.stat().st_mtime_ns != before[path][0]}
    assert remade == {lost, unrecorded, empty}
    assert all(path.read_bytes() == content for path, (_, content) in before.items())
    assert (steps / "sheet.jpg").is_file()


def test_new_weights_and_new_settings_make_new_videos(finished):
    folder, settings = finished
    row = next(row for row in rows_of(folder) if row["step"] == 4)
    weights = jobs.Weights(4, "ema", folder, final=True, identity="a")
    job = jobs.Job(row["prompt"], row["seed"], weights)
    keys = {
        jobs.key(job, settings.sample),
        jobs.key(job._replace(weights=weights._replace(identity="b")), settings.sample),
        jobs.key(job, changed(settings, steps=3).sample),
        jobs.key(job, changed(settings, hold=2).sample),
        jobs.key(job, changed(settings, device="cuda" if jobs._device(settings.sample) == "cpu" else "cpu").sample),
    }
    assert len(keys) == 5
    assert jobs.key(job, changed(settings, device=jobs._device(settings.sample)).sample) in keys


def test_weights_that_were_only_touched_are_the_same_and_those_changed_in_the_middle_are_not(tmp_path):
    large = np.random.default_rng(0).integers(0, 255, 20 << 20, np.uint8)
    final = tmp_path / "model.safetensors"
    final.write_bytes(large.tobytes())
    before = weights._identity(tmp_path)
    os.utime(final, (1, 1))
    assert weights._identity(tmp_path) == before
    large[8 << 20 : 9 << 20] += 1
    final.write_bytes(large.tobytes())
    assert weights._identity(tmp_path) != before
    hashes = set()
    for sha in ("a", "b"):
        files.write_json(tmp_path / "manifest.json", {"files": {final.name: sha}})
        hashes.add(weights._identity(tmp_path))
    assert len(hashes) == 2


@pytest.mark.parametrize("part", ["transformer", "autoencoder", "text_encoder"])
def test_a_part_of_the_base_model_that_is_replaced_in_its_folder_makes_new_videos(
    finished, tmp_path, monkeypatch, part
):
    folder, settings = finished
    shutil.copytree(folder / "base", tmp_path / "base")
    shutil.copytree(folder / "results/train", tmp_path / "results/train")
    monkeypatch.chdir(tmp_path)

    def keys():
        found = weights.available("r", settings.sample, settings.run("r"), settings.base)
        found += weights.during("r", settings.sample, settings.run("r"), settings.base, "step-00000002")
        return {jobs.key(jobs.Job("a", 0, one), settings.sample) for one in found}

    before = keys()
    assert keys() == before
    place = next((tmp_path / "base" / part).glob("*.safetensors"))
    state = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in load_file(place).items()}
    save_file(state, place)
    assert not keys() & before


def test_the_base_model_has_its_own_sampler_before_a_run_with_another_objective(finished, tmp_path, monkeypatch):
    folder, settings = finished
    trained(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    few = {"checkpoints": "final", "weights": ["ema"], "lengths": [1], "unconditional": False}
    objective = {"runs": {"r": {"objective": "rectified-flow"}}}
    flow = config.load(settings.model_dump(mode="json"), {"sample": few}, objective)
    sample.run(flow, "r")
    samplers = {row["weights"]: row["sampler"] for row in rows_of(tmp_path)}
    assert samplers == {"base": settings.sample.sampler, "ema": "rectified-flow"}
    before, now = (pictures(place, weights="base", conditional=True) for place in (folder, tmp_path))
    assert all(np.array_equal(now[video_of], before[video_of]) for video_of in now)


def test_a_checkpoint_beyond_the_final_weights_is_none_of_the_models(finished, tmp_path, monkeypatch):
    folder, settings = finished
    trained(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    kept = Path("results/train/r/checkpoints")
    shutil.copytree(kept / "step-00000002", kept / "step-00000009")
    files.write_json("results/train/r/final/final.json", {"step": 4})
    run_settings = settings.run("r")
    found = weights.available("r", settings.sample, run_settings, settings.base)
    assert [(one.step, one.kind, one.final) for one in found if one.kind != "raw"] == [
        (0, "base", False), (2, "ema", False), (4, "ema", True),
    ]  # fmt: skip


def test_holds_are_put_back_into_the_video(finished, tmp_path, monkeypatch):
    folder, settings = finished
    trained(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    few = {"checkpoints": "final", "weights": ["ema"], "lengths": [1], "unconditional": False, "seeds": [0]}
    sample.run(changed(settings, hold=3, **few), "r")
    plain, held = pictures(folder, weights="ema", length=1, conditional=True), pictures(tmp_path, weights="ema")
    for key, frames in held.items():
        assert len(frames) == 12
        assert np.abs(frames[::3].astype(int) - plain[key]).mean() < 8
    assert rows_of(tmp_path)[0]["holds"] == [3] * 4


def test_weights_that_diverged_are_rows_with_a_reason_and_an_empty_cell(finished, tmp_path, monkeypatch):
    folder, settings = finished
    trained(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "results/train/r/final/ema/diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["final_layer.linear.bias"].fill_(torch.nan)
    save_file(state, weights)
    sample.run(changed(settings, weights=["ema"], lengths=[1]), "r")
    failed = [row for row in rows_of(tmp_path) if row["outcome"] == "failed"]
    assert {row["step"] for row in failed} == {4}
    assert all("NaN" in row["reason"] for row in failed)
    assert (tmp_path / "results/sample/r/sheet.jpg").is_file()


def test_a_video_that_fails_is_a_reason_and_the_others_are_kept(finished, tmp_path, monkeypatch):
    folder, settings = finished
    trained(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    pipeline = OpenSoraPipeline.__call__

    def call(self, prompt, **options):
        if prompt == project.PROMPTS[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return pipeline(self, prompt, **options)

    monkeypatch.setattr(OpenSoraPipeline, "__call__", call)
    sample.run(changed(settings, checkpoints="final", weights=["ema"], lengths=[1], unconditional=False), "r")
    rows = rows_of(tmp_path)
    assert {(row["prompt"], row["outcome"]) for row in rows} == {
        (project.PROMPTS[0], "failed"), (project.PROMPTS[1], "ok"),
    }  # fmt: skip
    reasons = {row["reason"] for row in rows if row["reason"]}
    assert reasons == {"out of memory with 4 poses of 64 x 64: lower sample.frames or sample.resolution"}


def test_a_damaged_checkpoint_is_a_reason_and_the_others_are_sampled(finished, tmp_path, monkeypatch):
    folder, settings = finished
    trained(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    shard = next((tmp_path / "results/train/r/checkpoints/step-00000002").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    sample.run(changed(settings, weights=["ema"], lengths=[1], unconditional=False), "r")
    outcomes = {(row["step"], row["outcome"]) for row in rows_of(tmp_path)}
    assert outcomes == {(0, "ok"), (2, "failed"), (4, "ok")}
    assert all("damaged" in row["reason"] for row in rows_of(tmp_path) if row["outcome"] == "failed")


def test_when_most_videos_fail_the_stage_fails_with_the_reason(finished, tmp_path, monkeypatch):
    folder, settings = finished
    trained(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    for shard in (tmp_path / "results/train/r").rglob("*.safetensors"):
        shard.write_bytes(b"\0" * 64)
    with pytest.raises(ValueError, match=r"8 of 12 videos failed; the first one: the weights cannot be loaded"):
        sample.run(changed(settings, weights=["ema"], lengths=[1], unconditional=False), "r")


def test_before_training_has_ended_there_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = config.load({"runs": {"r": {}}, "sample": {"prompts": ["a brick"]}})
    with pytest.raises(FileNotFoundError, match=r"run `brickreel train --run r` to its end"):
        sample.run(settings, "r")


def test_one_checkpoint_is_sampled_while_training_goes_on(finished, tmp_path, monkeypatch):
    source, settings = finished
    trained(source, tmp_path)
    monkeypatch.chdir(tmp_path)
    shutil.rmtree("results/train/r/final")
    name = sorted(path.name for path in Path("results/train/r/checkpoints").glob("step-*"))[0]
    sample.run(settings, "r", checkpoint=name)
    assert [path.name for path in Path("results/sample/r").iterdir()] == [name]
    kinds = {(row["weights"], row["length"], row["outcome"]) for row in rows_of(tmp_path)}
    assert kinds == {("ema", 1, "ok"), ("raw", 1, "ok")}
    with pytest.raises(FileNotFoundError, match="step-00009999 is not there, or not any more"):
        sample.run(settings, "r", checkpoint="step-00009999")


def test_the_checkpoint_that_became_the_final_weights_is_left_to_the_stage(finished, tmp_path, monkeypatch):
    source, settings = finished
    shutil.copytree(source, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    files.write_json("results/train/r/final/final.json", {"step": 4})
    before = {path: path.stat().st_mtime_ns for path in Path("results/sample/r").rglob("*")}
    sample.run(settings, "r", checkpoint="step-00000004")
    assert {path: path.stat().st_mtime_ns for path in Path("results/sample/r").rglob("*")} == before
    sample.run(settings, "r", checkpoint="step-00000002")


def test_sheets_read_only_what_they_show_and_keep_no_whole_video(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = np.full((24, 240, 320, 3), 120, np.uint8)
    video.write("a.mp4", frames, 8.0)
    row = {"seed": 0, "outcome": "ok", "conditional": True, "length": 1, "weights": "ema", "prompt_id": "p"}
    row |= {"steps": 1, "sampler": "iddpm", "guidance": 7.0, "frames": 24, "holds": [1] * 24, "path": "a.mp4"}
    monkeypatch.setattr(sheets, "MOST_ROWS", 6)
    rows = [row | {"prompt": f"p{number}"} for number in range(8)]
    # Those after the last row of the sheet are not even opened.
    rows[6]["path"] = rows[7]["path"] = "none.mp4"
    taken = memory.peak(lambda: sample._sheet_of_step(rows, tmp_path / "step.jpg", "t"))
    assert taken < 3 * frames.nbytes
    sample._sheet_of_run({0: rows, 5: rows}, "r", config.load({}))
    assert Path("results/sample/r/sheet.jpg").is_file()


def test_samples_of_an_earlier_training_of_that_name_are_left_out_and_those_made_during_this_one_stay(
    finished, tmp_path, monkeypatch
):
    source, settings = finished
    shutil.copytree(source, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    tables_of = Path("results/sample/r")
    for step, age in ((1, 100), (3, -100)):
        folder = tables_of / f"step-{step:08d}"
        shutil.copytree(tables_of / "step-00000002", folder)
        written = time.time() - age
        os.utime(folder / "samples.parquet", (written, written))
    attempt = dict.fromkeys(tables.SCHEMAS["attempts"].names) | {"attempt": 0, "event": "start"}
    attempt |= {"time_s": time.time() - 50, "outcome": "ok", "reason": ""}
    tables.log("attempts", Path("results/train/r/attempts.jsonl"), attempt)
    sample.run(settings, "r")
    steps = {path.parent.name for path in tables_of.glob("step-*/samples.parquet")}
    assert steps == {"step-00000000", "step-00000002", "step-00000003", "step-00000004"}


def test_a_run_that_was_started_anew_in_its_folder_forgets_the_samples_of_the_training_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    now = time.time()
    for number, (age, first_step) in enumerate(((300, 1), (200, 3), (100, 1), (50, 5))):
        attempt = dict.fromkeys(tables.SCHEMAS["attempts"].names) | {"attempt": number, "first_step": first_step}
        attempt |= {"event": "start", "time_s": now - age, "outcome": "ok", "reason": ""}
        tables.log("attempts", Path("results/train/r/attempts.jsonl"), attempt)
    steps = [Path("results/sample/r/step-00000002"), Path("results/sample/r/step-00000004")]
    for folder, age in zip(steps, (150, 70), strict=True):
        files.write_text(folder / "samples.parquet", "")
        os.utime(folder / "samples.parquet", (now - age, now - age))
    beside = SampleJobs("r", (), Resources())
    assert [beside._is_sampled(folder.name) for folder in steps] == [False, True]
    sample._forget_earlier_trainings("r")
    assert [(folder / "samples.parquet").exists() for folder in steps] == [False, True]


def test_by_default_the_final_weights_make_videos_of_two_and_four_times_the_length():
    weights = [jobs.Weights(0, "base", None), jobs.Weights(5, "ema", Path("x"), final=True)]
    owed = jobs.owed(["a"], weights, config.load({"sample": {"unconditional": False}}).sample)
    assert [(job.weights.step, job.length) for job in owed] == [(0, 1), (5, 1), (5, 2), (5, 4)]


def test_prompts_come_from_a_file_once_each_and_none_is_a_sentence(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("  a brick \n\n猫\na brick\n", encoding="utf-8")
    settings = config.load({"sample": {"prompts": str(path)}}).sample
    assert prompts.read(settings) == ["a brick", "猫"]
    with pytest.raises(ValueError, match=r"sample\.prompts is empty"):
        prompts.read(config.load({}).sample)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        prompts.read(config.load({"sample": {"prompts": str(tmp_path / "none.txt")}}).sample)
    path.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(ValueError, match="not UTF-8"):
        prompts.read(settings)


def test_a_mark_at_the_beginning_of_a_file_is_no_part_of_its_first_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa red tower\r\na brick\r\n".encode())
    assert prompts.read(config.load({"sample": {"prompts": str(path)}}).sample) == ["a red tower", "a brick"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"lengths": [2, 4]}, "must contain 1"),
        ({"lengths": []}, "at least one"),
        ({"weights": []}, "at least one"),
        ({"weights": ["ema", "ema"]}, "each once"),
        ({"seeds": [0, 0]}, "each once"),
        ({"seeds": []}, "at least one"),
    ],
)
def test_settings_that_leave_the_final_weights_out_or_name_something_twice_are_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        config.load({"sample": given})


def test_names_of_prompts_are_safe_and_differ(tmp_path):
    texts = ["../../etc/passwd", "a" * 500, "猫", "犬", "a; rm -rf *", "", "a brick", "A brick"]
    names = [prompts.prompt_id(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert all(name.replace("-", "").isalnum() and len(name) < 80 for name in names)


def test_ranks_share_all_videos_and_none_twice():
    weights = [jobs.Weights(0, "base", None), jobs.Weights(5, "ema", Path("x"), final=True)]
    settings = config.load({"sample": {"seeds": [0, 1, 2], "prompts": ["a", "b", "c"]}}).sample
    owed = jobs.owed(["a", "b", "c"], weights, settings)
    for world in (1, 2, 4, 16):
        dealt = [job for rank in range(world) for job in jobs.deal(owed, rank, world)]
        assert sorted(dealt, key=str) == sorted(owed, key=str)
        sizes = [len(jobs.deal(owed, rank, world)) for rank in range(world)]
        assert max(sizes) - min(sizes) <= len(owed) // 9
