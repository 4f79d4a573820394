"""One table per shard, every film in it, whatever became of the film."""

import pytest

from brickreel import config, tables
from brickreel.films import isolated, signals
from brickreel.stages import analyze, ingest
from films import project


def rows():
    return tables.read("signals", analyze.OUTPUT).to_pandas()


def test_every_frame_of_every_film_has_one_row(films_project):
    films = {r["film_id"]: r["frames"] for r in tables.read("sources", ingest.OUTPUT).to_pylist() if r["film_id"]}
    found = rows()
    assert found.groupby("film_id").size().to_dict() == films
    for _, film in found.groupby("film_id"):
        assert film["frame"].tolist() == list(range(len(film)))


def test_the_number_of_shards_changes_nothing(films_project):
    before = rows().sort_values(["film_id", "frame"]).reset_index(drop=True)
    for part in analyze.OUTPUT.glob("*.parquet"):
        part.unlink()
    project.run("analyze", shards=3)
    after = rows().sort_values(["film_id", "frame"]).reset_index(drop=True)
    assert len(list(analyze.OUTPUT.glob("*.parquet"))) == 3
    assert after.drop(columns="crop").equals(before.drop(columns="crop"))


def test_fewer_shards_leave_no_film_twice(films_project):
    before = len(rows())
    project.run("analyze", shards=5)
    project.run("analyze", shards=1)
    assert [part.name for part in analyze.OUTPUT.glob("*.parquet")] == ["00.parquet"]
    assert len(rows()) == before


def test_a_film_that_fails_has_its_reason_and_harms_no_other(films_project):
    path = films_project / project.SECOND
    path.write_bytes(path.read_bytes()[:2000])
    project.run("analyze")
    found = rows()
    (failed,) = found[found["outcome"] == "failed"].to_dict("records")
    assert failed["frame"] == -1
    assert "is not a video file" in failed["reason"]
    assert (found["outcome"] == "ok").sum() > 100


def test_a_film_that_takes_too_long_is_given_up(films_project):
    hurried = config.load({"analyze": {"transnet": "off", "limits": {"seconds": 0.05}}})
    project.run("analyze", settings=hurried)
    assert set(rows()["reason"]) == {"took longer than the limit of 0 s"}


def test_a_film_that_was_given_up_is_tried_again_with_other_limits(films_project, monkeypatch):
    def stopped(parts, output):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(analyze, "_join", stopped)
        with pytest.raises(KeyboardInterrupt):
            project.run("analyze", settings=config.load({"analyze": {"transnet": "off", "limits": {"seconds": 0.05}}}))
    assert len(list(analyze.FINISHED.iterdir())) == 2
    project.run("analyze", settings=config.load({"analyze": {"transnet": "off"}}))
    assert rows()["reason"].eq("").all()


def test_finished_films_of_an_interrupted_shard_are_not_decoded_again(films_project, monkeypatch):
    before = rows()
    decoded = []
    real = isolated.call

    def stop_at_second(work, arguments, *others):
        if work is signals.read:
            decoded.append(arguments[0])
            if len(decoded) == 2:
                raise KeyboardInterrupt
        return real(work, arguments, *others)

    monkeypatch.setattr(isolated, "call", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        project.run("analyze", shards=1)
    project.run("analyze", shards=1)
    assert len(decoded) == 3
    assert len(set(decoded)) == 2
    assert len(rows()) >= len(before)
