import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from brickreel import config
from brickreel.config import reference
from brickreel.stages import STAGES

ROOT = Path(__file__).resolve().parent.parent
RUNS = {"runs": {"demo": {"data": {"buckets": {"64p": {"16": [1.0, 8]}}}}, "other": {}}}


def test_unknown_key_names_itself_and_its_neighbours():
    with pytest.raises(ValueError, match=r"unknown key `curate\.min_pose`: choose from .*min_poses"):
        config.load({"curate": {"min_pose": 3}})


def test_unknown_key_inside_a_run_is_named():
    with pytest.raises(ValueError, match=r"unknown key `runs\.demo\.learning_rate`"):
        config.load({"runs": {"demo": {"learning_rate": 1}}})


def test_wrong_type_names_the_field_and_the_value():
    with pytest.raises(ValueError, match=r"`cut\.crf`.*'good'"):
        config.load({"cut": {"crf": "good"}})


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (
            {"mask_ratios": {"quater_head": 0.1}},
            r"mask_ratios\.quater_head.*choose from no, quarter_random, ",
        ),
        ({"mask_ratios": {"quarter_head": 0.6, "image_head": 0.6}}, "the probabilities sum to more than 1"),
        ({"data": {"buckets": {"361p": {32: [1.0, 8]}}}}, r"data\.buckets\.361p.*choose from 144p, "),
        ({"schedule": {"kind": "1cycle", "lr": 1e-3}}, r"demo\.schedule`: .*1cycle needs cooldown_steps above 0"),
        ({"lora": {"targets": ["qvk"]}}, r"lora\.targets\.0.*choose from qkv, proj, .*'qvk'"),
    ],
)
def test_misspelt_names_of_a_run_are_found_when_settings_are_loaded(run, words):
    with pytest.raises(ValueError, match=words):
        config.load({"runs": {"demo": run}})


def test_the_mask_strategy_no_needs_no_quotes(tmp_path):
    (tmp_path / "c.yaml").write_text("runs: {demo: {mask_ratios: {quarter_head: 0.1, no: 0.5}}}")
    loaded = config.load(tmp_path / "c.yaml")
    assert loaded.run("demo").mask_ratios == {"quarter_head": 0.1, "no": 0.5}
    assert config.load(json.loads(json.dumps(loaded.model_dump(mode="json")))) == loaded


def test_checkpoints_are_at_all_blocks_at_none_or_at_a_share_of_them():
    for given, share in ((True, 1), (False, 0), (0.5, 0.5), (1, 1)):
        assert config.load({"runs": {"demo": {"grad_checkpoint": given}}}).run("demo").grad_checkpoint == share
    with pytest.raises(ValueError, match=r"`runs\.demo\.grad_checkpoint`: Input should be less than or equal to 1"):
        config.load({"runs": {"demo": {"grad_checkpoint": 2}}})


def test_a_key_in_place_of_its_variables_name_is_not_repeated():
    with pytest.raises(ValueError, match=r"caption\.api_key_env") as caught:
        config.load({"caption": {"api_key_env": "sk-proj-0123456789abcdef"}})
    assert "0123456789" not in str(caught.value)


def test_later_sources_win_key_by_key(tmp_path):
    first, second = tmp_path / "config.yaml", tmp_path / "demo.yaml"
    first.write_text(yaml.safe_dump({"curate": {"min_poses": 9, "seed": 4}, "project": {"name": "a"}}))
    second.write_text(yaml.safe_dump({"curate": {"min_poses": 7}}))
    loaded = config.load(first, second)
    assert (loaded.curate.min_poses, loaded.curate.seed, loaded.project.name) == (7, 4, "a")


def test_merging_leaves_the_sources_alone():
    first = {"runs": {"demo": {"max_steps": 3}}}
    config.load(first, {"runs": {"demo": {"max_steps": 5}}})
    assert first == {"runs": {"demo": {"max_steps": 3}}}


def test_broken_yaml_and_missing_file_are_one_sentence(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(ValueError, match=r"broken\.yaml is not valid YAML"):
        config.load(broken)
    with pytest.raises(FileNotFoundError, match="no configuration file"):
        config.load(tmp_path / "none.yaml")
    listed = tmp_path / "list.yaml"
    listed.write_text("- a")
    with pytest.raises(ValueError, match="must hold sections"):
        config.load(listed)


def test_a_run_that_does_not_exist_lists_the_others():
    with pytest.raises(ValueError, match=r"\['x'\].*\['demo', 'other'\]"):
        config.load(RUNS, {"project": {"runs": ["x"]}})
    with pytest.raises(ValueError, match=r"no run 'x'.*\['demo', 'other'\]"):
        config.load(RUNS).run("x")


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stages_settings_are_a_configuration_with_the_same_content(stage):
    loaded = config.load(RUNS)
    run = "demo" if stage.scope == "run" else None
    part = config.stage_settings(loaded, stage.name, run)
    again = config.load(json.loads(json.dumps(part)))
    assert config.stage_settings(again, stage.name, run) == part


def changed_stages(change):
    before, after = config.load(RUNS), config.load(RUNS, change)
    return {
        stage.name
        for stage in STAGES
        if config.stage_settings(before, stage.name, "demo" if stage.scope == "run" else None)
        != config.stage_settings(after, stage.name, "demo" if stage.scope == "run" else None)
    }


def test_a_changed_caption_setting_touches_captioning_and_its_forecast_only():
    assert changed_stages({"caption": {"model": "x"}}) == {"caption", "plan"}


def test_a_changed_learning_rate_does_not_encode_again():
    changed = changed_stages({"runs": {"demo": {"schedule": {"lr": 1e-3}}}})
    assert "train" in changed
    assert changed.isdisjoint({"ingest", "analyze", "curate", "cut", "caption", "encode"})


def test_a_changed_shape_encodes_again():
    assert "encode" in changed_stages({"runs": {"demo": {"data": {"stride": 2}}}})


def test_an_unselected_run_does_not_concern_encode():
    loaded = config.load(RUNS, {"project": {"runs": ["demo"]}})
    assert list(config.stage_settings(loaded, "encode")["runs"]) == ["demo"]


def test_settings_files_keep_their_time_stamp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = config.write_settings(config.load(RUNS), "train", "demo")
    assert path.as_posix() == "results/settings/train-demo.json"
    stamp = path.stat().st_mtime_ns
    config.write_settings(config.load(RUNS, {"curate": {"seed": 9}}), "train", "demo")
    assert path.stat().st_mtime_ns == stamp


def test_importing_the_configuration_loads_no_heavy_library():
    code = "import sys, brickreel.config; print(sorted({'torch','numpy','pyarrow','av','cv2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_setting_is_documented_where_it_is_declared():
    undocumented = [
        f"{model.__name__}.{name}"
        for model in config.Section.__subclasses__()
        if model is not config.Config
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert undocumented == []


@pytest.mark.parametrize(
    ("name", "path", "settings"),
    [("sample.steps", "sample", ["steps"]), ("runs.demo.max_steps", "runs.NAME", ["max_steps"]), ("nothing", "", [])],
)
def test_a_setting_is_shown_by_the_name_that_errors_give_it(name, path, settings):
    assert [(part.path, [s.name for s in part.settings]) for part in reference.of(name)] == [(path, settings)][
        : bool(path)
    ]


def test_a_runs_own_name_shows_what_a_run_may_say():
    paths = [part.path for part in reference.of("runs.demo")]
    assert paths[0] == "runs.NAME"
    assert {"runs.NAME.data", "runs.NAME.p2"} <= set(paths)
    assert [part.path for part in reference.of("runs.demo.p2")] == ["runs.NAME.p2"]


def test_the_reference_of_settings_is_whole_and_current():
    known = {f"{part.path}.{setting.name}" for part in reference.parts() for setting in part.settings}
    assert {"caption.server.command", "runs.NAME.data.buckets", "runs.NAME.lora.rank", "plan.mfu"} <= known
    assert [f"{part.path}.{s.name}" for part in reference.parts() for s in part.settings if not s.purpose] == []
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == reference.markdown(), "run `make settings`"
