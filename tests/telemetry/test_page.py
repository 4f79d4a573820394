"""The page: every number is the summary's, no word of a file becomes markup, and nothing is fetched."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest

from brickreel import config
from brickreel.stages import report
from brickreel.telemetry.render import scores, svg
from brickreel.telemetry.render.numbers import Numbers, plain
from telemetry import fleet, rich_project

SCHEMA = Path(__file__).parents[2] / "docs/summary.schema.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("project")
    configuration = rich_project.write(place)
    rich_project.restarted(place, "restarted")
    (place / "slurm").mkdir()
    (place / "slurm/site.env").write_text(
        "BRICKREEL_USD_PER_GPU_HOUR=2.5\nBRICKREEL_USD_PER_KWH=0.2\nBRICKREEL_KG_CO2_PER_KWH=0.4\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        report.run(config.load(str(configuration)))
    return place


@pytest.fixture(scope="module")
def summary(folder):
    return json.loads((folder / "results/report/summary.json").read_text())


class Page(HTMLParser):
    """Texts by their data-key, element names, links, ids."""

    def __init__(self, text):
        super().__init__()
        self.keyed, self.texts, self.names, self.links, self.ids, self.attributes = [], [], [], [], [], []
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.names.append(tag)
        self.attributes += values
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[name] for name in ("src", "href", "poster") if name in values]
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append((tag, values, []))

    def handle_data(self, data):
        for _, _, parts in self.open:
            parts.append(data)
        if not self.open or self.open[-1][0] not in ("style", "script"):
            self.texts.append(data)

    def handle_endtag(self, tag):
        while self.open:
            name, values, parts = self.open.pop()
            if "data-key" in values:
                scale = float(values.get("data-scale", 1))
                self.keyed.append((values["data-key"], "".join(parts), values.get("class"), scale))
            if name == tag:
                break


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "results/report/index.html").read_text())


def test_every_number_on_the_page_is_the_summarys(page, summary):
    numbers = Numbers(summary)
    assert len(page.keyed) > 200
    for key, shown, kind, scale in page.keyed:
        value = numbers.value(key)
        if kind == "missing-value":
            assert value is None, key
        else:
            digits = len(shown.partition(".")[2])
            assert float(shown.replace(",", "")) == pytest.approx(value * scale, abs=0.51 * 10**-digits), key


def test_the_summary_follows_its_published_schema(summary):
    jsonschema.validate(summary, json.loads(SCHEMA.read_text()))


def test_no_number_stands_in_a_table_without_its_key(folder):
    text = (folder / "results/report/index.html").read_text()
    cells = re.findall(r'<td class="r">([^<]*\d[^<]*)</td>', text)
    assert cells == []


def test_hostile_words_stay_words(page, folder):
    text = (folder / "results/report/index.html").read_text()
    assert page.names.count("script") == 1, "only the page's own"
    assert "onerror" not in page.attributes
    assert "<img src=x" not in text
    assert text.count(rich_project.EVIL) == 0
    assert sum(rich_project.EVIL in part for part in page.texts) >= 8, "and they are shown"


def test_a_strange_address_is_not_a_link(page):
    assert not [link for link in page.links if link.startswith("javascript")]


def test_nothing_is_fetched_from_elsewhere(page, folder):
    text = (folder / "results/report/index.html").read_text()
    assert [link for link in page.links if "://" in link or link.startswith("//")] == []
    assert "@import" not in text
    assert "url(" not in text
    for link in page.links:
        if not link.startswith(("#", "data:")):
            assert (folder / "results/report" / link).is_file(), link


def test_every_link_within_the_page_arrives(page):
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids, link
    assert len(page.ids) == len(set(page.ids))


def test_videos_stand_beside_the_page_with_posters(folder):
    place = folder / "results/report/media/big/step-00000100"
    assert sorted(path.name for path in place.iterdir()) == ["one-0.jpg", "one-0.mp4"]


def test_the_sections_of_the_page_are_there(page):
    for name in ("findings", "time", "attempts", "samples", "learning", "metrics", "ranks", "gpus", "network"):
        assert name == "findings" or f"{name}-big" in page.ids, name
    assert {"hosts-big", "preflight-big", "plan-big", "energy-big", "films", "machines", "gaps"} <= set(page.ids)


def test_money_energy_and_carbon_follow_the_sites_prices(summary):
    energy = summary["runs"][0]["energy"]
    hours, joules = 4 * 0.1, 4 * 600 * 360
    assert energy["kwh"] == pytest.approx(joules / 3.6e6)
    assert energy["usd_gpu"] == pytest.approx(2.5 * hours)
    assert energy["usd_energy"] == pytest.approx(0.2 * joules / 3.6e6)
    assert energy["co2_kg"] == pytest.approx(0.4 * joules / 3.6e6)


def test_the_slow_rank_is_found_and_its_gpu_accused(summary):
    finding = next(item for item in summary["findings"] if item["rule"] == "straggler")
    assert "rank 3 (node001, process 1 there)" in finding["claim"]
    assert "Gpu1 of its node" in finding["claim"]
    assert "1,395 MHz" in finding["claim"]


def test_a_restart_from_an_older_checkpoint_costs_what_was_done_twice(summary):
    run = next(run for run in summary["runs"] if run["run"] == "restarted")
    # 20 steps of 1 s redone; attempt 0 from 990 to 1040 (its last step), attempt 1 from 1095 to 1145.
    assert run["time_pct"]["redone"] == pytest.approx(100 * 20 / 100)
    assert run["time_pct"]["goodput"] == pytest.approx(60, abs=1e-6)
    assert sum(run["time_pct"].values()) == pytest.approx(100)
    assert run["steps_kept"] == 60
    assert run["steps_computed"] == 80


def test_captions_are_compared_with_what_was_expected(summary):
    captions = summary["dataset"]["captions"]
    assert (captions["usd"], captions["usd_forecast"]) == (1.5, 1.25)


def test_what_was_planned_stands_beside_what_happened(summary):
    rows = {row["what"]: row for row in summary["runs"][0]["forecast"]}
    assert rows["gpu_hours"]["planned"] == 0.5
    assert rows["gpu_hours"]["actual"] == pytest.approx(0.4)
    assert "usd" not in rows, "what was not forecast is not compared"


def test_the_page_is_complete_without_anything(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    report.run(config.load(str(fleet.configuration(tmp_path, "one"))))
    text = (tmp_path / "results/report/index.html").read_text()
    jsonschema.validate(
        json.loads((tmp_path / "results/report/summary.json").read_text()), json.loads(SCHEMA.read_text())
    )
    assert "no training time was recorded yet" in text
    assert "not started" in text
    assert len(json.loads((tmp_path / "results/report/summary.json").read_text())["gaps"]) >= 8
    assert "Findings: none" in capsys.readouterr().out


def test_the_text_fits_a_terminal_and_steers_nothing(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = (folder / "results/report/index.html").stat().st_mtime_ns
    report.run(config.load("config.json"), text_only=True)
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines()) <= 80
    assert "goodput" in said
    assert "WARNING" in said
    assert re.search(r"^  node001 +12.0 of 104 cores, 90.0 GiB; 2 GPUs, SM \d+ %$", said, re.M), "whole, not cut at 80"
    assert (folder / "results/report/index.html").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (1234567, None, "1,234,567"),
        (0.000123456, None, "0.000123"),
        (98.76, None, "98.8"),
        (123.9, None, "124"),
        (0, None, "0"),
        (True, None, "yes"),
        (5, 2, "5.00"),
        (-1.25, 1, "-1.2"),
        (-0.001, 1, "0.0"),
    ],
)
def test_numbers_are_written_for_people(value, digits, shown):
    assert plain(value, digits) == shown


def test_attributes_and_texts_of_charts_are_escaped():
    made = svg.tag("text", "<b>&", class_='a"b', x=1.25, y=None)
    assert str(made) == '<text class="a&#34;b" x="1.25">&lt;b&gt;&amp;</text>'


def test_a_line_has_a_gap_where_nothing_was_measured():
    chart = svg.line_chart("t", "d", [0, 1, 2, 3], [svg.Line("a", [1.0, None, 2.0, 3.0])], "x", "y")
    path = re.search(r'<path d="([^"]*)" stroke', str(chart))
    assert path is not None
    assert path[1].count("M") == 2


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 97.3), (-3, 4), (1e-9, 3e-9), (0.99, 1.01), (5, 123456)])
def test_ticks_are_round_and_cover_the_range(low, high):
    ticks = svg.nice_ticks(low, high)
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12
    assert 3 <= len(ticks) <= 8


def test_a_few_hours_are_told_in_minutes():
    numbers = Numbers({"short": 0.0351, "long": 12.5, "none": None, "zero": 0.0})
    assert str(numbers.hours("short", "rank-hours")) == (
        '<span class="n" data-key="short" data-scale="60">2.11</span><span class="unit">\u202frank-minutes</span>'
    )
    assert "12.5</span>" in numbers.hours("long", "GPU-hours")
    assert "GPU-hours" in numbers.hours("zero", "GPU-hours")
    assert "not measured" in numbers.hours("none", "GPU-hours")


def told(folder, monkeypatch, capsys, *runs):
    """The page of a project as plain text, the terminal's text and the summary; all numbers are the summary's."""
    monkeypatch.chdir(folder)
    report.run(config.load(str(fleet.configuration(folder, *runs))))
    tree = json.loads((folder / "results/report/summary.json").read_text())
    jsonschema.validate(tree, json.loads(SCHEMA.read_text()))
    shown = Page((folder / "results/report/index.html").read_text())
    test_every_number_on_the_page_is_the_summarys(shown, tree)
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines()) <= 80
    return re.sub(r"\s+", " ", "".join(shown.texts)), said, tree


@pytest.fixture
def project(tmp_path):
    """Four GPUs of two nodes for half an hour."""
    fleet.write_run(tmp_path, nodes=2, gpus=2, hours=0.5, step_s=5.0, finished=True)
    return tmp_path


def rewrite(folder, pattern, replacement):
    for path in folder.glob("*.jsonl"):
        path.write_text(re.sub(pattern, replacement, path.read_text()))


def test_what_a_backend_cannot_tell_is_said_and_never_zero(project, monkeypatch, capsys):
    rewrite(project / "results/train/big/steps", r'"(comm_s|local_s)": [^,]*', r'"\1": null')
    page, said, tree = told(project, monkeypatch, capsys, "big")
    run = tree["runs"][0]
    assert run["time_pct"]["comm_exposed"] is run["attempts"][0]["seconds"]["comm_exposed"] is None
    assert sum(share for share in run["time_pct"].values() if share is not None) == pytest.approx(100)
    assert run["slow_ranks_missing"] == "not measured with this backend"
    assert "trained the model, communication that was not measured included" in page
    assert "exposed communication included: it was not measured" in page
    assert "Slow ranksnot measured with this backend" in page.replace("ranks ", "ranks")
    assert "a rank's own work cannot be told from waiting for its peers" in page
    assert "Waiting in collectives" not in page
    assert re.search(r"lost: exposed communication +not measured \(within goodput\)", said)
    assert re.search(r"slow ranks +not measured with this backend", said)
    gaps = {gap["what"] for gap in tree["gaps"]}
    assert {"big: exposed communication", "big: slow ranks"} <= gaps


def test_communication_alone_may_be_unknown(project, monkeypatch, capsys):
    rewrite(project / "results/train/big/steps", r'"comm_s": [^,]*', '"comm_s": null')
    page, _, tree = told(project, monkeypatch, capsys, "big")
    assert tree["runs"][0]["slow_ranks_missing"] is None
    assert "Slow ranksnone found" in page.replace("ranks ", "ranks")


def test_a_node_without_a_recording_is_a_gap_and_energy_says_of_what_it_is(project, monkeypatch, capsys):
    monkeypatch.setenv("BRICKREEL_KG_CO2_PER_KWH", "0.4")
    (project / "logs/telemetry/train/big/1-node001.parquet").unlink()
    page, said, tree = told(project, monkeypatch, capsys, "big")
    run = tree["runs"][0]
    assert run["energy"]["recorded_pct"] == pytest.approx(50)
    assert run["energy"]["joule_per_clip"] is None
    assert "of 50.0 % of the GPU time" in page
    assert "kWh of 50.0 % of the GPU time" in said
    assert re.search(r"^  node001 +not recorded$", said, re.M)
    assert [host["recorded_hours"] for host in run["hosts"]] == [0.5, 0]
    (gap,) = [gap for gap in tree["gaps"] if gap["what"] == "big: node node001"]
    assert gap["why"].startswith("recorded 0 of 0.5 hours")
    assert [item["rule"] for item in tree["findings"]] == ["coverage"]


def test_a_failed_run_lost_what_no_checkpoint_holds(project, monkeypatch, capsys):
    log = project / "results/train/big/attempts.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows[1] |= {"outcome": "failed", "reason": "CUDA error"}
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (project / "results/train/big/checkpoints/step-00000100").mkdir(parents=True)
    page, _, tree = told(project, monkeypatch, capsys, "big")
    run = tree["runs"][0]
    assert (run["steps_kept"], run["steps_unsaved"]) == (100, 0)
    assert run["attempts"][0]["steps_redone"] == run["steps_computed"] - 100
    assert run["time_pct"]["goodput"] < 30
    assert run["curve"]["step"][-1] == run["last_step"], "what was learned and lost is still shown"
    assert run["mfu_pct"] > 30
    assert "the largest other part went into redone or lost steps" in page


def test_a_run_that_may_still_live_says_what_it_would_lose(tmp_path, monkeypatch, capsys):
    fleet.write_run(tmp_path, nodes=1, gpus=2, hours=0.1, step_s=5.0)
    log = tmp_path / "results/train/big/attempts.jsonl"
    log.write_text(log.read_text().splitlines()[0] + "\n")
    page, said, tree = told(tmp_path, monkeypatch, capsys, "big")
    run = tree["runs"][0]
    assert run["steps_unsaved"] == run["steps_kept"] == run["steps_computed"] > 0
    assert f"{run['steps_unsaved']} steps not yet in a checkpoint" in page
    assert f"{run['steps_unsaved']} steps not yet in a checkpoint" in said


def test_a_slow_node_is_told_as_one(tmp_path, monkeypatch, capsys):
    fleet.write_run(tmp_path, nodes=4, gpus=2, hours=0.5, step_s=5.0, finished=True)
    steps = tmp_path / "results/train/big/steps"
    for rank in (2, 3):
        path = steps / f"0-{rank}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row | {"local_s": 1.2 * row["local_s"]}) + "\n" for row in rows))
    page, said, tree = told(tmp_path, monkeypatch, capsys, "big")
    (item,) = [item for item in tree["findings"] if item["rule"] == "straggler"]
    assert "2 of the 2 ranks of node001 are slow" in item["claim"]
    assert "; the slow node node001 cost" in page
    assert "Slow nodenode001" in page.replace("node ", "node")
    assert re.search(r"Cost \S+ GPU-(hours|minutes)", said)


def test_hours_lost_by_a_run_with_gpus_are_gpu_hours_also_beside_one_that_never_began(tmp_path, monkeypatch, capsys):
    fleet.write_run(tmp_path, nodes=2, gpus=2, hours=0.5, step_s=5.0, slow_rank=1, slower=1.1, finished=True)
    page, _, _ = told(tmp_path, monkeypatch, capsys, "first", "big")
    assert re.search(r"Cost: \S+ GPU-minutes", page.replace("\u202f", " "))
    assert "rank-" not in page[page.index("Findings") : page.index("Rule: straggler")]


def test_the_report_for_the_terminal_finishes_no_recording(tmp_path, monkeypatch):
    fleet.write_run(tmp_path, nodes=1, gpus=1, hours=0.05, step_s=5.0)
    path = tmp_path / "logs/telemetry/train/big/1-node000.arrow"
    os.utime(path, (0, 0))
    monkeypatch.chdir(tmp_path)
    settings = config.load(str(fleet.configuration(tmp_path, "big")))
    report.run(settings, text_only=True)
    assert path.exists()
    report.run(settings)
    assert not path.exists()


def test_why_the_held_out_clips_cannot_be_compared_stands_beside_their_value():
    score = {"name": "frechet_distance", "conditional": True, "length": 1, "value": 7.0, "unit": "", "better": "lower"}
    run = {
        "scores": [score | {"step": 10, "weights": "ema", "reason": None}],
        "ceiling": [score | {"step": None, "weights": "held-out", "reason": "of 8 clips, the samples' of 32"}],
    }
    (row,) = scores.tables(run)[0].rows
    assert row.reason == "held-out clips: of 8 clips, the samples' of 32"
