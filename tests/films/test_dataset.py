"""The table and the card of the folder of clips, from many parts in bounded memory."""

import csv

import pytest

from brickreel import tables
from brickreel.films import dataset
from films import memory


def row(number, **changes):
    blank = dict.fromkeys(tables.SCHEMAS["cut_index"].names)
    return blank | {
        "clip_id": f"clip{number}",
        "film_id": f"film{number // 3:04d}",
        "kind": "clip",
        "path": f"results/cut/clips/clip{number}.mp4",
        "frames": 120,
        "holds": [2] * 60,
        "in_poses": False,
        "fps": 24.0,
        "pose_rate": 12.0,
        "cadence": "twos",
        "split": "train" if number % 4 else "heldout",
        "title": f'Film "{number // 3}"',
        "licence": "CC0" if number % 2 else None,
        "outcome": "ok",
        "reason": "",
        **changes,
    }


@pytest.fixture
def index(tmp_path):
    return tmp_path / "index.parquet"


def described(folder, index):
    dataset.describe(folder, index)
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream)), (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("batch", [2, 1000])
def test_table_and_card_count_every_part_whatever_the_size_of_a_batch(tmp_path, index, monkeypatch, batch):
    monkeypatch.setattr(tables, "BATCH", batch)
    rows = [row(number) for number in range(10)]
    unused = [row(10, kind="still", holds=None), row(11, outcome="failed", reason="x"), row(12, outcome="dropped")]
    tables.write("cut_index", index / "00.parquet", rows[:7] + unused)
    tables.write("cut_index", index / "01.parquet", rows[7:])
    listed, card = described(tmp_path / "clips", index)
    assert [line["file_name"] for line in listed] == [f"clip{number}.mp4" for number in range(10)]
    assert (listed[3]["title"], listed[3]["licence"], listed[3]["channel"]) == ('Film "1"', "CC0", "")
    assert (listed[0]["frames"], listed[0]["fps"], listed[0]["licence"]) == ("120", "24.0", "")
    assert "10 clips of 4 films, 0.8 minutes, 600 poses" in card
    assert "| train | 7 |" in card
    assert "| unlicensed | 5 |" in card
    assert "with the film's holds" in card
    assert [line.split(" | ")[-1] for line in card.splitlines() if "film000" in line] == ["3 |", "3 |", "3 |", "1 |"]


def test_in_poses_a_clips_length_follows_from_its_pose_rate(tmp_path, index):
    tables.write("cut_index", index / "00.parquet", [row(n, in_poses=True, frames=60, pose_rate=6.0) for n in range(6)])
    _, card = described(tmp_path / "clips", index)
    assert "6 clips of 2 films, 1.0 minutes, 360 poses" in card
    assert "one frame per pose" in card


def test_without_clips_there_is_an_empty_table(tmp_path, index):
    tables.write("cut_index", index / "00.parquet", [])
    listed, card = described(tmp_path / "clips", index)
    assert listed == []
    assert "0 clips of 0 films" in card


def test_a_part_that_vanishes_meanwhile_is_passed_over_and_a_broken_one_is_not(tmp_path, index):
    for number in (0, 2):
        tables.write("cut_index", index / f"{number:02d}.parquet", [row(number)])
    # Found in the folder, and not there when it is opened.
    (index / "01.parquet").symlink_to("removed")
    listed, card = described(tmp_path / "clips", index)
    assert [line["clip_id"] for line in listed] == ["clip0", "clip2"]
    assert "2 clips of 1 films" in card
    (index / "03.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"03\.parquet is not a readable Parquet file"):
        dataset.describe(tmp_path / "clips", index)


def test_the_card_lists_the_first_films_and_counts_all(tmp_path, index, monkeypatch):
    monkeypatch.setattr(dataset, "LISTED", 2)
    tables.write("cut_index", index / "00.parquet", [row(number) for number in range(12)])
    listed, card = described(tmp_path / "clips", index)
    assert len(listed) == 12
    assert "The first 2 of 4 films" in card
    assert "film0002" not in card


def test_the_manifest_is_never_held_as_a_whole(tmp_path, index, monkeypatch):
    monkeypatch.setattr(tables, "BATCH", 100)
    tables.write("cut_index", index / "00.parquet", [row(number) for number in range(3000)])
    described(tmp_path / "clips", index)  # what is loaded once
    whole = memory.peak(lambda: tables.read("cut_index", index).to_pylist())
    assert memory.peak(lambda: dataset.describe(tmp_path / "clips", index)) < whole / 4
