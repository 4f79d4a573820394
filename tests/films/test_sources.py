"""The user's list: names as people write them, and one sentence for what is wrong."""

import csv
import os

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
    for name in ("a.mp4", "b.MOV", "notes.txt", "deep/c.mkv"):
        (tmp_path / "films" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "films" / name).write_bytes(b"x")
    folder, pattern = listed(tmp_path, [["films", "", ""], ["films/*.mp4", "", ""]])
    assert [path.name for path in sources.files_of(folder, tmp_path)] == ["a.mp4", "b.MOV", "c.mkv"]
    assert [path.name for path in sources.files_of(pattern, tmp_path)] == ["a.mp4"]


def test_a_file_with_the_signs_of_a_glob_is_that_file(tmp_path):
    (tmp_path / "part [1].mp4").write_bytes(b"x")
    (one,) = listed(tmp_path, [["part [1].mp4", "", ""]])
    assert [path.name for path in sources.files_of(one, tmp_path)] == ["part [1].mp4"]


def test_a_pattern_without_films_is_an_error(tmp_path):
    (one,) = listed(tmp_path, [["*.avi", "", ""]])
    with pytest.raises(ValueError, match=r"no film in '\*\.avi'"):
        list(sources.files_of(one, tmp_path))


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
    os.utime(tmp_path / "films/a.mp4", ns=(1, 1))
    assert changed()
    (tmp_path / "film.mp4").write_bytes(b"another")
    assert changed()
    (tmp_path / "films/a.mp4").unlink()
    assert changed()


def test_a_list_that_cannot_be_read_has_no_state(tmp_path):
    assert sources.state(tmp_path / "sources.csv") == ""
    (tmp_path / "sources.csv").write_text("nothing\n")
    assert sources.state(tmp_path / "sources.csv") == ""
