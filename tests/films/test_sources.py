"""The user's list: names as people write them, and one sentence for what is wrong."""

import csv
import os
from pathlib import Path

import pytest

from brickreel.films import sources

NAMES = [
    "with space.mp4", "quo\"te's.mp4", "new\nline.mp4", "line\u2028separator.mp4", "next\x85line.mp4",
    "Zoë \u2013 été 映画.mp4", "comma, semicolon;.mp4", "100%d.mp4",
]  # fmt: skip


def listed(tmp_path, rows, columns=("path", "title", "licence")):
    with (tmp_path / "sources.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return sources.read(tmp_path / "sources.csv")


@pytest.mark.parametrize("name", NAMES)
def test_strange_names_are_found(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    (one,) = listed(tmp_path, [[name, "A", "CC0"]])
    assert list(sources.files_of(one, tmp_path)) == [tmp_path / name]


def test_folders_and_globs_mean_the_films_in_them(tmp_path):
    for name in ("a.mp4", "b.MOV", "notes.txt", "deep/c.mkv", "deep/d.gif"):
        (tmp_path / "films" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "films" / name).write_bytes(b"x")
    folder, pattern = listed(tmp_path, [["films", "", ""], ["films/*.mp4", "", ""]])
    assert [path.name for path in sources.files_of(folder, tmp_path)] == ["a.mp4", "b.MOV", "c.mkv", "d.gif"]
    assert [path.name for path in sources.files_of(pattern, tmp_path)] == ["a.mp4"]


def test_a_file_with_the_signs_of_a_glob_is_that_file(tmp_path):
    (tmp_path / "part [1].mp4").write_bytes(b"x")
    (one,) = listed(tmp_path, [["part [1].mp4", "", ""]])
    assert [path.name for path in sources.files_of(one, tmp_path)] == ["part [1].mp4"]


def test_a_pattern_without_films_is_an_error(tmp_path):
    (one,) = listed(tmp_path, [["*.avi", "", ""]])
    with pytest.raises(ValueError, match=r"no film in '\*\.avi'"):
        list(sources.files_of(one, tmp_path))


@pytest.fixture
def beside_results(tmp_path, monkeypatch):
    """A project's folder with a film of the user's, and what stages wrote: in place, or on another file system."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "deep/results/b.mp4", "results/ingest/films/c.mp4", "results/cut/clips/d.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("base", ["", "."])
@pytest.mark.parametrize("path", [".", "./", "**/*.mp4", "{}", "{}/**"])
def test_what_stages_write_is_no_film(beside_results, path, base, linked):
    if linked:
        (beside_results / "results").rename(beside_results / "scratch")
        (beside_results / "results").symlink_to("scratch")
    one = sources.Source(2, path.format(beside_results), "", {})
    found = {path.name for path in sources.files_of(one, beside_results / base)}
    assert found == {"a.mp4", "b.mp4"}
    assert {path.name for path in sources.files_of(one, Path())} == found


@pytest.mark.parametrize("path", ["results/cut", "results/cut/clips", "results/cut/*/*.mp4", "results/cut/clips/d.mp4"])
def test_a_path_that_points_among_results_means_what_is_there(beside_results, path):
    (one,) = listed(beside_results, [[path, "", ""]])
    assert [path.name for path in sources.files_of(one, beside_results)] == ["d.mp4"]


@pytest.mark.parametrize(
    ("path", "film"),
    [
        ("mnt/**/*.mp4", "mnt/a.mp4"),
        ("mnt/**/*.mp4", "mnt/x/y/a.mp4"),
        ("mnt/**", "mnt/x/a.mp4"),
        ("**/*.mp4", "a.mp4"),
        ("./mnt//*.mp4", "mnt/a.mp4"),
        ("../mnt/*.mp4", "../mnt/a.mp4"),
        ("mnt", "mnt/x/a.mp4"),
        ("mnt/a [1].mp4", "mnt/a [1].mp4"),
    ],
)
@pytest.mark.parametrize("base", [Path(), Path("my [1]"), Path("/my*/films")])
def test_a_path_means_a_film_that_is_not_there_as_if_it_were(path, film, base):
    one, other = sources.Source(2, path, "", {}), sources.Source(2, "others/*.mp4", "", {})
    assert sources.means(one, str(base / film), base)
    assert not sources.means(other, str(base / film), base)


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        ([["a.mp4"]], ("film",), "must have the columns path or url"),
        ([["a.mp4", "x"]], ("path", "director"), "it has 'director'"),
        ([["", ""]], ("path", "url"), "line 2: give either a path or a url"),
        ([["a.mp4", "http://x/y"]], ("path", "url"), "line 2: give either a path or a url"),
        ([["ftp://x/y"]], ("url",), "not an http or https address"),
        ([["a.mp4", "t", "l", "too much"]], ("path", "title", "licence"), "another number of columns"),
    ],
)
def test_a_wrong_list_is_one_sentence_with_the_line(tmp_path, rows, columns, words):
    with pytest.raises(ValueError, match=words):
        listed(tmp_path, rows, columns)


def test_no_list_and_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match="list the films there"):
        sources.read(tmp_path / "sources.csv")
    (tmp_path / "sources.csv").write_bytes(b"path\n\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        sources.read(tmp_path / "sources.csv")


def test_a_path_that_no_file_can_have_is_named(tmp_path):
    with pytest.raises(ValueError, match="line 2: the path holds a zero byte"):
        listed(tmp_path, [["a\0.mp4", "", ""]])


def test_the_state_of_the_films_tells_of_those_that_come_go_or_are_replaced(tmp_path):
    (tmp_path / "films").mkdir()
    listed(tmp_path, [["films", "", ""], ["other/*.mp4", "", ""], ["film.mp4", "", ""]])
    seen = [sources.state(tmp_path / "sources.csv")]

    def changed():
        seen.append(sources.state(tmp_path / "sources.csv"))
        return seen[-1] not in seen[:-1]

    assert not changed()
    for name in ("films/a.mp4", "other/b.mp4", "film.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"one")
        assert changed()
    (tmp_path / "films/notes.txt").write_bytes(b"no film")
    assert not changed()
    # So is every film of a project that was copied.
    os.utime(tmp_path / "films/a.mp4", ns=(1, 1))
    assert not changed()
    (tmp_path / "film.mp4").write_bytes(b"another")
    assert changed()
    (tmp_path / "films/a.mp4").unlink()
    assert changed()


def test_a_list_that_cannot_be_read_has_no_state(tmp_path):
    assert sources.state(tmp_path / "sources.csv") == ""
    (tmp_path / "sources.csv").write_text("nothing\n")
    assert sources.state(tmp_path / "sources.csv") == ""
