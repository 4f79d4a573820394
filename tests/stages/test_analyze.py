"""One table per shard, every film in it, whatever became of the film."""

import errno
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from brickreel import config, tables
from brickreel.films import isolated, signals
from brickreel.stages import Shard, analyze, cut, ingest
from films import project
from films.test_decode import COUNT, damaged, encoded

HURRIED = {"transnet": "off", "limits": {"seconds": 0.05}}


def rows():
    return tables.read("signals", analyze.OUTPUT).to_pandas()


def damage(folder, *names):
    """Cut films short after they were listed, and forget what was read of them."""
    for path in (folder / name for name in names):
        path.write_bytes(path.read_bytes()[:2000])
    shutil.rmtree(analyze.FINISHED)


def list_second_alone():
    films = tables.read("sources", ingest.OUTPUT).to_pylist()
    tables.write("sources", ingest.OUTPUT, [film for film in films if film["title"] == "The Second"])


@pytest.fixture
def decoded(monkeypatch):
    """Names of the films that are decoded."""
    names = []
    real = isolated.call

    def call(work, arguments, *others):
        if work is signals.read:
            names.append(Path(arguments[0]).name)
        return real(work, arguments, *others)

    monkeypatch.setattr(isolated, "call", call)
    return names


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
    damage(films_project, project.SECOND)
    project.run("analyze")
    found = rows()
    (failed,) = found[found["outcome"] == "failed"].to_dict("records")
    assert failed["frame"] == -1
    assert "is not a video file" in failed["reason"]
    assert (found["outcome"] == "ok").sum() > 100


def test_a_damaged_film_is_read_to_its_end_and_what_is_missing_is_said(films_project, caplog):
    path = encoded(films_project / "damaged.avi", "mjpeg", "yuvj420p")
    project.listed(films_project, [[damaged(path, 20, 30).name, "Damaged", "CC0"]])
    project.run("ingest", "analyze")
    found = rows()
    assert len(found) == COUNT - 2
    assert set(found["outcome"]) == {"ok"}
    assert set(found["reason"]) == {f"{COUNT - 2} of its {COUNT} frames can be decoded"}
    assert f"damaged.avi: {COUNT - 2} of its {COUNT} frames can be decoded" in caplog.text
    project.run("curate", "cut")
    assert set(tables.read("cut_index", cut.OUTPUT)["outcome"].to_pylist()) == {"ok"}


def test_a_film_that_takes_too_long_is_given_up(films_project):
    shutil.rmtree(analyze.FINISHED)
    project.run("analyze", settings=config.load({"analyze": HURRIED | {"max_failed_share": 1.0}}))
    assert set(rows()["reason"]) == {"took longer than the limit of 0 s"}


def test_a_film_that_was_given_up_is_tried_again_with_other_limits(films_project):
    shutil.rmtree(analyze.FINISHED)
    project.run("analyze", settings=config.load({"analyze": HURRIED | {"max_failed_share": 1.0}}))
    project.run("analyze")
    assert rows()["reason"].eq("").all()


def test_a_film_that_failed_in_an_interrupted_shard_is_tried_again(films_project, monkeypatch):
    shutil.rmtree(analyze.FINISHED)

    def killed(work, arguments, *others):
        raise ValueError("crashes the decoder (signal 9)")

    def stopped(parts, output):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(isolated, "call", killed)
        patched.setattr(analyze, "_join", stopped)
        with pytest.raises(KeyboardInterrupt):
            project.run("analyze")
    assert len(list(analyze.FINISHED.iterdir())) == 2
    project.run("analyze")
    assert rows()["reason"].eq("").all()


def test_too_many_failed_films_stop_the_stage_with_the_table_written(films_project):
    damage(films_project, project.FIRST, project.SECOND)
    with pytest.raises(
        ValueError, match=r"(?s)2 of 2 films failed, more than `analyze.max_failed_share`.*not a video file"
    ):
        project.run("analyze", shards=1)
    assert set(rows()["outcome"]) == {"failed"}
    project.run("analyze", settings=config.load({"analyze": {"transnet": "off", "max_failed_share": 1.0}}), shards=1)


@pytest.mark.parametrize(("share", "stops"), [(0.0, True), (0.05, False)])
def test_one_damaged_film_stops_a_small_shard_only_where_none_may_fail(films_project, share, stops):
    damage(films_project, project.SECOND)
    list_second_alone()
    settings = config.load({"analyze": {"transnet": "off", "max_failed_share": share}})
    if stops:
        with pytest.raises(ValueError, match="1 of 1 films failed"):
            analyze.run(settings)
    else:
        analyze.run(settings)
    assert rows()["outcome"].tolist() == ["failed"]


def test_a_shard_stops_whose_only_film_is_not_there(films_project):
    shutil.rmtree(analyze.FINISHED)
    list_second_alone()
    (films_project / project.SECOND).unlink()
    with pytest.raises(ValueError, match=r"1 of 1 films failed, and none is there.*cannot be opened: No such file"):
        analyze.run(project.CONFIG)


def test_a_film_out_of_reach_for_a_reason_that_passes_stops_the_stage_at_once(films_project, monkeypatch, decoded):
    damage(films_project, project.FIRST, project.SECOND)
    before = rows()
    opened = Path.open

    def stale(path, *arguments, **keywords):
        if path.suffix == ".mp4":
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return opened(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", stale)
    with pytest.raises(OSError, match="Stale file handle") as raised:
        project.run("analyze", shards=1)
    assert raised.value.errno == errno.ESTALE
    assert len(decoded) == 1
    assert len(rows()) == len(before)


def test_a_link_to_a_file_system_that_is_away_stops_the_stage(films_project):
    (films_project / "mounted").mkdir()
    (films_project / project.SECOND).rename(films_project / "hidden")
    (films_project / project.SECOND).symlink_to(films_project / "mounted" / "film.mp4")
    shutil.rmtree(analyze.FINISHED)
    with pytest.raises(FileNotFoundError, match="is a file system not mounted here"):
        project.run("analyze")


def test_a_film_that_is_added_is_decoded_and_no_other(films_project, decoded):
    before = rows()
    third = films_project / "third.mp4"
    third.write_bytes((films_project / project.SECOND).read_bytes() + b"\0\0\0\x08free")
    names = [project.FIRST, project.SECOND, third.name]
    project.listed(films_project, [[name, name, "CC0"] for name in names])
    # Snakemake removes the tables before the stage writes them again.
    for part in analyze.OUTPUT.glob("*.parquet"):
        part.unlink()
    project.run("ingest", "analyze")
    assert decoded == ["third.mp4"]
    assert len(rows()) > len(before)
    assert rows()["film_id"].nunique() == 3


def test_other_settings_decode_every_film_again_and_leave_nothing_behind(films_project, decoded):
    before = {path.name for path in analyze.FINISHED.iterdir()}
    project.run("analyze", settings=config.load({"analyze": {"transnet": "off", "height": 90}}))
    assert len(decoded) == 2
    after = {path.name for path in analyze.FINISHED.iterdir()}
    assert len(after) == 2
    assert after.isdisjoint(before)


def test_parts_of_films_that_are_no_longer_listed_go_and_those_of_other_shards_stay(films_project):
    part = next(path for path in analyze.FINISHED.iterdir() if path.name[0] != ".")
    gone = [f"{number:016x}" for number in range(40)]
    for film_id in gone:
        shutil.copy(part, analyze.FINISHED / f"{film_id}-180-off.parquet")
        (analyze.FINISHED / f".{film_id}-180-off-x1y2.parquet").touch()
    shard = Shard(1, 3)
    analyze.run(project.CONFIG, shard)
    left = {path.name.lstrip(".")[:16] for path in analyze.FINISHED.iterdir()}
    assert left & set(gone) == {film_id for film_id in gone if not shard.owns(film_id)} != set(gone)
    project.run("analyze", shards=1)
    assert len(list(analyze.FINISHED.iterdir())) == 2


def test_readers_of_the_folder_see_every_frame_once(films_project):
    assert analyze.FINISHED.is_dir()
    assert pq.read_table(analyze.OUTPUT).num_rows == len(rows())


def test_a_part_of_another_version_is_made_again(films_project, decoded):
    part = sorted(analyze.FINISHED.iterdir())[0]
    table = pq.read_table(part)
    pq.write_table(table.replace_schema_metadata({"brickreel.table": "signals", "brickreel.version": "0"}), part)
    project.run("analyze")
    assert len(decoded) == 1


def test_finished_films_of_an_interrupted_shard_are_not_decoded_again(films_project, monkeypatch):
    before = rows()
    shutil.rmtree(analyze.FINISHED)
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
