import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from brickreel import config, tables
from brickreel.films import video
from brickreel.models import load
from brickreel.stages import Shard, encode
from brickreel.training import latents, showing
from brickreel.training.buckets import plan_buckets
from training import clips
from training.clips import POSES

FRAMES = {"time": "frames", "stride": 2, "fps_input": "source", "buckets": {"64p": {4: [1.0, 2]}}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def project(tmp_path, monkeypatch, base):
    """A project with clips and captions; called with the runs' data settings it gives a configuration."""
    monkeypatch.chdir(tmp_path)
    clips.make()
    return lambda *data, **encode: clips.settings(base, *({"data": value} for value in data or (POSES,)), **encode)


def index(where: str = "results/encode/index.parquet") -> list[dict]:
    return tables.read("encode_index", where).to_pylist()


def samples() -> dict[str, dict]:
    return {row["sample_id"]: row for row in index() if row["outcome"] == "ok"}


def test_a_sample_is_the_autoencoders_posterior_of_the_poses_that_are_shown(project, base):
    encode.run(project())
    sample = next(row for row in samples().values() if row["clip_id"] == "clip0" and row["kind"] == "clip")
    assert (sample["frames"], sample["height"], sample["width"]) == (4, 64, 64)
    assert (sample["pose_rate"], sample["offset"], sample["bucket"]) == (12.0, 1, "64p-4f-1.00-poses1")
    found = latents.read(sample)
    # On twos, poses 1 to 4 are frames 2, 4, 6 and 8 of the file.
    shown = video.read("results/cut/clips/clip0.mp4", [2, 4, 6, 8])
    pixels = showing.fill_and_crop(showing.to_tensor(shown), 64, 64)
    with torch.no_grad():
        mean, logvar = load.autoencoder(str(base / "autoencoder")).encode(pixels)
    torch.testing.assert_close(found.mean.float(), mean.transpose(0, 1), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(found.logvar.float(), logvar.transpose(0, 1), rtol=1e-2, atol=1e-2)
    assert found.text.shape == (sample["text_tokens"], 16)
    assert sample["scaling_factor"] == 0.5


def test_shapes_are_the_union_of_the_runs_and_frames_of_the_film_are_counted_with_their_holds(project):
    settings = project(POSES, FRAMES)
    encode.run(settings)
    by_bucket = {row["bucket"] for row in samples().values()}
    assert by_bucket == {"64p-4f-1.00-poses1", "64p-1f-1.00-still", "64p-4f-1.00-frames2-source"}
    told = {row["bucket"]: row["pose_rate"] for row in samples().values()}
    assert told["64p-4f-1.00-frames2-source"] == 24.0
    assert told["64p-1f-1.00-still"] == 120.0
    table = tables.read("encode_index", "results/encode/index.parquet")
    assert [plan_buckets(table, run).used for run in settings.runs.values()] == [4, 2]
    assert {row["reason"] for row in index() if row["outcome"] == "dropped"} == {"still_not_wanted"}


def test_several_offsets_and_crops_are_several_samples_of_one_clip(project):
    encode.run(project(offsets=2, crops=2))
    clip = sorted(
        (row["offset"], row["crop"])
        for row in samples().values()
        if row["clip_id"] == "clip1" and row["kind"] == "clip"
    )
    assert clip == [(0, 0.0), (0, 1.0), (2, 0.0), (2, 1.0)]
    table = tables.read("encode_index", "results/encode/index.parquet")
    assert plan_buckets(table, project(offsets=2, crops=2).run("run0")).used == 4


def test_what_is_finished_is_not_encoded_again(project):
    encode.run(project())
    before = {path: path.stat().st_mtime_ns for path in Path("results/encode").glob("*.safetensors")}
    first = index()
    Path("results/encode/index.parquet/00.parquet").unlink()
    for path in Path("results/cut/clips").glob("*.mp4"):
        path.unlink()  # nothing may be decoded any more
    encode.run(project())
    assert index() == first
    assert {path: path.stat().st_mtime_ns for path in Path("results/encode").glob("*.safetensors")} == before


def test_a_finished_clip_follows_its_film_to_the_other_split(project):
    encode.run(project())
    clips = tables.read("cut_index", encode.CLIPS).to_pylist()
    tables.write("cut_index", encode.CLIPS / "00.parquet", [row | {"split": "heldout"} for row in clips])
    encode.run(project())
    assert {row["split"] for row in samples().values()} == {"heldout"}


def test_other_holds_encode_again_and_another_rate_is_only_told(project):
    encode.run(project())
    first = samples()
    rows = tables.read("cut_index", encode.CLIPS).to_pylist()
    other = {"clip0": {"holds": [1, 3] * 3}, "clip1": {"pose_rate": 8.0}}
    changed = [row | (other.get(row["clip_id"], {}) if row["kind"] == "clip" else {}) for row in rows]
    tables.write("cut_index", encode.CLIPS / "00.parquet", changed)
    encode.run(project())
    now = samples()
    assert {first[name]["clip_id"] for name in now if now[name]["crc32"] != first[name]["crc32"]} == {"clip0"}
    assert {row["pose_rate"] for row in now.values() if row["clip_id"] == "clip1" and row["kind"] == "clip"} == {8.0}


def test_runs_that_the_graph_does_not_train_are_not_encoded_for(project):
    settings = project(POSES, FRAMES)
    chosen = settings.project.model_copy(update={"runs": ("run0",)})
    encode.run(settings.model_copy(update={"project": chosen}))
    assert {row["bucket"] for row in samples().values()} == {"64p-4f-1.00-poses1", "64p-1f-1.00-still"}


def test_files_of_shards_that_are_no_more_go_when_all_is_encoded(project):
    for number in range(3):
        encode.run(project(), Shard(number, 3))
    mine = Path("results/encode/mine-0000.safetensors")
    mine.touch()
    encode.run(project())
    files = {Path(row["file"]) for row in samples().values()}
    assert set(Path("results/encode").glob("*.safetensors")) == files | {mine}


def test_a_full_gpu_is_one_sentence_that_says_what_to_do(project, monkeypatch):
    def full(*args, **keywords):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("brickreel.training.encoding.Encoder.posterior", full)
    with pytest.raises(ValueError, match=r"memory of cpu is full: lower encode\.frames_per_batch"):
        encode.run(project())


def test_a_changed_caption_encodes_its_clip_again_and_leaves_the_others(project):
    encode.run(project())
    first = samples()
    captions = tables.read("captions", encode.CAPTIONS).to_pylist()
    captions[0]["text"] = "the yellow tree"
    tables.write("captions", "results/caption/captions.parquet/00.parquet", captions)
    encode.run(project())
    changed = {name for name, row in samples().items() if row["crc32"] != first[name]["crc32"]}
    assert {first[name]["clip_id"] for name in changed} == {"clip0"}
    assert all(latents.read(row) for row in samples().values())


def test_other_settings_replace_the_files_and_leave_none_behind(project):
    encode.run(project())
    before = set(Path("results/encode").glob("*.safetensors"))
    encode.run(project(text_tokens=4))
    after = set(Path("results/encode").glob("*.safetensors"))
    assert before.isdisjoint(after)
    assert after == {Path(row["file"]) for row in samples().values()}
    assert max(row["text_tokens"] for row in samples().values()) <= 4


def test_other_weights_at_the_same_path_encode_again_and_absent_ones_are_not_missed(project, base, tmp_path):
    mine = tmp_path / "base"
    shutil.copytree(base, mine)
    settings = project()
    settings = settings.model_copy(update={"base": config.Base.model_validate(tiny.base_settings(mine))})
    encode.run(settings)
    first = samples()

    shutil.rmtree(mine)
    encode.run(settings)
    assert samples() == first

    tiny.save_base(mine, seed=1)
    encode.run(settings)
    assert samples().keys() == first.keys()
    assert all(row["crc32"] != first[name]["crc32"] for name, row in samples().items())


def test_an_unreadable_clip_fails_alone_and_too_many_fail_the_stage(project):
    Path("results/cut/clips/clip1.mp4").write_bytes(b"no video")
    encode.run(project(max_failed_share=0.2))
    failed = [row for row in index() if row["outcome"] == "failed"]
    assert [row["clip_id"] for row in failed] == ["clip1"]
    assert "clip1.mp4" in failed[0]["reason"]
    with pytest.raises(ValueError, match=r"1 of 6 clips could not be encoded.*max_failed_share.*clip1"):
        encode.run(project(max_failed_share=0.1))


def test_a_clip_whose_file_system_is_not_mounted_is_not_called_bad(project, tmp_path):
    Path("results/cut/clips").rename(tmp_path / "elsewhere")
    Path("results/cut/clips").mkdir()
    with pytest.raises(FileNotFoundError, match="is a file system not mounted here"):
        encode.run(project(max_failed_share=1.0))
    assert not Path("results/encode/index.parquet").exists()


def test_shards_divide_the_clips_and_a_clip_without_caption_is_dropped(project):
    captions = [row for row in tables.read("captions", encode.CAPTIONS).to_pylist() if row["clip_id"] != "clip2"]
    tables.write("captions", "results/caption/captions.parquet/00.parquet", captions)
    parts = []
    for number in range(2):
        encode.run(project(), Shard(number, 2))
        parts.append({row["clip_id"] for row in index(f"results/encode/index.parquet/{number:02d}.parquet")})
    assert parts[0] | parts[1] == {"clip0", "clip1", "clip2"}
    assert parts[0].isdisjoint(parts[1])
    reasons = {row["clip_id"]: row["reason"] for row in index() if row["outcome"] == "dropped"}
    assert reasons == {"clip2": "no_caption"}


def test_a_shard_knows_where_its_clips_stand_among_all(project):
    everything = encode._places(Shard())
    assert sorted(everything.values()) == list(range(len(everything)))
    parts = [encode._places(Shard(index, 3)) for index in range(3)]
    assert sum(map(len, parts)) == len(everything)
    assert parts[0] | parts[1] | parts[2] == everything


def test_only_the_origins_draws_read_where_clips_stand_among_all(project, monkeypatch):
    asked, places = [], encode._places
    monkeypatch.setattr(encode, "_places", lambda shard: asked.append(shard) or places(shard))
    encode.plan_jobs(project(), Shard())
    assert not asked
    encode.plan_jobs(project(POSES, POSES | {"assignment": "opensora-1.1"}), Shard())
    assert asked == [Shard()]


def test_parts_of_a_larger_number_of_shards_go(project):
    for count in (3, 2):
        for number in range(count):
            encode.run(project(), Shard(number, count))
    rows = [(row["sample_id"], row["clip_id"], row["kind"]) for row in index()]
    assert len(set(rows)) == len(rows)
    assert {row["clip_id"] for row in index()} == {"clip0", "clip1", "clip2"}


def test_an_interrupted_shard_keeps_the_files_it_has_written(project):
    encode.run(project())
    whole = samples()
    kept = latents.finished(Path("results/encode/00"), encode._digest(project()))
    assert kept.keys() == whole.keys()
    assert {row["row"]["crc32"] for row in kept.values()} == {row["crc32"] for row in whole.values()}
    damaged = next(Path("results/encode").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    encode.run(project())
    assert {name: row["crc32"] for name, row in samples().items()} == {
        name: row["crc32"] for name, row in whole.items()
    }
    assert all(latents.read(row) for row in samples().values())


def test_without_runs_there_is_nothing_to_encode(project, base):
    with pytest.raises(ValueError, match="no run is chosen"):
        encode.run(config.load({"base": tiny.base_settings(base)}))


def test_resized_stills_are_bicubic_and_crops_stand_where_they_are_asked_for():
    frames = np.zeros((1, 64, 128, 3), np.uint8)
    frames[:, :, 64:] = 255
    left, right = (showing.fill_and_crop(showing.to_tensor(frames), 64, 64, place) for place in (0.0, 1.0))
    assert left.max() == -1
    assert right.min() == 1


def test_settings_of_the_stage_name_no_more_of_a_run_than_its_data(project):
    stored = config.stage_settings(project(), "encode")
    assert {key for run in stored["runs"].values() for key in run} == {"data"}
    json.dumps(stored)
