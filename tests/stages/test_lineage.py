"""Which clips, captions, latents and checkpoints a film went into, and taking it out."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from brickreel import files, tables
from brickreel.stages import curate, cut, ingest, lineage
from brickreel.training import latents
from films import project


@pytest.fixture
def trained(films_project):
    """A run that was shown the first film from step 3 on, and another that never was."""
    clips = tables.read("cut_index", cut.OUTPUT).to_pylist()
    ids = {row["title"]: row["clip_id"] for row in clips}
    for run, titles in {"bricks": ["The Second", "The Second", "The First"], "other": ["The Second"]}.items():
        for step, title in enumerate(titles, start=1):
            row = {"step": step, "sample_ids": [f"{ids[title]}.64p-16f.0.0.5"]}
            files.append_json_line(f"results/train/{run}/steps/0-0.jsonl", row)
        for step in (2, 4):
            files.write_json(f"results/train/{run}/checkpoints/step-{step:08d}/manifest.json", {})
    text = dict.fromkeys(tables.SCHEMAS["captions"].names)
    captions = [
        text | {"clip_id": row["clip_id"], "kind": row["kind"], "text": "bricks", "outcome": "ok", "reason": ""}
        for row in clips
    ]
    tables.write("captions", lineage.CAPTIONS / "00.parquet", captions)
    return films_project


def film_id(title="The First"):
    return next(row["film_id"] for row in tables.read("sources", ingest.OUTPUT).to_pylist() if row["title"] == title)


def test_a_film_is_traced_to_the_checkpoints_that_saw_it(trained):
    traced = lineage.trace(film_id())
    bricks, other = traced["runs"]
    checkpoint = "results/train/bricks/checkpoints/step-00000004"
    assert bricks["checkpoints"] == [checkpoint]
    assert (bricks["steps"], bricks["first_step"]) == (1, 3)
    assert (other["steps"], other["checkpoints"]) == (0, [])
    assert len(traced["clips"]) == 3
    assert len(traced["captions"]) == 4
    Path(checkpoint).rename(f"{checkpoint}.damaged")
    assert lineage.trace(film_id())["runs"][0]["checkpoints"] == [f"{checkpoint}.damaged"]


def test_a_dataset_that_was_exported_with_a_withdrawn_film_goes_with_it(trained):
    identity = film_id()
    for run, film in {"bricks": identity, "other": film_id("The Second")}.items():
        files.write_bytes(f"results/export/{run}/dataset/train/{film}-000000-000010.mp4", b"")
        files.write_text(f"results/export/{run}/model_index.json", "{}")
    traced = lineage.withdraw(identity)
    assert traced["exported"] == [f"results/export/bricks/dataset/train/{identity}-000000-000010.mp4"]
    assert sorted(path.parts[2] for path in lineage.EXPORT.glob("*/dataset")) == ["other"]
    assert len(list(lineage.EXPORT.glob("*/model_index.json"))) == 2


def test_a_withdrawn_film_leaves_the_dataset_and_stays_out(trained):
    identity = film_id()
    for run in ("bricks", "other"):
        for pattern in lineage.NEAREST:
            files.write_bytes("results/" + pattern.replace("*", "a-b").format(run), b"")
    lineage.withdraw(identity)
    assert {path.parent.name for path in Path("results").rglob("nearest.jpg")} == {"other"}
    assert identity not in {row["film_id"] for row in tables.read("cut_index", cut.OUTPUT).to_pylist()}
    assert not list(cut.CLIPS.glob(f"{identity}*"))
    assert not list(cut.STILLS.glob(f"{identity}*"))
    assert identity not in (cut.CLIPS / "metadata.csv").read_text()
    project.run("curate", "cut")
    assert identity not in {row["film_id"] for row in tables.read("cut_index", cut.OUTPUT).to_pylist()}
    reasons = {r["reason"] for r in tables.read("clips", curate.OUTPUT).to_pylist() if r["film_id"] == identity}
    assert reasons == {"title_card", "withdrawn"}
    assert (trained / project.FIRST).exists()
    assert lineage.trace(identity)["withdrawn"]


def test_latents_of_a_withdrawn_film_are_gone_from_files_that_others_need(trained):
    identity = film_id()
    clips = {row["film_id"]: row["clip_id"] for row in tables.read("cut_index", cut.OUTPUT).to_pylist()}
    # As after a changed caption: the file's sample of the film is one that no index names any more.
    writer = latents.Writer(lineage.ENCODE.parent / "00", "digest", 1)
    rows = {}
    for film, clip in clips.items():
        numbers = latents.Sample(*(torch.ones(1, 1, 1, 1) for _ in range(2)), torch.ones(1, 1))
        rows[film] = writer.add({"sample_id": f"{clip}.64p", "clip_id": clip, "kind": "clip"}, numbers, {})
    lineage.ENCODE.parent.mkdir(parents=True)
    writer.flush()
    damaged = lineage.ENCODE.parent / "01-0000.safetensors"
    damaged.write_bytes(b"nothing")
    lineage.withdraw(identity)
    with pytest.raises(ValueError, match="cannot be read"):
        latents.read(rows[identity])
    assert clips[identity].encode() not in Path(rows[identity]["file"]).read_bytes()
    assert all(latents.read(row) for film, row in rows.items() if film != identity)


def test_checkpoints_that_saw_an_adopted_film_are_known_after_its_withdrawal(trained):
    # Clips of another tool have ids that say nothing of their film.
    names = {}
    for path in tables.files_of(cut.OUTPUT):
        rows = tables.read("cut_index", path).to_pylist()
        names |= {row["clip_id"]: f"{number:016x}" for number, row in enumerate(rows)}
        tables.write("cut_index", path, [row | {"clip_id": names[row["clip_id"]]} for row in rows])
    curate.OUTPUT.unlink()
    step = {"step": 3, "sample_ids": [f"{name}.64p-16f.0.0.5" for name in names.values()]}
    files.append_json_line("results/train/adopted/steps/0-0.jsonl", step)
    files.write_json("results/train/adopted/checkpoints/step-00000004/manifest.json", {})
    identity = film_id()
    for _ in range(2):
        saw = list(lineage.seen_by(lineage.withdraw(identity)))
        assert "results/train/adopted/checkpoints/step-00000004" in saw


def test_the_commands_say_what_they_know(trained):
    shown = CliRunner().invoke(lineage.lineage_command, ["--film", project.FIRST, "--json"])
    assert json.loads(shown.output)["film"]["film_id"] == film_id()
    gone = CliRunner().invoke(lineage.withdraw_command, ["--film", film_id()])
    assert "results/train/bricks/checkpoints/step-00000004" in gone.output
    assert CliRunner().invoke(lineage.lineage_command, ["--film", "nobody"]).exit_code == 1


def test_a_film_is_known_by_its_path_from_anywhere_and_by_its_name(trained):
    for film in (project.FIRST, str(trained / project.FIRST), Path(project.FIRST).name):
        assert lineage.trace(film)["film"]["film_id"] == film_id()
    rows = tables.read("sources", ingest.OUTPUT).to_pylist()
    film = next(row for row in rows if row["path"] == project.FIRST)
    films = [film | {"path": "one/brick.mp4"}, film | {"path": "two/brick.mp4", "film_id": "another"}]
    tables.write("sources", ingest.OUTPUT, films)
    assert lineage.trace("two/brick.mp4")["film"]["film_id"] == "another"
    with pytest.raises(ValueError, match=r"2 films are called .*: give the id of one, .*another"):
        lineage.trace("brick.mp4")


def test_outside_a_project_the_command_says_where_to_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"there is no results/ingest/sources.parquet in .*: start from the project"):
        lineage.trace("anything")


def test_adopted_clips_stay_and_are_not_called_gone(trained):
    adopted = trained / "theirs.mp4"
    adopted.write_bytes(b"video")
    for path in tables.files_of(cut.OUTPUT):
        rows = tables.read("cut_index", path).to_pylist()
        tables.write("cut_index", path, [row | {"path": str(adopted)} for row in rows])
    said = CliRunner().invoke(lineage.withdraw_command, ["--film", film_id()]).output
    assert "0 clips and stills" in said
    assert "4 adopted clips were left where they lie" in said
    assert adopted.exists()
