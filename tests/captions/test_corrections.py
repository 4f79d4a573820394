from pathlib import Path

import pytest

from brickreel.captions import corrections


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_no_file_corrects_nothing():
    assert corrections.read(None) == {}


def test_corrections_are_a_persons_and_an_empty_text_drops(tmp_path):
    text = '\ufeffclip_id,kind,text,note\na,clip,"Two  lines\nof text",x\nb,still,,\nc,,A third.\n'
    found = corrections.read(write(tmp_path / "c.csv", text))
    assert set(found) == {("a", "clip"), ("b", "still"), ("c", "clip")}
    assert found["a", "clip"].answer.caption == "Two lines of text"
    assert found["a", "clip"].source == "person"
    assert (found["b", "still"].outcome, found["b", "still"].reason) == ("dropped", "dropped by a person")


def test_lines_without_anything_in_their_cells_are_skipped(tmp_path):
    text = "clip_id,kind,text\na,clip,A text.\n,,\n , \n,,,,\n\nb,clip,Another.\n"
    assert set(corrections.read(write(tmp_path / "c.csv", text))) == {("a", "clip"), ("b", "clip")}


def test_names_of_the_columns_may_come_again_with_lines_that_are_added(tmp_path):
    saved = 'clip_id,kind,text\na,clip,"A text."\n'
    mine = write(tmp_path / "c.csv", saved + saved.replace("A text", "Another"))
    assert corrections.read(mine)["a", "clip"].answer.caption == "Another."


def test_kind_is_clip_where_there_is_no_such_column(tmp_path):
    assert set(corrections.read(write(tmp_path / "c.csv", "text,clip_id\nA text.,a\n"))) == {("a", "clip")}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,text\na,b\n", "needs the columns clip_id and text"),
        ("clip_id,kind,text\n,clip,b\n", "line 2: needs a clip_id"),
        ("clip_id,kind,text\na,clip,b\nb,film,c\n", "line 3: needs a clip_id, and kind clip or still"),
        (b"clip_id,text\na,\xff\xfe\n", "not a CSV in UTF-8"),
        ("", "needs the columns"),
        ("clip_id,text\na,One, two.\n", "line 2: has more cells"),
        ("clip_id,kind,text\na,clip,A text.\nb,clip\n", "line 3: has fewer cells"),
        ('clip_id,text\na,A text.\nb,"An open quote.\nc,A third.\n', "line 3: .*a quote that is opened"),
        ('clip_id,text\na,"An open quote.\nb,"A third."\n', "line 2: .*a quote that is opened"),
    ],
)
def test_wrong_file_is_one_sentence_with_its_line(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        corrections.read(write(tmp_path / "c.csv", text))


def test_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"no file of corrections absent\.csv"):
        corrections.read(Path("absent.csv"))


def test_space_after_a_comma_is_no_text(tmp_path):
    found = corrections.read(write(tmp_path / "c.csv", 'clip_id, text\na, "One, two."\n'))
    assert found["a", "clip"].answer.caption == "One, two."
