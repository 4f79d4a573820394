"""The graph as Snakemake sees it: dry runs over outputs that are only touched, so that no stage runs here."""

import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

import forked
from brickreel import files

ROOT = Path(__file__).resolve().parent.parent.parent
SETTINGS = {
    "project": {"name": "test", "shards": 3, "runs": ["small"]},
    "ingest": {"sources": "films/sources.csv"},
    "runs": {"small": {"max_steps": 10}, "other": {"max_steps": 20}},
}
PER_SHARD = ("analyze", "cut", "caption", "encode")
OUTPUTS = [
    "results/ingest/sources.parquet",
    "results/curate/clips.parquet",
    "results/curate/audit.html",
    "results/plan/small/plan.json",
    "results/preflight/small/health.json",
    "results/preflight/small/nccl.env",
    "results/train/small/finished.json",
    "results/sample/small/sheet.jpg",
    "results/evaluate/small/scores.json",
    "results/export/small/model_index.json",
    "results/report/index.html",
    "results/report/summary.json",
    *(f"results/analyze/{shard:02d}.parquet" for shard in range(3)),
    *(
        f"results/{stage}/{name}.parquet/{shard:02d}.parquet"
        for shard in range(3)
        for stage, name in (("cut", "index"), ("caption", "captions"), ("encode", "index"))
    ),
]


@pytest.fixture
def project(tmp_path):
    return films_in(tmp_path)


def films_in(folder):
    (folder / "films").mkdir()
    (folder / "films" / "sources.csv").write_text("path,licence\nfilm.mp4,CC0\n")
    return folder


def snakemake(project, settings, *arguments, check=True, snakefile=ROOT / "Snakefile"):
    (project / "settings.yaml").write_text(yaml.safe_dump(settings))
    # A dry run reports errors on standard output.
    words = ["--snakefile", str(snakefile), "--cores", "1", "--directory", str(project)]
    words += ["--configfile", str(project / "settings.yaml"), *arguments]
    return forked.run("snakemake", words, project, check)


def planned(project, settings):
    """Rule -> number of jobs that a dry run announces."""
    output = snakemake(project, settings, "--dry-run").stdout
    return Counter(re.findall(r"^(?:local)?rule (\w+):", output, re.M))


def test_captions_from_a_server_of_ones_own_are_one_launched_job(project):
    server = {"command": ["serve", "--port", "{port}"]}
    settings = {**SETTINGS, "caption": {"captioner": "openai", "server": server}}
    output = snakemake(project, settings, "--dry-run", "--printshellcmds").stdout
    assert Counter(re.findall(r"^(?:local)?rule (\w+):", output, re.M))["caption"] == 1
    assert re.search(r"launch caption --shard all/3 .* --executor local --nodes 1", output)


def test_launched_jobs_have_the_account_of_the_default_resources(project):
    """Jobs that sample beside training take theirs from train's command."""
    server = {"command": ["serve", "--port", "{port}"]}
    settings = {**SETTINGS, "caption": {"captioner": "openai", "server": server}}
    defaults = ["slurm_account=lab", "slurm_partition=cpu", "slurm_extra='--qos=long'", "runtime=60"]
    profile = ["--default-resources", *defaults, "--set-resources", "train:slurm_partition=gpu"]
    output = snakemake(project, settings, "--dry-run", "--printshellcmds", *profile).stdout
    said = r"launch (\w+) .* --partition='(\w+)' --account='lab' --runtime 1440 .* --slurm-extra='--qos=long'"
    assert dict(re.findall(said, output)) == {"caption": "cpu", "preflight": "cpu", "train": "gpu"}


@pytest.mark.parametrize(("server", "launched"), [({}, set()), ({"command": ["serve", "{port}"]}, {"caption"})])
def test_snakemake_starts_no_launched_job_anew(project, server, launched):
    """Its own batch script does that, as often as the site allows. None: as often as the profile says."""
    told = ["", "for rule in workflow.rules:", "    print('retries of', rule.name, rule._restart_times)"]
    (project / "Snakefile").write_text(f'include: "{ROOT}/Snakefile"\n' + "\n".join(told))
    (project / "config.yaml").write_text("{}")
    settings = {**SETTINGS, "caption": {"captioner": "openai", "server": server}}
    output = snakemake(project, settings, "--dry-run", snakefile=project / "Snakefile").stdout
    retries = dict(re.findall(r"^retries of (\w+) (\w+)", output, re.M))
    assert {name for name, count in retries.items() if count != "None"} == {"preflight", "train", *launched}
    assert {retries[name] for name in ("preflight", "train", *launched)} == {"0"}


@pytest.fixture(scope="session")
def touched(tmp_path_factory):
    project = films_in(tmp_path_factory.mktemp("finished"))
    for name in OUTPUTS:
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    snakemake(project, SETTINGS, "--touch")
    return project


@pytest.fixture
def finished(touched, tmp_path):
    shutil.copytree(touched, tmp_path, dirs_exist_ok=True)
    return tmp_path


def changed(**sections):
    return {key: SETTINGS.get(key, {}) | sections.get(key, {}) for key in SETTINGS | sections}


def test_a_fresh_project_runs_every_stage_in_a_fixed_number_of_jobs(project):
    jobs = planned(project, SETTINGS)
    assert {rule: count for rule, count in jobs.items() if count != 1} == dict.fromkeys(PER_SHARD, 3)
    assert len(jobs) == 14
    (project / "films" / "sources.csv").write_text("path,licence\n" + "film.mp4,CC0\n" * 1000)
    assert planned(project, SETTINGS) == jobs


def test_a_finished_project_has_nothing_to_do(finished):
    assert planned(finished, SETTINGS) == {}


def test_films_that_come_or_change_are_noticed(finished):
    sources = finished / "films" / "sources.csv"
    sources.write_text("path,licence\nmine,CC0\nfilm.mp4,CC0\n")
    (finished / "films" / "mine").mkdir()
    film = finished / "films" / "mine" / "a.mp4"
    film.write_bytes(b"a film")
    snakemake(finished, SETTINGS, "--touch")
    assert planned(finished, SETTINGS) == {}
    (film.parent / "notes.txt").write_text("no film")
    assert planned(finished, SETTINGS) == {}
    film.write_bytes(b"another")
    assert planned(finished, SETTINGS)["ingest"] == 1
    snakemake(finished, SETTINGS, "--touch")
    (film.parent / "b.mp4").write_bytes(b"one more")
    assert {"ingest", "analyze", "report"} <= set(planned(finished, SETTINGS))


def test_a_changed_setting_reruns_its_stage_and_what_depends_on_it(finished):
    jobs = planned(finished, changed(caption={"model": "another"}))
    assert set(jobs).isdisjoint({"ingest", "analyze", "curate", "cut"})
    assert {"caption", "encode", "plan", "train", "report"} <= set(jobs)


def test_whoever_looks_while_a_run_is_at_work_changes_no_settings_of_it(finished):
    settings = finished / "results/settings/caption.json"
    before = settings.read_bytes()
    changes = changed(caption={"model": "another"})
    lock = files.hold(finished / ".snakemake/brickreel.lock")
    try:
        done = snakemake(finished, changes, "--dry-run")
    finally:
        os.close(lock)
    assert "changed settings count when it has ended" in done.stderr
    assert settings.read_bytes() == before
    # A job of that run reads the graph anew: with the settings of its run, not with what config.yaml says by now.
    snakemake(finished, changes, "--dry-run", "--mode", "remote", check=False)
    assert settings.read_bytes() == before
    snakemake(finished, changes, "--dry-run")
    assert settings.read_bytes() != before


def test_a_correction_that_was_added_is_taken_up(finished):
    settings = changed(caption={"corrections": "corrections.csv"})
    (finished / "corrections.csv").write_text("clip_id,text\nc0,A brick.\n")
    snakemake(finished, settings, "--touch")
    assert planned(finished, settings) == {}
    with (finished / "corrections.csv").open("a") as stream:
        stream.write("c1,Another brick.\n")
    jobs = planned(finished, settings)
    assert set(jobs).isdisjoint({"ingest", "analyze", "curate", "cut"})
    assert {"caption", "encode", "train", "report"} <= set(jobs)


def test_corrections_that_are_not_there_are_named(project):
    done = snakemake(project, changed(caption={"corrections": "mine/corrections.csv"}), "--dry-run", check=False)
    assert done.returncode != 0
    assert "mine/corrections.csv" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(("section", "key"), [("ingest", "sources"), ("cut", "adopt"), ("caption", "corrections")])
def test_a_list_that_is_not_there_is_named_also_where_everything_is_done(finished, section, key):
    done = snakemake(finished, changed(**{section: {key: "mine/misspelt.csv"}}), "--dry-run", check=False)
    assert done.returncode != 0
    assert re.search(rf"there is no mine/misspelt.csv in .* \(`{section}.{key}`\)", done.stdout)


def test_a_changed_sampling_setting_does_not_train_again(finished):
    jobs = planned(finished, changed(sample={"steps": 7}))
    assert set(jobs) == {"all", "sample", "evaluate", "export", "report"}


def test_a_changed_run_does_not_encode_again(finished):
    jobs = planned(finished, changed(runs={"small": {"max_steps": 11}}))
    assert set(jobs).isdisjoint({"ingest", "analyze", "curate", "cut", "caption", "encode"})
    assert "train" in jobs


@pytest.mark.slow
def test_weights_outlast_a_run_that_fails_and_the_run_is_tried_again(finished):
    weights = finished / "results/train/small/final/ema/diffusion_pytorch_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_text("of an earlier end")
    before = weights.stat().st_mtime_ns
    settings = changed(runs={"small": {"keep_last": 9}}) | {"base": with_texts_by("builtin:tiny")["base"]}
    words = ["--allowed-rules", "train", "--", "results/train/small/finished.json"]
    for _ in range(2):  # the plan of this project is none: the stage ends at once
        done = snakemake(finished, settings, *words, check=False)
        assert "rule train:" in done.stderr
        assert "plan.json is not valid JSON" in done.stderr
        assert weights.stat().st_mtime_ns == before


def test_another_selected_run_joins_the_graph(finished):
    jobs = planned(finished, changed(project={"runs": ["small", "other"]}))
    assert (jobs["train"], jobs["export"], jobs["report"]) == (2, 2, 1)
    assert set(jobs).isdisjoint({"ingest", "analyze", "curate", "cut", "caption"})


def test_an_adopted_dataset_enters_without_the_stages_before(project):
    (project / "clips.csv").write_text("path,text\nclip.mp4,a brick\n")
    jobs = planned(project, changed(cut={"adopt": "clips.csv"}))
    assert set(jobs).isdisjoint({"ingest", "analyze", "curate"})
    assert {"cut", "caption", "train"} <= set(jobs)


def test_a_misspelt_key_is_one_sentence(project):
    done = snakemake(project, changed(curate={"min_pose": 3}), "--dry-run", check=False)
    assert done.returncode != 0
    assert "unknown key `curate.min_pose`" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_project_without_films_can_be_linted(project):
    (project / "films" / "sources.csv").unlink()
    snakemake(project, SETTINGS, "--lint")
    snakemake(project, SETTINGS, "--lint")  # the first has written settings


def test_missing_sources_are_one_sentence(project):
    (project / "films" / "sources.csv").unlink()
    done = snakemake(project, SETTINGS, "--dry-run", check=False)
    assert done.returncode != 0
    assert "films/sources.csv" in done.stdout
    assert "Traceback" not in done.stdout


def with_texts_by(path):
    tiny = {"path": "builtin:tiny"}
    base = {"transformer": tiny, "autoencoder": tiny, "text_encoder": {"path": path}}
    return {**SETTINGS, "base": base, "caption": {"captioner": "embedded"}}


def test_weights_that_are_not_here_stop_the_graph_before_its_first_job(project):
    done = snakemake(project, with_texts_by("nobody/none"), check=False)
    assert done.returncode == 1
    assert "hf download nobody/none" in done.stderr
    assert not (project / "results/ingest").exists()


@pytest.mark.slow
def test_only_stages_that_need_weights_ask_for_them_and_settings_alone_are_none(project):
    (project / "words").mkdir()
    (project / "words/config.json").write_text("{}")
    half = snakemake(project, with_texts_by("words"), check=False)
    assert "words has no tokenizer.json or spiece.model" in half.stderr
    # The film of this project is not there: it is ingest that ends this one.
    dataset = snakemake(project, with_texts_by("nobody/none"), "--until", "caption", check=False)
    assert "nobody/none" not in dataset.stderr
    assert (project / "logs/ingest").is_dir()
    # What went wrong stands below the report, where one looks first.
    assert re.search(r"report: results/report/.*\nlogs/ingest/all.log ends with: .*film.mp4", dataset.stderr)


def test_a_key_that_is_not_there_stops_the_graph_before_its_first_job(project, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    asked = snakemake(project, changed(caption={"captioner": "openai"}), "--until", "caption", check=False)
    assert asked.returncode == 1
    assert "needs an API key in the environment variable OPENAI_API_KEY" in asked.stderr
    assert not (project / "results/ingest").exists()


def test_without_slurm_its_profile_is_one_sentence(project, monkeypatch):
    for name in ("bash", "sh", "which"):
        (project / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(project))
    asked = snakemake(project, SETTINGS, "--executor", "slurm", "--jobs", "1", "--until", "ingest", check=False)
    assert asked.returncode == 1
    assert "Slurm's programs are not on this machine" in asked.stderr
    assert not (project / "logs/ingest").exists()


def test_a_folder_without_slurms_scripts_is_told_before_the_first_job(project):
    if not shutil.which("sbatch"):
        pytest.skip("without Slurm that is told first")
    asked = snakemake(project, SETTINGS, "--executor", "slurm", "--jobs", "1", check=False)
    assert asked.returncode == 1
    assert "there is no slurm/job.sh in" in asked.stderr
    assert not (project / "logs/ingest").exists()


def test_how_stages_are_recorded_reaches_them_without_being_a_setting_of_theirs(project):
    snakemake(project, {**SETTINGS, "telemetry": {"enabled": False}}, "--until", "ingest", check=False)
    assert (project / "logs/ingest").is_dir()
    assert not (project / "logs/telemetry/ingest").exists()
    assert "telemetry" not in (project / "results/settings/ingest.json").read_text()
