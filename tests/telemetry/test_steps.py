"""Step logs: one file per attempt and rank, possibly cut, missing or strange."""

import json

import numpy as np
import pytest

from brickreel.telemetry import steps
from telemetry.logs import write_steps


def test_rows_become_arrays_of_steps_and_ranks(tmp_path):
    write_steps(tmp_path, 0, 0, [1, 2], local_s=[0.5, 0.6], loss=[3.0, 2.0])
    write_steps(tmp_path, 0, 1, [1, 2], local_s=[0.7, 0.8], loss=[3.0, 2.0])
    found = steps.read(tmp_path, [])[0]
    assert found.number.tolist() == [1, 2]
    assert found.by_rank["local_s"] == pytest.approx(np.array([[0.5, 0.7], [0.6, 0.8]]))
    assert found.by_step["loss"].tolist() == [3.0, 2.0]


def test_a_rank_that_wrote_fewer_steps_leaves_holes(tmp_path):
    write_steps(tmp_path, 2, 0, [5, 6, 7])
    write_steps(tmp_path, 2, 1, [5])
    found = steps.read(tmp_path, [])[2]
    assert np.isnan(found.by_rank["step_s"][:, 1]).tolist() == [False, True, True]
    assert found.by_step["loss"].tolist() == [1.0, 1.0, 1.0]


def test_a_line_that_a_crash_cut_is_left_out(tmp_path):
    path = write_steps(tmp_path, 0, 0, [1, 2, 3])
    path.write_text(path.read_text()[:-60])
    assert steps.read(tmp_path, [])[0].number.tolist() == [1, 2]


def test_a_skipped_step_is_marked_when_any_rank_says_so(tmp_path):
    write_steps(tmp_path, 0, 0, [1, 2], skipped=[False, False])
    write_steps(tmp_path, 0, 1, [1, 2], skipped=[False, True])
    assert steps.read(tmp_path, [])[0].skipped.tolist() == [False, True]


def test_a_loss_that_was_not_finite_is_nan(tmp_path):
    write_steps(tmp_path, 0, 0, [1], loss=[None])
    assert np.isnan(steps.read(tmp_path, [])[0].by_step["loss"][0])


def test_strange_files_are_gaps(tmp_path):
    gaps = []
    (tmp_path / "notes.jsonl").write_text("{}\n")
    (tmp_path / "0-0.jsonl").write_text(json.dumps({"step": "one"}) + "\n")
    assert steps.read(tmp_path, gaps) == {}
    assert {name for name, _ in gaps} == {"notes.jsonl", "0-0.jsonl"}


def test_an_empty_file_has_no_steps(tmp_path):
    (tmp_path / "0-0.jsonl").write_text("")
    assert len(steps.read(tmp_path, [])[0].number) == 0


def test_no_folder_has_no_attempts(tmp_path):
    assert steps.read(tmp_path / "none", []) == {}
