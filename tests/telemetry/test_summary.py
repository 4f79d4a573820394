"""What the report says that it cannot tell."""

import shutil

import pytest

from brickreel import files
from brickreel.telemetry import compare, digest, project, recorder, summary
from telemetry import fleet, summaries


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A finished run on two nodes, both of them recorded."""
    fleet.write_run(tmp_path, "run", nodes=2, gpus=1, hours=0.1, step_s=1.0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assembled():
    tree, _ = summary.assemble(project.one_run("run"), digest.read_all(recorder.FOLDER, []))
    return tree


def gaps(tree):
    return {gap["what"]: gap["why"] for gap in tree["gaps"] if gap["what"].startswith("run: ")}


def test_a_node_that_was_not_recorded_is_a_gap_and_a_finding(folder):
    (folder / "logs/telemetry/train/run/1-node001.arrow").unlink()
    tree = assembled()
    assert "recorded 0 of 0.1 hours" in gaps(tree)["run: node node001"]
    assert "coverage" in {item["rule"] for item in tree["findings"]}


def test_a_run_of_which_nothing_was_recorded_is_one_gap_and_no_finding(folder):
    shutil.rmtree(folder / "logs/telemetry")
    tree = assembled()
    assert {what: why for what, why in gaps(tree).items() if "node" in what or "telemetry" in what} == {
        "run: telemetry": "none was recorded"
    }
    assert "coverage" not in {item["rule"] for item in tree["findings"]}


def test_comparing_runs_says_what_the_backend_cannot_tell_and_nothing_of_recordings_that_it_does_not_read(folder):
    fleet.write_run(folder, "other", nodes=2, gpus=1, hours=0.1, step_s=1.0)
    for path in (folder / "results/train/run/steps").iterdir():
        rows = files.read_json_lines(path)
        path.unlink()
        for row in rows:
            files.append_json_line(path, row | {"local_s": None})
    compare.write_page("run", "other", folder / "out")
    told = files.read_json(folder / "out/comparison.json")["gaps"]
    assert "run: slow ranks: the backend cannot tell a rank's own work from waiting" in told
    assert [gap for gap in told if "recorded" in gap or ": node " in gap] == []


@pytest.mark.parametrize("relative", [0.9, None])
def test_a_held_out_loss_whose_last_reading_has_no_relation_to_step_0_is_a_gap(folder, relative):
    reading = {"attempt": 0, "time_s": 1.0, "weights": "ema", "bin": 0, "t_low": 0, "t_high": 1000, "loss": 1.0}
    reading |= {"low": 0.5, "high": 1.5, "clips": 7}
    for step, value in ((0, 1.0), (100, relative)):
        path = folder / "results/train/run/gauge.jsonl"
        files.append_json_line(path, reading | {"step": step, "relative": value})
    assert ("run: held-out loss relative to step 0" in gaps(assembled())) == (relative is None)


def test_readings_that_asked_other_clips_make_no_curve_with_the_newest(folder):
    reading = {"attempt": 0, "time_s": 1.0, "weights": "ema", "bin": 0, "t_low": 0, "t_high": 1000}
    reading |= {"low": 0.5, "high": 1.5, "clips": 7, "relative": None}
    for step, asked, loss in ((0, "few", 3.0), (50, "few", 2.0), (100, "many", 9.0), (150, "many", 8.0)):
        path = folder / "results/train/run/gauge.jsonl"
        files.append_json_line(path, reading | {"step": step, "questions": asked, "loss": loss})
    (series,) = assembled()["runs"][0]["gauge"]["series"]
    assert (series["step"], series["loss"]) == ([100, 150], [9.0, 8.0])
    assert "run: held-out loss of 2 steps" in gaps(assembled())


def test_a_port_that_two_attempts_recorded_is_one_row_whose_short_end_says_little():
    """Else the quiet minutes of the last attempt are blamed on every node."""
    long = summaries.PORT | {"wall_s": 36000.0, "link_downed": 1.0}
    short = summaries.PORT | {"wall_s": 360.0, "tx_gb_s": 0.1, "rx_gb_s": None, "line_rate_lowest_gb_s": 200.0}
    (port,) = summary.merged([long, short], "port")
    assert port["tx_gb_s"] == pytest.approx((40 * 100 + 0.1) / 101)
    assert (port["rx_gb_s"], port["tx_peak_gb_s"]) == (40, 200)
    assert (port["link_downed"], port["xmit_wait"]) == (1, 10)
    assert (port["line_rate_gb_s"], port["line_rate_lowest_gb_s"]) == (400, 200)
