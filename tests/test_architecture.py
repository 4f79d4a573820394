"""Agreements that hold the project together: one word per stage, layers, rules."""

import ast
import re
from pathlib import Path

import pytest

from brickreel import config
from brickreel.stages import BY_NAME, STAGES

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "brickreel"
RULES = {
    name: body
    for path in (ROOT / "workflow" / "rules").glob("*.smk")
    for name, body in re.findall(r"^rule (\w+):\n((?:    .*\n|\n)+)", path.read_text() + "\n", re.M)
}


def test_rules_commands_settings_and_modules_use_the_same_words():
    names = set(BY_NAME)
    assert set(RULES) == names
    assert names <= set(config.Config.model_fields)
    assert set(config.STAGE_SECTIONS) == names
    assert names <= {path.stem for path in (SOURCE / "stages").glob("*.py")}


def test_heavy_stages_have_a_script_of_their_own():
    scripts = {path.stem for path in (ROOT / "slurm").glob("*.sbatch")}
    assert scripts == {stage.name for stage in STAGES if stage.heavy} | {"pipeline"}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_rules_have_one_shape(stage):
    order = ["input", "output", "log", "retries", "conda", "threads", "params", "resources", "shell"]
    found = re.findall(r"^    (\w+):", RULES[stage.name], re.M)
    assert found == [word for word in order if word in found]
    assert {"input", "output", "log", "shell"} <= set(found)
    assert "lambda" not in RULES[stage.name]
    results = re.findall(r'"(results/[^"]+)"', RULES[stage.name].partition("output:")[2].partition("log:")[0])
    assert results
    assert all(path.startswith(f"results/{stage.name}/") or stage.name == "train" for path in results)
    assert f'settings="results/settings/{stage.name}' in RULES[stage.name]


# Layer -> what it may import from brickreel besides itself, config, files, tables, progress and running.
LAYERS = {
    "models": {"diffusion"},
    "diffusion": set(),
    "films": set(),
    "captions": {"films", "cluster", "stages"},
    "training": {"models", "diffusion", "films", "captions", "cluster", "stages"},
    "evaluation": {"models", "diffusion", "films", "captions", "training", "cluster", "stages"},
    "cluster": {"stages", "telemetry"},
    "telemetry": {"cluster", "stages"},
}
BASE = {"config", "files", "tables", "progress", "running", "__version__"}


def imports_of(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "brickreel":
                found |= {f"brickreel.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("brickreel.")}


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_import_only_what_is_below_them(layer):
    strangers = {
        path.relative_to(SOURCE).as_posix(): sorted(imports_of(path) - LAYERS[layer] - BASE - {layer})
        for path in (SOURCE / layer).rglob("*.py")
        if imports_of(path) - LAYERS[layer] - BASE - {layer}
    }
    assert strangers == {}


def test_no_module_has_grown_out_of_sight():
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in [*SOURCE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert long == {}


def test_nothing_is_unpickled_or_run_through_a_shell():
    forbidden = re.compile(r"pickle\.loads?\(|shell=True|os\.system\(|weights_only=False|yaml\.load\(|(?<![\w.])eval\(")
    found = {
        path.relative_to(ROOT).as_posix(): forbidden.findall(path.read_text(encoding="utf-8"))
        for path in SOURCE.rglob("*.py")
    }
    assert {path: hits for path, hits in found.items() if hits} == {}
