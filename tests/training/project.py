"""A project folder with random latents and a small transformer: what training needs, made in a second."""

import json
import os
from pathlib import Path

import torch

import tiny
from brickreel import config, files, tables
from brickreel.stages import train as stage
from brickreel.training import checkpoint, latents
from brickreel.training.buckets import data_key, plan_buckets
from brickreel.training.latents import Sample
from training import ranks

RUN = {
    "data": {"time": "poses", "buckets": {"64p": {4: [1.0, 2], 1: [1.0, 4]}}},
    "schedule": {"kind": "constant", "lr": 1e-3},
    "max_steps": 6,
    "micro_batches": 3,
    "precision": "fp32",
    "ema_decay": 0.9,
    "mask_ratios": {"quarter_head": 0.3},
    "grad_checkpoint": False,
    "checkpoint_every": 2,
    "gauge_every": 3,
    "gauge_bins": 2,
    "keep_last": 10,
}


def make(folder: Path, clips: int = 9, heldout: int = 3, name: str = "small", **changes) -> Path:
    """Write transformer, encode index, latents, plan and config.json under `folder`; returns the configuration."""
    torch.manual_seed(0)
    tiny.save_transformer(folder / "base" / "transformer")
    settings = {
        "project": {"runs": [name]},
        "telemetry": {"enabled": False},
        "base": {"transformer": {"path": "base/transformer"}},
        "runs": {name: RUN | changes},
    }
    source = folder / "config.json"
    source.write_text(json.dumps(settings))
    run = config.load(source).run(name)
    rows = write_latents(folder, run.data, clips, heldout)
    plan = plan_buckets(tables.table("encode_index", rows), run)
    files.write_json(folder / "results" / "plan" / name / "plan.json", {"run": name, "buckets": plan.to_json()})
    return source


def write_latents(folder: Path, data: config.RunData, clips: int, heldout: int, seed: int = 0) -> list[dict]:
    """Clips of 4 and stills of 1 frame with random posteriors and texts."""
    generator = torch.Generator().manual_seed(seed)
    writer = latents.Writer(Path("results/encode/00"), "test", 1)
    rows = []
    for number in range(clips + heldout):
        for kind, frames in (("clip", 4), ("still", 1)):
            tokens = 3 + number % 5
            row = dict.fromkeys(tables.SCHEMAS["encode_index"].names) | {
                "sample_id": f"clip{number:03d}.{kind}",
                "clip_id": f"clip{number:03d}",
                "film_id": f"film{number % 3}",
                "kind": kind,
                "bucket": f"64p-{frames}f-1.00-{'poses1' if kind == 'clip' else 'still'}",
                "frames": frames,
                "height": 64,
                "width": 64,
                "pose_rate": 8.0,
                "offset": 0,
                "crop": 0.5,
                "text_tokens": tokens,
                "scaling_factor": 0.5,
                "split": "heldout" if number >= clips else "train",
                "data_keys": [data_key(data)],
                "outcome": "ok",
                "reason": "",
            }
            mean, logvar = (torch.randn(4, frames, 8, 8, generator=generator).bfloat16() for _ in range(2))
            text = torch.randn(tokens, 16, generator=generator).bfloat16()
            rows.append(writer.add(row, Sample(mean, logvar - 4, text), {}))
    writer.prefix = folder / writer.prefix
    writer.prefix.parent.mkdir(parents=True, exist_ok=True)
    writer.flush()
    tables.write("encode_index", folder / "results" / "encode" / "index.parquet" / "00.parquet", rows)
    return rows


def words(name: str = "small", configs: tuple[str, ...] = ("config.json",)) -> list[str]:
    """The command line that trains."""
    return ["train", "--run", name, "--debug", *(word for path in configs for word in ("--config", path))]


def train(folder: Path, world_size: int = 1, name: str = "small", **environment: str) -> None:
    """Run `brickreel train` on that many gloo ranks; they must all succeed."""
    assert ranks.run(folder, words(name), world_size, **environment) == [0] * world_size, ranks.output(folder)


def step_rows(folder: Path, name: str = "small") -> list[dict]:
    """All rows of the step log, newest attempt last."""
    paths = sorted((folder / "results" / "train" / name / "steps").glob("*.jsonl"))
    rows = [row for path in paths for row in tables.read_log("steps", path).to_pylist()]
    return sorted(rows, key=lambda row: (row["attempt"], row["step"], row["rank"]))


def ids_by_step(folder: Path, name: str = "small") -> dict[int, list[str]]:
    """Step -> sample ids over all ranks, sorted; of a step that was repeated, the newest attempt's."""
    newest: dict[int, dict[int, list[str]]] = {}
    for row in step_rows(folder, name):
        newest.setdefault(row["step"], {}).setdefault(row["attempt"], []).extend(row["sample_ids"])
    return {step: sorted(attempts[max(attempts)]) for step, attempts in newest.items()}


def final_weights(folder: Path, which: str = "raw", name: str = "small") -> dict[str, torch.Tensor]:
    """Final weights as tensors."""
    from safetensors.torch import load_file

    return load_file(folder / "results" / "train" / name / "final" / which / "diffusion_pytorch_model.safetensors")


def train_here(folder: Path, name: str = "small", **sections) -> None:
    """Run the train stage in this process; `sections` are merged over the project's configuration."""
    here = os.getcwd()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    os.chdir(folder)
    try:
        stage.run(config.load("config.json", sections), name)
    finally:
        os.chdir(here)


def change(folder: Path, name: str = "small", **changes) -> None:
    """Edit the run's settings in config.json."""
    source = folder / "config.json"
    settings = json.loads(source.read_text())
    settings["runs"][name] |= changes
    source.write_text(json.dumps(settings))


def columns(folder: Path, *names: str) -> dict[tuple[int, int], list]:
    """(step, rank) -> columns of the step log, the newest attempt's."""
    return {(row["step"], row["rank"]): [row[name] for name in names] for row in step_rows(folder)}


def checkpoint_tensors(folder: Path, step: int, name: str = "small") -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, whole."""
    path = folder / "results" / "train" / name / "checkpoints" / checkpoint.name_of(step)
    found = {}
    for which in ("model.", "ema.", "exp_avg.", "exp_avg_sq."):
        found |= checkpoint._whole(path, which)
    return found


def readings(folder: Path, name: str = "small") -> dict[tuple, float]:
    """(step, weights, bin) -> held-out loss."""
    rows = tables.read_log("gauge", folder / "results" / "train" / name / "gauge.jsonl").to_pylist()
    return {(row["step"], row["weights"], row["bin"]): row["loss"] for row in rows}


def attempts(folder: Path, name: str = "small") -> list[dict]:
    """The end rows of the attempts."""
    rows = tables.read_log("attempts", folder / "results" / "train" / name / "attempts.jsonl").to_pylist()
    return [row for row in rows if row["event"] == "end"]


def stored_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of a saved transformer."""
    from safetensors.torch import load_file

    return load_file(folder / "diffusion_pytorch_model.safetensors")
