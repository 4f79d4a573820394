"""`brickreel watch`: from the shared folder alone, while files are being written."""

import json
import time

import pytest
from click.testing import CliRunner
from rich.console import Console

from brickreel import files
from brickreel.telemetry import live, watch
from brickreel.telemetry.sampler import Stream
from telemetry.logs import attempt, write_steps


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = tmp_path / "results/train/run"
    now = time.time()
    for rank in range(4):
        steps = list(range(1, 101 if rank != 2 else 91))
        write_steps(train / "steps", 0, rank, steps, start_s=now - 100, step_s=1.0, local_s=0.9 if rank else 0.99)
    rows = attempt(0, now - 110, None, ranks=4)
    (train / "attempts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files.write_json(tmp_path / "results/plan/run/plan.json", {"steps": 500})
    return tmp_path


def stream(folder, node="node0", samples=3):
    path = folder / f"logs/telemetry/train/run/1-{node}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Stream(path, {"period_s": "1.0"})
    for second in range(samples):
        made.add(time.time(), second, "", {"tree_cpu_s": 3.0 * second, "allowed_cores": 8, "tree_rss_b": 2**31})
        made.add(time.time(), second, "gpu0", {"sm_active_pct": 80.0, "kernel_time_pct": 99.0, "gpu_temp_c": 61})
        made.flush()
    return made


def shown(state, findings=()):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(watch.picture(state, list(findings)))
    return console.export_text()


def test_step_speed_and_time_left_come_from_the_newest_rows(folder):
    state = live.Live("run").read()
    assert (state.step, state.steps_planned, state.step_s) == (100, 500, 1.0)
    assert state.left_s == pytest.approx(400)
    assert state.clips_per_hour == pytest.approx(4 * 2 * 3600)
    assert state.loss == 1.0


def test_without_a_plan_the_settings_say_how_far_it_goes(folder):
    (folder / "results/plan/run/plan.json").unlink()
    assert live.Live("run").read().left_s is None
    files.write_json(folder / "results/train/run/settings.json", {"run": {"max_steps": 300}})
    assert live.Live("run").read().left_s == pytest.approx(200)


def test_a_rank_that_hangs_behind_or_is_slow_is_named(folder):
    text = shown(live.Live("run").read())
    assert "rank 2 (node0): 10 steps behind" in text
    assert "rank 0 (node0): 10.0 % slower just now" in text


def test_nodes_show_their_last_samples_and_only_new_batches_are_read(folder):
    made = stream(folder)
    looking = live.Live("run")
    (node,) = looking.read().nodes
    assert (node["cores"], node["cores_allowed"], node["memory_gib"]) == (3.0, 8, 2.0)
    assert (node["gpus"], node["sm_active_pct"], node["temp_c"]) == (1, 80.0, 61)
    offset = looking.tails[next(iter(looking.tails))].offset
    made.add(time.time(), 3, "", {"tree_cpu_s": 6.0, "allowed_cores": 8})
    made.flush()
    assert looking.read().nodes[0]["cores"] == 0.0
    assert looking.tails[next(iter(looking.tails))].offset > offset


def test_a_batch_that_is_half_written_waits_for_its_end(folder):
    made = stream(folder)
    path = folder / "logs/telemetry/train/run/1-node0.arrow"
    made.add(time.time(), 3, "", {"tree_cpu_s": 60.0, "allowed_cores": 8})
    size = path.stat().st_size
    made.flush()
    whole = path.read_bytes()
    path.write_bytes(whole[: (size + len(whole)) // 2])
    looking = live.Live("run")
    assert looking.read().nodes[0]["cores"] == 3.0
    path.write_bytes(whole)
    assert looking.read().nodes[0]["cores"] == pytest.approx(54.0)


def test_the_newest_attempts_recording_counts(folder):
    stream(folder)
    path = folder / "logs/telemetry/train/run/2-node0.arrow"
    path.write_bytes(b"")
    assert live.Live("run").read().nodes == []


def test_the_end_of_a_run_is_said_with_its_reason(folder):
    log = folder / "results/train/run/attempts.jsonl"
    row = json.loads(log.read_text().splitlines()[0])
    row |= {"event": "end", "time_s": time.time(), "outcome": "failed", "reason": "[red]out of memory\x1b[31m"}
    files.append_json_line(log, row)
    text = shown(live.Live("run").read())
    assert "failed: [red]out of memory?[31m" in text
    assert live.Live("run").read().left_s is None


def test_a_run_that_takes_no_steps_any_more_is_marked(folder):
    state = live.Live("run").read()
    state.step_at_s = time.time() - 600
    assert "no step for 10 min" in shown(state)


def test_the_held_out_loss_shows_its_latest_reading(folder):
    for step, loss in ((0, 1.0), (50, 0.9)):
        row = {"step": step, "weights": "ema", "bin": 0, "t_low": 0, "t_high": 1000, "loss": loss, "relative": loss}
        files.append_json_line(folder / "results/train/run/gauge.jsonl", row)
    assert "0.9000" in shown(live.Live("run").read())


def test_findings_so_far_are_shown(folder):
    text = shown(live.Live("run").read(), [{"severity": "warning", "claim": "rank 0 is slow"}])
    assert "warning: rank 0 is slow" in text


def test_the_command_prints_once_where_there_is_no_terminal(folder):
    stream(folder)
    done = CliRunner().invoke(watch.command, ["run"])
    assert done.exit_code == 0
    assert "step" in done.output
    assert "node0" in done.output
    assert "findings so far" in done.output


def test_a_run_that_is_not_here_is_a_sentence(folder):
    done = CliRunner().invoke(watch.command, ["other"])
    assert done.exit_code == 1
    assert "run this in the project's folder" in done.output


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "not known"), (44.6, "45 s"), (600, "10 min"), (7500, "2 h 05 min"), (3599, "1 h 00 min")],
)
def test_durations_are_for_people(seconds, said):
    assert watch.duration(seconds) == said


def test_without_a_measure_of_own_work_nobody_is_said_to_keep_pace():
    row = {"rank": 0, "node": "node0", "behind": 0, "slower_pct": None}
    state = live.State("run", ranks=[row, row | {"rank": 1}], attempt={"attempt": 0})
    assert "all 2 ranks are at the same step; slow ranks: not measured with this backend" in shown(state)
