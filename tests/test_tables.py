import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from brickreel import tables


def film(**changes):
    row = dict.fromkeys(tables.SCHEMAS["sources"].names)
    return row | {"film_id": "0" * 16, "path": "a.mp4", "outcome": "ok", "reason": ""} | changes


def test_rows_come_back_as_written(tmp_path):
    path = tmp_path / "sources.parquet"
    tables.write("sources", path, [film(title='Zwölf "Steine"\n', fps=23.976)])
    read = tables.read("sources", path).to_pylist()
    assert read == [film(title='Zwölf "Steine"\n', fps=23.976)]


def test_a_folder_of_parts_reads_as_one_table(tmp_path):
    folder = tmp_path / "captions.parquet"
    tables.write("sources", folder / "00.parquet", [film(film_id="a")])
    tables.write("sources", folder / "01.parquet", [])
    tables.write("sources", folder / "02.parquet", [film(film_id="b")])
    assert tables.read("sources", folder)["film_id"].to_pylist() == ["a", "b"]
    assert pq.read_table(folder).num_rows == 2
    assert tables.read("sources", folder, columns=["path"]).column_names == ["path"]


def test_a_part_that_is_being_written_is_not_read(tmp_path):
    folder = tmp_path / "captions.parquet"
    tables.write("sources", folder / "00.parquet", [film(film_id="a")])
    # As a writer leaves it that was killed, or another shard that is still at work.
    (folder / ".03-x1y2z3.parquet").touch()
    assert tables.read("sources", folder)["film_id"].to_pylist() == ["a"]


def test_a_folder_without_parts_is_an_empty_table(tmp_path):
    (tmp_path / "empty.parquet").mkdir()
    assert tables.read("sources", tmp_path / "empty.parquet").num_rows == 0
    assert tables.owned("sources", tmp_path / "empty.parquet", "film_id", bool).num_rows == 0


def test_rows_of_a_shard_are_those_that_pass_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH", 2)
    folder = tmp_path / "sources.parquet"
    films = [film(film_id=name, outcome="ok" if name else "failed") for name in ["a", "b", None, "a", "c", "b", "b"]]
    tables.write("sources", folder / "00.parquet", films)
    tables.write("sources", folder / "01.parquet", [film(film_id="b", path="b.mp4", outcome="failed"), *films])
    found = tables.owned("sources", folder, "film_id", lambda name: name in "ab")
    assert found.to_pylist() == [
        row for row in tables.read("sources", folder).to_pylist() if row["film_id"] in ("a", "b")
    ]
    good = tables.owned("sources", folder, "film_id", lambda name: name == "b", where=pc.field("outcome") == "ok")
    assert good["path"].to_pylist() == ["a.mp4"] * 6
    few = tables.owned("sources", folder, "film_id", lambda name: name == "b", columns=["path", "film_id"])
    assert few.to_pylist() == found.filter(pc.field("film_id") == "b").select(["path", "film_id"]).to_pylist()


def test_rows_that_are_alike_are_counted_and_summed_whatever_batches_they_come_in(tmp_path, monkeypatch):
    path = tmp_path / "sources.parquet"
    names = ["b", "a", None, "b", "b", None, "a"]
    tables.write("sources", path, [film(codec=name, frames=n if name else None) for n, name in enumerate(names)])
    for size in (1, 3, 100):
        monkeypatch.setattr(tables, "BATCH", size)
        found = tables.tally(tables.batches("sources", path, ["codec", "frames"]), ["codec"], ["frames"])
        assert found == [
            {"codec": "b", "count": 3, "frames": 7},
            {"codec": "a", "count": 2, "frames": 7},
            {"codec": None, "count": 2, "frames": None},
        ]
    assert tables.tally([], ["codec"]) == []


def test_a_table_in_batches_is_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH", 3)
    path = tmp_path / "sources.parquet"
    tables.write("sources", path, [film(film_id=f"{number}") for number in range(7)])
    found = list(tables.batches("sources", path, columns=["film_id", "path"]))
    assert [batch.num_rows for batch in found] == [3, 3, 1]
    assert pa.Table.from_batches(found)["film_id"].to_pylist() == [f"{number}" for number in range(7)]
    assert found[0].schema.names == ["film_id", "path"]
    with pytest.raises(FileNotFoundError, match="run the stage that writes it first"):
        next(tables.batches("sources", tmp_path / "none.parquet"))


def test_missing_column_is_refused():
    row = film()
    del row["licence"]
    with pytest.raises(ValueError, match=r"missing \['licence'\]"):
        tables.table("sources", [row])


def test_unknown_column_is_refused():
    with pytest.raises(ValueError, match=r"unknown \['license'\]"):
        tables.table("sources", [film(license="MIT")])


def test_wrong_type_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        tables.table("sources", [film(width="wide")])


def test_unknown_outcome_is_refused():
    with pytest.raises(ValueError, match="unknown outcomes"):
        tables.table("sources", [film(outcome="fine")])
    with pytest.raises(ValueError, match="unknown outcomes"):
        tables.table("sources", [film(outcome=None)])


def test_a_foreign_or_older_table_is_refused(tmp_path):
    path = tmp_path / "sources.parquet"
    pq.write_table(pa.table({"film_id": ["a"]}), path)
    with pytest.raises(ValueError, match="not a table 'sources' of version 1"):
        tables.read("sources", path)
    tables.write("sources", path, [film()])
    old = pq.read_table(path)
    pq.write_table(old.replace_schema_metadata({"brickreel.version": "0"}), path)
    with pytest.raises(ValueError, match="found version 0"):
        tables.read("sources", path)


def test_a_cut_file_is_named(tmp_path):
    path = tmp_path / "sources.parquet"
    tables.write("sources", path, [film()])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        tables.read("sources", path)


def test_an_absent_table_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the stage that writes it"):
        tables.read("sources", tmp_path / "none.parquet")


def test_logs_are_checked_when_written_and_read(tmp_path):
    path = tmp_path / "gauge.jsonl"
    row = dict.fromkeys(tables.SCHEMAS["gauge"].names) | {"step": 3, "loss": 0.5}
    tables.log("gauge", path, row)
    with pytest.raises(ValueError, match="unknown"):
        tables.log("gauge", path, row | {"los": 1})
    with path.open("a") as stream:
        stream.write('{"step": 4')
    assert tables.read_log("gauge", path)["step"].to_pylist() == [3]


@pytest.mark.parametrize("name", tables.SCHEMAS)
def test_every_schema_is_versioned_and_snake_case(name):
    schema = tables.SCHEMAS[name]
    assert schema.metadata[b"brickreel.table"].decode() == name
    assert int(schema.metadata[b"brickreel.version"]) >= 1
    assert all(column == column.lower() and column.isidentifier() for column in schema.names)
