"""Clips, stills, manifest and dataset folder; restarts; finished clips of others."""

import csv
import errno
from pathlib import Path

import cv2
import numpy as np
import pytest

from brickreel import config, files, tables
from brickreel.captions import pictures
from brickreel.files import shard_of
from brickreel.films import cutting, isolated, video, withdrawn
from brickreel.stages import Shard, curate, cut, ingest
from films import memory, project, synth


def index(kind="clip"):
    rows = tables.read("cut_index", cut.OUTPUT).to_pylist()
    return {row["clip_id"]: row for row in rows if row["kind"] == kind}


def chosen():
    return {row["clip_id"]: row for row in tables.read("clips", curate.OUTPUT).to_pylist() if row["outcome"] == "ok"}


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.mp4")}


def cut_again(**settings):
    project.run("cut", settings=config.load({"cut": {"short_side": 90, "crf": 23, **settings}}))


def test_every_chosen_clip_is_there_with_its_frames_and_holds(films_project):
    assert set(index()) == set(chosen())
    for clip_id, row in index().items():
        clip = chosen()[clip_id]
        assert (row["outcome"], row["holds"], row["split"]) == ("ok", clip["holds"], clip["split"])
        assert (
            row["frames"]
            == sum(clip["holds"])
            == len(video.read(row["path"]))
            == clip["end_frame"] - clip["start_frame"]
        )
        assert (row["width"], row["height"]) == (160, 90)
        assert row["sha256"] == files.sha256(row["path"])


def test_every_clip_has_a_still(films_project):
    stills = index("still")
    assert set(stills) == set(chosen())
    for row in stills.values():
        assert (row["frames"], row["sha256"]) == (1, files.sha256(row["path"]))


def test_in_pose_time_a_clip_has_one_frame_per_pose(films_project):
    cut_again(time="poses")
    for row in index().values():
        assert row["in_poses"]
        assert row["frames"] == len(row["holds"]) == len(video.read(row["path"]))


def test_the_folder_is_a_dataset_with_a_card(films_project):
    with (cut.CLIPS / "metadata.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["file_name"] for row in rows} == {path.name for path in cut.CLIPS.glob("*.mp4")}
    assert {(row["title"], row["licence"]) for row in rows} == {("The First", "CC0"), ("The Second", "CC-BY")}
    assert {row["clip_id"]: row["split"] for row in rows} == {name: row["split"] for name, row in chosen().items()}
    card = (cut.CLIPS / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: other\n")
    assert "| CC-BY | 1 |" in card


def test_the_folder_is_loaded_by_datasets(films_project, tmp_path):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("videofolder", data_dir=str(cut.CLIPS.resolve()), cache_dir=str(tmp_path / "cache"))
    rows = loaded["train"].cast_column("video", datasets.Video(decode=False))
    assert {row["clip_id"] for row in rows} == set(chosen())
    assert all(row["video"]["path"].endswith(f"{row['clip_id']}.mp4") for row in rows)


def test_fewer_shards_leave_no_clip_twice(films_project):
    project.run("cut", shards=5)
    project.run("cut", shards=1)
    listed = [row["clip_id"] for row in tables.read("cut_index", cut.OUTPUT).to_pylist() if row["kind"] == "clip"]
    assert sorted(listed) == sorted(chosen())


def test_a_second_run_writes_nothing_anew(films_project):
    before = times(cut.CLIPS)
    project.run("cut")
    assert times(cut.CLIPS) == before


def test_what_was_written_with_other_settings_by_more_shards_is_forgotten(films_project):
    for part in sorted(cut.FINISHED.glob("*.jsonl")):
        (cut.FINISHED / f"9{part.name}").write_bytes(part.read_bytes())
    cut_again(crf=30)
    before = times(cut.CLIPS)
    cut_again(crf=30)
    assert times(cut.CLIPS) == before


def test_other_settings_write_everything_anew(films_project):
    before = times(cut.CLIPS)
    cut_again(crf=30)
    assert all(time != before[name] for name, time in times(cut.CLIPS).items())


def test_what_is_missing_or_cut_off_is_written_again_and_nothing_else(films_project):
    before = times(cut.CLIPS)
    gone, broken, *_ = sorted(index())
    (cut.CLIPS / f"{gone}.mp4").unlink()
    (cut.CLIPS / f"{broken}.mp4").write_bytes(b"half")
    project.run("cut")
    changed = {name for name, time in times(cut.CLIPS).items() if before[name] != time}
    assert changed == {f"{gone}.mp4", f"{broken}.mp4"}
    assert len(video.read(cut.CLIPS / f"{broken}.mp4")) == index()[broken]["frames"]


def test_finished_films_of_an_interrupted_shard_are_kept(films_project, monkeypatch):
    for path in [*cut.CLIPS.glob("*.mp4"), *cut.FINISHED.glob("*")]:
        path.unlink()
    asked = []
    real = isolated.call

    def stop_at_second(work, arguments, *others):
        asked.append([piece.clip_id for piece in arguments[1]])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(work, arguments, *others)

    monkeypatch.setattr(isolated, "call", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        project.run("cut", shards=1)
    project.run("cut", shards=1)
    first, second, third = asked
    assert second == third != first
    assert len(times(cut.CLIPS)) == len(chosen())


def test_clips_that_are_no_longer_chosen_leave_the_folder(films_project):
    settings = config.load({"curate": {"min_poses": 19}})
    project.run("curate", settings=settings)
    (cut.CLIPS / f".{next(iter(chosen()))}").mkdir()
    project.run("cut")
    assert {path.stem for path in cut.CLIPS.glob("*.mp4")} == set(chosen())
    assert {path.stem for path in cut.STILLS.glob("*.jpg")} == set(chosen())
    assert [path for path in cut.CLIPS.iterdir() if path.name.startswith(".")] == []


def test_what_another_shard_is_writing_is_left_alone(films_project):
    clip_id = next(iter(chosen()))
    owner = shard_of(clip_id[:16], 16)
    written = [cut.STILLS / f".{clip_id}-x.jpg", cut.CLIPS / ".metadata-x.csv"]
    for path in written:
        path.touch()
    for index in range(16):
        if index != owner:
            cut._tidy(Shard(index, 16), set(chosen()))
    assert all(path.exists() for path in written)
    cut._tidy(Shard(owner, 16), set(chosen()))
    assert [path.exists() for path in written] == [False, True]


def test_a_shard_holds_the_rows_of_its_own_films_alone(films_project, monkeypatch):
    clip, film = (
        tables.read("clips", curate.OUTPUT).to_pylist()[0],
        tables.read("sources", ingest.OUTPUT).to_pylist()[0],
    )
    ids = [f"{number:016x}" for number in range(2000)]
    long = {"pose_frames": list(range(1000, 1060)), "outcome": "ok"}
    tables.write("clips", curate.OUTPUT, [clip | long | {"film_id": one, "clip_id": f"{one}-0-9"} for one in ids])
    tables.write("sources", ingest.OUTPUT, [film | {"film_id": one, "outcome": "ok"} for one in ids])
    found = []

    def note(film, clips, *_):
        found.extend(one["film_id"] for one in (film, *clips))
        return [cutting.Written(one["clip_id"], "not written") for one in clips]

    monkeypatch.setattr(cut, "_film", note)
    whole = memory.peak(lambda: tables.read("clips", curate.OUTPUT).to_pylist())
    shard = Shard(3, 16)
    assert memory.peak(lambda: cut._cut(config.load({}).cut, shard)) < whole / 4
    assert found == [one for one in ids if shard.owns(one) for _ in range(2)]


def test_the_journal_of_a_shard_knows_its_own_clips_from_the_files_of_all(films_project):
    journals = [cut.Journal(cut.FINISHED / "00.jsonl", Shard(index, 3)) for index in range(3)]
    assert [set(one.lines) for one in journals] == [
        {name for name in chosen() if shard_of(name[:16], 3) == index} for index in range(3)
    ]


def test_a_film_that_has_gone_is_a_reason_and_too_many_fail_the_stage(films_project):
    (films_project / project.SECOND).unlink()
    for path in cut.CLIPS.glob("*.mp4"):
        path.unlink()
    with pytest.raises(ValueError, match=r"clips could not be written, more than `cut.max_failed_share` allows"):
        project.run("cut", shards=1)
    failed = [row for row in index().values() if row["outcome"] == "failed"]
    assert {row["title"] for row in failed} == {"The Second"}
    assert all(row["reason"] for row in failed)


def test_a_film_out_of_reach_for_a_reason_that_passes_stops_the_stage(films_project, monkeypatch):
    for path in cut.CLIPS.glob("*.mp4"):
        path.unlink()
    opened = Path.open

    def stale(path, *arguments, **keywords):
        if path.name == project.SECOND:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return opened(path, *arguments, **keywords)

    (films_project / project.SECOND).write_bytes(b"no video")
    monkeypatch.setattr(Path, "open", stale)
    with pytest.raises(OSError, match="Stale file handle"):
        project.run("cut", shards=1)


def test_a_full_disk_stops_the_stage_and_keeps_what_is_finished(films_project, monkeypatch):
    def fill(film, pieces, *others):
        raise OSError(errno.ENOSPC, "No space left on device")

    (gone,) = [name for name, row in chosen().items() if row["title"] == "The Second"]
    (cut.CLIPS / f"{gone}.mp4").unlink()
    monkeypatch.setattr(isolated, "call", lambda work, arguments, *others: fill(*arguments))
    before = times(cut.CLIPS)
    with pytest.raises(OSError, match="No space left"):
        project.run("cut")
    assert times(cut.CLIPS) == before


def test_clips_of_another_tool_enter_here_with_their_captions(films_project, monkeypatch):
    folder = films_project / "other clips"
    folder.mkdir()
    for number, path in enumerate(sorted(cut.CLIPS.glob("*.mp4"))):
        (folder / f"film é_scene-{number}.mp4").write_bytes(path.read_bytes())
    (folder / "broken.mp4").write_bytes(b"nothing")
    columns = ["path", "text", "num_frames", "height", "width", "aspect_ratio", "fps", "resolution"]
    rows = [
        [path.name, 'A "red" brick,\nthen a blue one', 999, 1, 1, 1.0, 60.0, 1] for path in sorted(folder.iterdir())
    ]
    with (folder / "clips.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([columns, *rows, rows[-1]])
    for part in cut.OUTPUT.glob("*.parquet"):
        part.unlink()
    adopted = config.load({"cut": {"adopt": str(folder / "clips.csv"), "max_failed_share": 1.0}})
    project.run("cut", settings=adopted, shards=3)
    found = [row for row in tables.read("cut_index", cut.OUTPUT).to_pylist() if row["kind"] == "clip"]
    good = [row for row in found if row["outcome"] == "ok"]
    assert len(good) == 3
    assert {row["text"] for row in good} == {'A "red" brick,\nthen a blue one'}
    assert len({row["film_id"] for row in good}) == 1
    for row in good:
        assert sum(row["holds"]) == row["frames"] == len(video.read(row["path"]))
    assert sorted((row["outcome"], row["reason"].split(":")[0]) for row in found if row["outcome"] != "ok") == [
        ("dropped", "is listed twice"),
        ("failed", "is not a video file"),
    ]
    assert {row["cadence"] for row in good} == {"ones", "twos"}
    stills = [row for row in tables.read("cut_index", cut.OUTPUT).to_pylist() if row["kind"] == "still"]
    assert len(stills) == 3
    withdrawn.add(good[0]["film_id"], None, [])
    project.run("cut", settings=adopted)
    assert {row["outcome"] for row in tables.read("cut_index", cut.OUTPUT).to_pylist()} == {"failed"}


@pytest.fixture
def adopted(films_project, monkeypatch):
    """A folder of three finished clips, how to adopt those listed, and the names of those that are measured."""
    folder, measured, real = films_project / "clips of others", [], isolated.call
    folder.mkdir()
    for number, path in enumerate(sorted(cut.CLIPS.glob("*.mp4"))[:3]):
        (folder / f"{number}.mp4").write_bytes(path.read_bytes())
    for path in [*cut.STILLS.glob("*"), *cut.OUTPUT.glob("*.parquet")]:
        path.unlink()

    def noted(work, arguments, *others):
        measured.append(Path(arguments[0]).name)
        if measured[-1] in noted.deadly:
            raise KeyboardInterrupt
        return real(work, arguments, *others)

    def run(*names, shards=1):
        measured.clear()
        (folder / "clips.csv").write_text("path,text\n" + "".join(f"{name},A brick.\n" for name in names))
        project.run("cut", settings=config.load({"cut": {"adopt": str(folder / "clips.csv")}}), shards=shards)
        stills = {Path(row["path"]).name for row in index("still").values()}
        assert {path.name for path in cut.STILLS.iterdir()} == stills
        return sorted(measured)

    noted.deadly = run.deadly = set()
    monkeypatch.setattr(isolated, "call", noted)
    return folder, run


def test_adopted_clips_are_measured_once(adopted):
    folder, run = adopted
    run.deadly.add("2.mp4")
    with pytest.raises(KeyboardInterrupt):
        run("0.mp4", "1.mp4", "2.mp4")
    run.deadly.clear()
    assert run("0.mp4", "1.mp4", "2.mp4") == ["2.mp4"]
    before = index()
    assert run("0.mp4", "1.mp4", "2.mp4") == []
    assert index() == before
    (gone,) = [row["clip_id"] for row in before.values() if row["path"].endswith("0.mp4")]
    (cut.STILLS / f"{gone}.jpg").unlink()
    (folder / "1.mp4").write_bytes((folder / "0.mp4").read_bytes() + b"\0\0\0\x08free")
    assert run("0.mp4", "1.mp4", "2.mp4") == ["0.mp4", "1.mp4"]
    assert len(index()) == len(index("still")) == 3


def test_adopted_clips_of_a_camera_held_sideways_are_read_upright(adopted):
    folder, run = adopted
    shown = video.read(folder / "0.mp4")
    synth.turn(folder / "0.mp4", 90)
    run("0.mp4")
    (clip,), (still,) = index("clip").values(), index("still").values()
    assert (clip["width"], clip["height"]) == (shown.shape[1], shown.shape[2])
    assert (still["width"], still["height"]) == (clip["width"], clip["height"])
    upright = np.rot90(shown, -1, axes=(1, 2))
    assert np.array_equal(video.read(clip["path"]), upright)
    assert video.read(clip["path"], [0], 90).shape[1] == 90
    ((place, picture),) = pictures.take(clip["path"], [3], 10_000)
    for found, wanted in (
        (picture, upright[place]),
        (cv2.imread(still["path"])[..., ::-1], upright[len(upright) // 2]),
    ):
        assert abs(found.astype(int) - wanted).mean() < 6


def test_stills_of_clips_that_are_no_longer_adopted_go(adopted):
    _, run = adopted
    run("0.mp4", "1.mp4", "2.mp4", shards=3)
    assert run("1.mp4") == []
    assert len(list(cut.STILLS.iterdir())) == len(index()) == 1


def test_adopted_clips_that_changed_are_measured_once_after_fewer_shards(adopted):
    folder, run = adopted
    run("0.mp4", "1.mp4")
    (cut.ADOPTED / "02.jsonl").write_bytes((cut.ADOPTED / "00.jsonl").read_bytes())
    (folder / "1.mp4").write_bytes((folder / "0.mp4").read_bytes() + b"\0\0\0\x08free")
    assert run("0.mp4", "1.mp4") == ["1.mp4"]
    assert run("0.mp4", "1.mp4") == []


def test_adopted_clips_of_a_file_system_that_is_away_stop_the_stage(adopted):
    folder, run = adopted
    (folder / "mounted").mkdir()
    (folder / "1.mp4").rename(folder / "mounted" / "1.avi")
    run("0.mp4", "mounted/1.avi")
    (folder / "mounted" / "1.avi").unlink()
    with pytest.raises(FileNotFoundError, match="is a file system not mounted here"):
        run("0.mp4", "mounted/1.avi")
    assert len(list(cut.STILLS.iterdir())) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [("file,text\na,b\n", "needs the column path"), ("path,text\n,b\n", "line 2: the path is empty")],
)
def test_a_wrong_table_is_one_sentence(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips.csv").write_text(content)
    with pytest.raises(ValueError, match=words):
        project.run("cut", settings=config.load({"cut": {"adopt": "clips.csv"}}))
    with pytest.raises(FileNotFoundError, match="names the table of finished clips"):
        project.run("cut", settings=config.load({"cut": {"adopt": "other.csv"}}))


def test_threads_and_places_do_not_change_a_clips_key():
    (piece,) = [cutting.Piece("a", *(chosen_frames() for _ in range(2)), 0, 24.0, (0, 0, 8, 8))]
    film, recipe = cutting.Film("a.mp4", 1.0, 0, False), cutting.Recipe(90, 23, "fast", 1)
    same = cut.key(piece, film._replace(path="b.mp4"), recipe._replace(threads=4))
    assert same == cut.key(piece, film, recipe) != cut.key(piece, film, recipe._replace(crf=24))


def chosen_frames():
    import numpy as np

    return np.arange(4)
