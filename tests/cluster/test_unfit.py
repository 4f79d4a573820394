import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from brickreel.cluster import unfit
from brickreel.cluster.submission import Resources

FOLDER = Path("logs/preflight/demo")
ASKED = Resources(nodes=2, slurm_partition="gpu", gres="gpu:h100:8")


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("brickreel.cluster.unfit.logger.propagate", True)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    FOLDER.mkdir(parents=True)
    required(True)
    partition("gpu1", "gpu2", "gpu3", "gpu4", "gpu5")
    return tmp_path


def required(value):
    Path("config.yaml").write_text(f"runs: {{demo: {{}}}}\npreflight: {{required: {str(value).lower()}}}\n")


def partition(*nodes):
    """A sinfo that knows these nodes, and one more without GPUs."""
    lines = "".join(f"echo '{node} idle gpu:h100:8 gpu*'\n" for node in nodes)
    Path("sinfo").write_text(f"#!/bin/sh\n{lines}echo 'old1 idle gpu:a100:8 gpu*'\necho 'cpu1 idle (null) gpu*'\n")
    Path("sinfo").chmod(0o755)


def reading(name, nodes, faulty, age_s=60.0):
    checks = [
        {"name": "NVLinks", "node": node, "result": "fail", "reason": f"{node} has few NVLinks"} for node in faulty
    ]
    path = FOLDER / name
    found = {"time_s": time.time() - age_s, "verdict": "fail", "nodes": nodes, "exclude": faulty, "checks": checks}
    path.write_text(json.dumps(found))


def left_out(stage="preflight", resources=ASKED):
    return unfit.leave_out(stage, "demo", ["config.yaml"], resources)


@pytest.mark.parametrize("stage", ["preflight", "train"])
@pytest.mark.parametrize("name", ["health.json", "attempt-7-0.json"])
def test_a_node_in_which_a_check_found_a_fault_is_left_out_and_it_is_told_why(project, caplog, stage, name):
    caplog.set_level("INFO")
    reading(name, ["gpu1", "gpu2"], ["gpu2"])
    assert left_out(stage) == ("gpu2",)
    assert unfit.chosen(stage, "demo", ["config.yaml"], ASKED) == ("gpu2",)
    assert "gpu2 is left out: gpu2 has few NVLinks" in caplog.text
    told = caplog.text.partition("delete it from `exclude` in ")[2].split()[0]
    health = json.loads(Path(told).read_text())
    Path(told).write_text(json.dumps(health | {"exclude": []}))
    assert left_out(stage) == ()


def test_a_node_stays_left_out_when_the_next_preflight_ran_elsewhere(project):
    reading("health.json", ["gpu1", "gpu2"], ["gpu2"], age_s=600)
    assert left_out() == ("gpu2",)
    reading("health.json", ["gpu1", "gpu3"], ["gpu3"], age_s=300)
    assert left_out() == ("gpu2", "gpu3")
    reading("health.json", ["gpu1", "gpu4"], [])
    assert left_out("train") == ("gpu2", "gpu3")
    assert (FOLDER / "health.json").is_file()


def test_what_a_later_check_found_in_order_is_used_again(project):
    reading("attempt-7-0.json", ["gpu1", "gpu2"], ["gpu2"], age_s=600)
    reading("attempt-8-0.json", ["gpu2", "gpu3"], ["gpu3"])
    assert left_out("train") == ("gpu3",)


def test_what_is_wrong_on_every_node_is_not_a_nodes_fault(project):
    reading("health.json", ["gpu1", "gpu2"], ["gpu1", "gpu2"])
    assert left_out() == ()


def test_a_node_is_tried_again_after_a_day(project):
    reading("health.json", ["gpu1", "gpu2"], ["gpu2"], age_s=unfit.RECENT_S + 60)
    assert left_out() == ()


def test_a_damaged_reading_says_nothing(project):
    (FOLDER / "health.json").write_text("{")
    (FOLDER / "attempt-1-0.json").write_text("[]")
    assert left_out() == ()


def test_never_so_many_are_left_out_that_the_job_could_not_run(project, caplog):
    caplog.set_level("INFO")
    reading("attempt-7-0.json", ["gpu1", "gpu2"], ["gpu2"], age_s=600)
    reading("attempt-8-0.json", ["gpu1", "gpu3"], ["gpu3"])
    partition("gpu1", "gpu2", "gpu3")
    assert left_out() == ("gpu3",)  # what was found last
    assert "gpu2 is not left out, since the job may need it" in caplog.text
    partition("gpu1", "gpu2")
    assert left_out() == ("gpu3",)  # it is down, or gone
    partition("gpu2", "gpu3")
    assert left_out() == ()


def test_a_node_that_was_taken_back_by_editing_an_older_reading_does_not_bring_others_back(project):
    reading("attempt-7-0.json", ["gpu1", "gpu2", "gpu3"], ["gpu2", "gpu3"], age_s=600)
    reading("attempt-8-0.json", ["gpu1", "gpu3"], ["gpu1"])
    assert left_out("train") == ("gpu1", "gpu2")
    older = FOLDER / "attempt-7-0.json"
    older.write_text(json.dumps(json.loads(older.read_text()) | {"exclude": ["gpu3"]}))
    assert left_out("train") == ("gpu1",)


@pytest.mark.parametrize(
    "options", ["--reservation=mine", "--nodelist=gpu[1-4]", "--constraint=ib", "--exclude=gpu3,gpu4,gpu5"]
)
def test_where_options_choose_among_nodes_the_job_keeps_those_that_it_may_need(project, options):
    Path("scontrol").write_text("#!/bin/sh\necho gpu3\necho gpu4\necho gpu5\n")
    Path("scontrol").chmod(0o755)
    reading("health.json", ["gpu1", "gpu2"], ["gpu2"])
    assert left_out(resources=replace(ASKED, slurm_extra=options)) == ()
    assert left_out(resources=replace(ASKED, gres="", slurm_extra="--gpus-per-node=h100:8")) == ("gpu2",)


def test_without_a_partition_the_default_one_is_counted(project, monkeypatch):
    monkeypatch.delenv("SBATCH_PARTITION", raising=False)
    reading("attempt-7-0.json", ["gpu1", "gpu2", "gpu3"], ["gpu2", "gpu3"])
    assert left_out(resources=replace(ASKED, nodes=4, slurm_partition="")) == ("gpu3",)


def test_where_slurm_does_not_say_how_many_nodes_there_are_all_faulty_ones_are_left_out(project):
    reading("attempt-7-0.json", ["gpu1", "gpu2", "gpu3"], ["gpu2", "gpu3"])
    Path("sinfo").write_text("#!/bin/sh\nexit 1\n")
    assert left_out() == ("gpu2", "gpu3")


def test_where_checks_are_not_required_nothing_is_left_out(project):
    reading("health.json", ["gpu1", "gpu2"], ["gpu2"])
    required(False)
    assert left_out("train") == left_out("preflight") == ()
    # Snakemake's settings of train say nothing about preflight, whose result does.
    required(True)
    told = Path("results/preflight/demo/health.json")
    told.parent.mkdir(parents=True)
    told.write_text(json.dumps({"required": False}))
    assert left_out("train") == ()


def test_other_stages_take_any_node(project):
    reading("health.json", ["gpu1", "gpu2"], ["gpu2"])
    assert left_out("caption") == ()
