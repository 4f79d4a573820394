import ast
import base64
import csv
import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

import tiny
from brickreel import config, files, tables
from brickreel.__main__ import main
from brickreel.evaluation import cards
from brickreel.films import video
from brickreel.stages import export
from training import project

METRIC = {"conditional": True, "low": 0.1, "high": 0.4, "n": 8, "unit": "distance", "reason": ""}
SCORES = {
    "metrics": [
        {"name": "frechet", "weights": "base", "step": 0, "value": 0.75, **METRIC},
        {"name": "frechet", "weights": "ema", "step": 3, "value": 0.5, **METRIC},
        {"name": "frechet", "weights": "ema", "step": 6, "value": 0.25, **METRIC},
    ]
}
ALONE = """
import sys
sys.modules["brickreel"] = None  # as on a machine where it is not installed
import hashlib, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
video = pipeline("a red car", num_frames=3, height=32, width=40, num_inference_steps=2,
                 generator=torch.Generator().manual_seed(5)).frames[0]
assert not [name for name in sys.modules if name.startswith("brickreel.")]
print(type(pipeline).__name__, video.shape, hashlib.sha256(video.tobytes()).hexdigest())
"""


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A project folder whose run is trained and evaluated; the cut index names an owner with odd characters."""
    source = project.make(tmp_path)
    tiny.save_base(tmp_path / "model", seed=1)
    monkeypatch.chdir(tmp_path)
    trained = tmp_path / "results" / "train" / "small"
    for which in ("raw", "ema"):
        tiny.transformer().save_pretrained(trained / "final" / which)
    files.write_json(trained / "final" / "final.json", {"step": 6, "samples": 36, "order": "x", "checkpoint": "c"})
    files.write_json(trained / "dataset.json", {"fingerprint": fingerprint_now()})
    files.write_json(tmp_path / "results" / "evaluate" / "small" / "scores.json", SCORES)
    rows = [
        cut_row(f"clip{number:03d}", f"film{number % 3}", kind) for number in range(12) for kind in ("clip", "still")
    ]
    rows.append(cut_row("never-encoded", "film9", "clip"))
    for step, loss in ((0, 1.0), (3, 0.9), (6, 0.5)):
        for which, part in (("ema", 0), ("ema", 1), ("raw", 0)):
            tables.log("gauge", trained / "gauge.jsonl", gauge_row(step, which, part, loss + 0.1 * part))
    tables.write("cut_index", tmp_path / "results" / "cut" / "index.parquet" / "00.parquet", rows)
    settings = json.loads(source.read_text()) | {"base": tiny.base_settings(tmp_path / "model")}
    return config.load(settings)


def fingerprint_now():
    return files.read_json("results/plan/small/plan.json")["buckets"]["fingerprint"]


def cut_row(clip, film, kind):
    return dict.fromkeys(tables.SCHEMAS["cut_index"].names) | {
        "clip_id": clip,
        "film_id": film,
        "kind": kind,
        "split": "heldout" if film == "film2" else "train",
        "title": "Bricks | <script>alert(1)</script>\n# Fun",
        "licence": "CC-BY-4.0" if film == "film0" else None,
        "rights_holder": "A. Holder",
        "outcome": "ok",
        "reason": "",
    }


def gauge_row(step, weights, part, relative):
    return dict.fromkeys(tables.SCHEMAS["gauge"].names) | {
        "step": step, "weights": weights, "bin": part, "relative": relative, "clips": 9,
    }  # fmt: skip


def test_the_folder_makes_the_same_video_with_and_without_brickreel(finished, tmp_path):
    export.run(finished, "small")
    folder = tmp_path / "results" / "export" / "small"
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    name, shape, digest = done.stdout.strip().rsplit("\n")[-1].partition(" (")[0], done.stdout, done.stdout.split()[-1]
    assert name == "TextToVideoPipeline"
    assert "(3, 32, 40, 3)" in shape
    assert digest == hashlib.sha256(here(folder).tobytes()).hexdigest()


def here(folder):
    import torch

    from brickreel.models.pipeline import OpenSoraPipeline

    pipeline = OpenSoraPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    given = {"num_frames": 3, "height": 32, "width": 40, "num_inference_steps": 2}
    return pipeline("a red car", **given, generator=torch.Generator().manual_seed(5)).frames[0]


def test_the_model_card_says_what_it_is(finished, tmp_path):
    export.run(finished, "small")
    card = (tmp_path / "results" / "export" / "small" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["pipeline_tag"] == "text-to-video"
    assert "ema weights after 6 steps and 36 shown clips" in card
    assert "3 films, 12 clips and 12 stills; 1 of the films were held out" in card
    assert "Held-out loss after 6 steps, on 9 clips of films that training never saw: 0.550 of" in card
    assert str(tmp_path) not in card
    assert "| frechet | before fine-tuning | 0.75 | 0.1 to 0.4 | 8 |" in card
    assert "| frechet | after 6 steps | 0.25 |" in card
    assert "0.5 |" not in card
    assert "It was trained on 2 films" in card
    assert "poses may drift" in card
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])["max_steps"] == 6


@pytest.mark.parametrize("more", [{}, {"guidance_channels": 3, "sampler": "dpm-solver++", "hold": 2}])
def test_the_cards_call_is_the_one_that_the_run_was_sampled_with(more, finished, tmp_path):
    settings = config.load(finished.model_dump(mode="json"), {"sample": {"pose_rate": 12.5} | more})
    export.run(settings, "small")
    folder = tmp_path / "results" / "export" / "small"
    snippet = ast.parse((folder / "README.md").read_text().split("```python\n")[1].split("```")[0])
    call = next(
        node for node in ast.walk(snippet) if isinstance(node, ast.Call) and node.args and len(node.keywords) > 2
    )
    shown = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg != "generator"}
    stored = files.read_json(folder / "sampling.json")
    assert shown == {name: value for name, value in stored.items() if name != "hold" and value is not None}
    assert shown["sampler"] == more.get("sampler", "iddpm")


def test_the_card_tells_the_commit_of_a_part_from_the_hubs_cache(finished, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--a--hub-name"
    for subfolder in ("autoencoder", "text_encoder"):
        (cached / "snapshots" / commit / subfolder).mkdir(parents=True)
        (cached / "snapshots" / commit / subfolder / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    part = {"path": "a/hub-name"}
    base = {"autoencoder": part | {"subfolder": "autoencoder"}, "text_encoder": part | {"revision": "v1.1"}}
    there = config.load(finished.model_dump(mode="json"), {"base": base})
    card = cards.model_card(there, "small", export.gather(there, "small"))
    assert f"| autoencoder | a/hub-name | {commit} |" in card
    assert "| text encoder | a/hub-name | v1.1 |" in card
    assert "| transformer | a local folder, transformer |  |" in card


def test_the_dataset_card_lists_every_film_and_no_markup_of_theirs(finished, tmp_path):
    export.run(finished, "small")
    card = (tmp_path / "results" / "export" / "small" / "DATASET.md").read_text()
    assert card.count("| A. Holder |") == 3
    assert "| CC-BY-4.0 | 1 | 4 | 4 |" in card
    assert "| none stated | 2 | 8 | 8 |" in card
    assert "film9" not in card
    assert "<script>" not in card
    assert "\n# Fun" not in card
    assert fingerprint_now() in card


def test_a_second_export_replaces_the_first_and_leaves_nothing_beside_it(finished, tmp_path):
    export.run(finished, "small")
    parent = tmp_path / "results" / "export"
    (parent / "small" / "stale.txt").write_text("old")
    export.run(config.load(finished.model_dump(mode="json"), {"export": {"weights": "raw"}}), "small")
    assert [path.name for path in parent.iterdir()] == ["small"]
    assert not (parent / "small" / "stale.txt").exists()
    assert "raw weights" in (parent / "small" / "README.md").read_text()


def test_a_missing_part_of_the_base_leaves_the_old_export(finished, tmp_path):
    export.run(finished, "small")
    broken = {"base": {"autoencoder": {"path": "nobody/nothing"}}}
    with pytest.raises(FileNotFoundError, match="hf download nobody/nothing"):
        export.run(config.load(finished.model_dump(mode="json"), broken), "small")
    assert (tmp_path / "results" / "export" / "small" / "model_index.json").is_file()
    assert [path.name for path in (tmp_path / "results" / "export").iterdir()] == ["small"]


def test_an_unfinished_run_is_not_exported(finished, tmp_path):
    (tmp_path / "results" / "train" / "small" / "final" / "final.json").unlink()
    with pytest.raises(FileNotFoundError, match="run `brickreel train --run small` to its end"):
        export.run(finished, "small")


@pytest.fixture
def with_clips(finished):
    """The same project with its clips as files, captions for all but one, and one clip lost."""
    rows = tables.read("cut_index", "results/cut/index.parquet").to_pylist()
    captions = []
    for number, row in enumerate(row for row in rows if row["kind"] == "clip"):
        row["path"] = f"results/cut/clips/{row['clip_id']}.mp4"
        frames = np.random.default_rng(number).integers(0, 255, (4, 32, 40, 3), np.uint8)
        if row["clip_id"] != "clip000":
            video.write(row["path"], frames, 8.0)
        caption = {"clip_id": row["clip_id"], "kind": "clip", "text": f'a, "red" brick {number}', "outcome": "ok"}
        if row["clip_id"] != "clip001":
            captions.append(dict.fromkeys(tables.SCHEMAS["captions"].names) | caption | {"reason": ""})
    tables.write("cut_index", "results/cut/index.parquet/00.parquet", rows)
    tables.write("captions", "results/caption/captions.parquet", captions)
    return finished


def test_the_dataset_is_a_videofolder_with_captions_that_takes_no_room_twice(with_clips, tmp_path):
    export.run(with_clips, "small")
    folder = tmp_path / "results" / "export" / "small" / "dataset"
    with (folder / "train" / "metadata.csv").open(newline="", encoding="utf-8") as stream:
        rows = {row["clip_id"]: row for row in csv.DictReader(stream)}
    assert rows["clip003"]["text"] == 'a, "red" brick 3'
    assert rows["clip003"]["licence"] == "CC-BY-4.0"
    assert rows["clip001"]["text"] == ""
    assert not {"clip000", "never-encoded"} & set(rows)
    clip = folder / "train" / "clip003.mp4"
    assert clip.stat().st_ino == (tmp_path / "results/cut/clips/clip003.mp4").stat().st_ino
    front = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert [part["split"] for part in front["configs"][0]["data_files"]] == ["train", "heldout"]
    assert "A. Holder" in (folder / "README.md").read_text()
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {split: part.num_rows for split, part in loaded.items()} == {"train": 7, "heldout": 4}
    assert {row["clip_id"] for row in loaded["heldout"].select_columns(["clip_id"])} == {
        "clip002", "clip005", "clip008", "clip011",
    }  # fmt: skip


def test_in_small_batches_the_export_is_the_same(with_clips, tmp_path, monkeypatch):
    def told():
        export.run(with_clips, "small")
        folder = tmp_path / "results" / "export" / "small"
        return [
            (folder / name).read_text()
            for name in ("DATASET.md", "README.md", "dataset/train/metadata.csv", "dataset/heldout/metadata.csv")
        ]

    whole = told()
    monkeypatch.setattr(tables, "BATCH", 5)
    monkeypatch.setattr(export, "BATCHES", 1)
    assert told() == whole


def test_clips_of_two_folders_with_one_name_are_both_exported_and_left_as_they_are(tmp_path):
    rows = []
    for folder in ("a", "b"):
        path = tmp_path / folder / "0001.mp4"
        path.parent.mkdir()
        path.write_bytes(folder.encode())
        facts = dict.fromkeys(tables.SCHEMAS["cut_index"].names)
        rows.append(facts | {"clip_id": f"clip-{folder}", "kind": "clip", "split": "train", "path": str(path)})
    batches = tables.table("cut_index", [row | {"outcome": "ok"} for row in rows]).to_batches()
    export.write_dataset(tmp_path / "out", iter(batches), "small", "")
    for folder in ("a", "b"):
        assert (tmp_path / folder / "0001.mp4").read_bytes() == folder.encode()
        assert (tmp_path / "out/train" / f"clip-{folder}.mp4").read_bytes() == folder.encode()


def test_a_folder_without_its_whole_dataset_does_not_take_the_place_of_the_old_one(with_clips, tmp_path):
    export.run(with_clips, "small")
    folder = tmp_path / "results" / "export" / "small"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    rows = tables.read("cut_index", "results/cut/index.parquet").to_pylist()
    twice = next(row for row in rows if row["clip_id"] == "clip003" and row["kind"] == "clip")
    tables.write("cut_index", "results/cut/index.parquet/00.parquet", [*rows, twice])
    with pytest.raises(FileExistsError):
        export.run(with_clips, "small")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [path.name for path in folder.parent.iterdir()] == ["small"]


def test_captions_of_clips_that_the_run_was_not_shown_are_not_counted(with_clips, tmp_path):
    captions = tables.read("captions", "results/caption/captions.parquet").to_pylist()
    others = [captions[0] | {"clip_id": f"other{number}", "model": "gpt-4o"} for number in range(50)]
    shown = [row | {"model": "embedded"} for row in captions]
    tables.write("captions", "results/caption/captions.parquet", [*shown, *others])
    export.run(with_clips, "small")
    card = (tmp_path / "results" / "export" / "small" / "README.md").read_text()
    assert "Captions by embedded: 11." in card
    assert "gpt-4o" not in card


def test_a_base_in_a_folder_of_the_project_is_no_name_of_the_hub(finished, tmp_path):
    base = {"base": {"transformer": {"path": "model/transformer"}, "autoencoder": {"path": "a/hub-name"}}}
    there = config.load(finished.model_dump(mode="json"), base)
    card = cards.model_card(there, "small", export.gather(there, "small"))
    assert "base_model" not in yaml.safe_load(card.split("---\n")[1])
    assert "| transformer | a local folder, transformer |" in card
    assert "| autoencoder | a/hub-name |" in card
    elsewhere = {"base": {"transformer": {"path": "hpcai-tech/OpenSora-STDiT-v2-stage3"}}}
    front = cards._front(config.load(finished.model_dump(mode="json"), elsewhere), "small")
    assert yaml.safe_load(front)["base_model"] == "hpcai-tech/OpenSora-STDiT-v2-stage3"


def test_where_nothing_of_the_run_is_encoded_any_more_no_card_says_that_it_saw_nothing(finished):
    rows = tables.read("encode_index", export.ENCODED).to_pylist()
    tables.write("encode_index", export.ENCODED / "00.parquet", [row | {"data_keys": ["another"]} for row in rows])
    with pytest.raises(ValueError, match="holds no clip for run 'small', so that its cards could not tell"):
        export.gather(finished, "small")


def step_row(step, clips):
    timing = {"attempt": 0, "rank": 0, "time_s": float(step), "step_s": 1.0}
    return timing | {"step": step, "sample_ids": [f"{clip}.1" for clip in clips]}


def cards_of(settings):
    facts = export.gather(settings, "small")
    return [make(settings, "small", facts) for make in (cards.model_card, cards.dataset_card)]


def test_after_a_withdrawal_the_cards_tell_what_training_was_shown_and_do_not_count_without_it(finished):
    trained = export.RESULTS / "train" / "small"
    files.write_json("withdrawn.json", {"gone": {"title": None, "clips": ["00ff"]}})
    for step, clips in ((2, ["00ff", "clip001"]), (5, ["gone-000001-000009"])):
        files.append_json_line(trained / "steps" / "0-0.jsonl", step_row(step, clips))
    now = {"fingerprint": fingerprint_now(), "first_step": 7}
    files.write_json(trained / "dataset.json", now | {"datasets": [{"fingerprint": "before", "first_step": 1}, now]})
    for card in cards_of(finished):
        assert "Training was shown films that have been withdrawn since: gone (steps 2 to 5)." in card
        assert "is not, or was not all along, the one that training was shown" in card
    card, films = cards_of(finished)
    for claim in ("never saw", "held out of training", "trained on 2 films"):
        assert claim not in card
    assert "dataset fingerprint `before`" in card
    assert f"Fingerprint `{fingerprint_now()}`" in films


def test_a_film_that_is_held_out_now_but_was_trained_on_is_no_unseen_one(finished):
    log = export.RESULTS / "train" / "small" / "steps" / "0-0.jsonl"
    files.append_json_line(log, step_row(7, ["clip002"]))  # beyond the final weights
    assert "clips of films that training never saw" in cards_of(finished)[0]
    files.append_json_line(log, step_row(3, ["clip001", "clip002"]))
    card = cards_of(finished)[0]
    assert "are held out now, and test nothing new: film2 (steps 3 to 3)." in card
    assert "never saw" not in card


def test_weights_that_were_not_sampled_have_no_scores_and_the_card_says_so(finished, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(export.logger, "propagate", True)
    card = tmp_path / "results" / "export" / "small" / "README.md"
    export.run(finished, "small")
    assert "no samples were evaluated" not in card.read_text()
    export.run(config.load(finished.model_dump(mode="json"), {"export": {"weights": "raw"}}), "small")
    assert "Of the weights in this folder (raw) no samples were evaluated" in card.read_text()
    assert "no scores of the raw weights: sample.weights left them out" in caplog.text


def test_the_dataset_is_left_out_when_asked(with_clips, tmp_path):
    export.run(config.load(with_clips.model_dump(mode="json"), {"export": {"dataset": False}}), "small")
    assert not (tmp_path / "results" / "export" / "small" / "dataset").exists()


def test_the_model_card_tells_energy_or_that_it_was_not_measured(finished, tmp_path):
    export.run(finished, "small")
    card = (tmp_path / "results" / "export" / "small" / "README.md").read_text()
    assert "Energy was not measured" in card
    assert "kWh" not in card
    facts = export.gather(finished, "small")
    facts["energy"] |= {"wall_hours": 5.3, "gpu_hours": 169.6, "gpu": "NVIDIA H100", "kwh": 101.25, "co2_kg": 40.5}
    card = export.cards.model_card(finished, "small", facts)
    assert "5.3 hours of wall time and 169.6 GPU-hours (NVIDIA H100)" in card
    assert "drew 101.2 kWh, by their own counters: 40.5 kg of CO2" in card
    facts["energy"]["recorded_pct"] = 62.4
    assert "drew 101.2 kWh in the 62 % of their time that was recorded" in export.cards.model_card(
        finished, "small", facts
    )


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as an upload of small files needs."""

    def do_POST(self):
        """Make a repository, say how files are sent, or take a commit."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub = self.server
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            # Versions of the library say it in one word or in another.
            private = asked.get("private") or asked.get("visibility") == "private"
            hub.made.append((asked.get("type", "model"), asked.get("organization"), asked["name"], private))
            kind = "datasets/" if asked.get("type") == "dataset" else ""
            return self.answer(200, {"url": f"{hub.address}/{kind}{asked['organization']}/{asked['name']}"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            found = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self.answer(200, {"files": [file | {"shouldIgnore": False, "oid": None} for file in found]})
        if "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            place = self.path.removeprefix("/api/").removeprefix("models/").partition("/commit/")[0]
            done = {"commitUrl": f"{hub.address}/{place}/commit/{'0' * 40}", "commitOid": "0" * 40}
            return self.answer(200, done | {"pullRequestUrl": None})
        return self.answer(404, {"error": self.path})

    def do_GET(self):
        """Nothing is there to be read."""
        self.answer(404, {"error": self.path})

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status, value):
        """Send JSON."""
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture
def hub(monkeypatch):
    """A hub on loopback that the library under test talks to for real."""
    import huggingface_hub.constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.made, server.files, server.token = [], {}, "a-token"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "a-token")
    yield server
    server.shutdown()
    server.server_close()


def test_push_sends_the_model_and_the_clips_to_repositories_of_their_own(with_clips, tmp_path, hub):
    export.run(with_clips, "small", push="me/bricks", push_dataset="me/brick-clips")
    assert [(kind, name, private) for kind, _, name, private in hub.made] == [
        ("model", "bricks", True), ("dataset", "brick-clips", True),
    ]  # fmt: skip
    folder = tmp_path / "results" / "export" / "small"
    model = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    clips = {name.removeprefix("dataset/") for name in model if name.startswith("dataset/")}
    assert set(hub.files) == {name for name in model if not name.startswith("dataset/")} | clips
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert hub.files[weights] == (folder / weights).read_bytes()


def test_the_command_line_names_the_repositories(finished, hub, tmp_path):
    files.write_json(tmp_path / "here.json", finished.model_dump(mode="json") | {"telemetry": {"enabled": False}})
    done = CliRunner().invoke(main, ["export", "--config", "here.json", "--run", "small", "--push", "me/bricks"])
    assert done.exit_code == 0, done.output
    assert [(kind, name) for kind, _, name, _ in hub.made] == [("model", "bricks")]


def test_settings_name_the_repository_too_and_without_one_nothing_is_sent(finished, hub):
    export.run(finished, "small")
    assert (hub.made, hub.files) == ([], {})
    export.run(config.load(finished.model_dump(mode="json"), {"export": {"push": "me/bricks"}}), "small")
    assert [(kind, name) for kind, _, name, _ in hub.made] == [("model", "bricks")]
    assert "model_index.json" in hub.files


def test_a_hub_that_refuses_is_a_sentence_and_the_folder_stays(finished, tmp_path, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "stale")
    with pytest.raises(OSError, match=r"is written, but could not be sent to me/bricks: .*401"):
        export.run(finished, "small", push="me/bricks")
    assert (tmp_path / "results" / "export" / "small" / "model_index.json").is_file()
    with pytest.raises(ValueError, match="no name of a repository"):
        export.run(finished, "small", push="not a/name/at all")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(OSError, match="could not be sent to me/bricks"):
        export.run(finished, "small", push="me/bricks")
