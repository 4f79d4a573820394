"""What the benches share: projects with random latents and a trainer over them, and experiments on the demo's clips."""

import argparse
import importlib
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from brickreel import config, files, tables
from brickreel.cluster.ranks import Ranks
from brickreel.stages import train
from brickreel.training import latents
from brickreel.training.buckets import data_key, plan_buckets
from brickreel.training.loop import Trainer
from brickreel.training.signals import StopRequest

CPU = torch.device("cpu")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # as the command line does
ROOT = Path(__file__).resolve().parent.parent
# Where `make demo` leaves its clips; experiments that find them there need not cut and caption the films again.
DEMO = ROOT / "demo"


def write(run: dict[str, Any], clips: int, latent: tuple[int, int, int, int], tokens: int, channels: int) -> dict:
    """Write index, latents [C, T, h, w] with texts [tokens, channels], and plan under the present folder.

    Returns the configuration. The run has one bucket, `latent`'s.
    """
    settings = {
        "base": {"transformer": {"path": "builtin:tiny"}},
        "telemetry": {"enabled": False},
        "runs": {"bench": run},
    }
    checked = config.load(settings).run("bench")
    (resolution, lengths), *_ = checked.data.buckets.items()
    frames = next(iter(lengths))
    writer = latents.Writer(Path("results/encode/00"), "bench", 256)
    writer.prefix.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(clips):
        row = dict.fromkeys(tables.SCHEMAS["encode_index"].names) | {
            "sample_id": f"clip{number:05d}",
            "clip_id": f"clip{number:05d}",
            "film_id": f"film{number % 3}",
            "kind": "clip",
            "bucket": f"{resolution}-{frames}f-1.00-poses1",
            "frames": frames,
            "height": latent[2] * 8,
            "width": latent[3] * 8,
            "pose_rate": 8.0,
            "text_tokens": tokens,
            "scaling_factor": 0.18215,
            "split": "train",
            "data_keys": [data_key(checked.data)],
            "outcome": "ok",
            "reason": "",
        }
        mean, logvar = (torch.randn(latent, generator=generator).bfloat16() for _ in range(2))
        text = torch.randn(tokens, channels, generator=generator).bfloat16()
        rows.append(writer.add(row, latents.Sample(mean, logvar - 4, text), {}))
        writer.flush(at_least_full=True)
    writer.flush()
    tables.write("encode_index", train.INDEX / "00.parquet", rows)
    plan = plan_buckets(tables.table("encode_index", rows), checked)
    files.write_json("results/plan/bench/plan.json", {"run": "bench", "buckets": plan.to_json()})
    files.write_json("config.json", settings)
    return settings


def trainer(settings: dict, name: str = "bench", folder: str = "results/train/bench") -> Trainer:
    """A trainer of one process, ready for its first step."""
    checked = config.load(settings)
    made = Trainer(name, Path(folder), checked.run(name), checked.train, Ranks(), CPU, 0)
    train.prepare(made, checked, train.read_plan(name))
    return made


def steps(made: Trainer, count: int) -> Iterator[dict[str, Any]]:
    """Train `count` steps, giving each one's row."""
    batches = made._batches(count)
    made.clock.read()
    for _ in range(count):
        yield made._step(batches, StopRequest())
    batches.close()


def demo_settings(**overrides: Any) -> config.Config:
    """The demo's configuration with sections replaced setting by setting; `runs` is replaced as a whole."""
    layers = [config.load(ROOT / "config.yaml", ROOT / "config" / "demo.yaml").model_dump(mode="json")]
    layers[0]["telemetry"]["enabled"] = False
    runs = overrides.pop("runs", None)
    if runs is not None:
        layers[0] |= {"runs": runs, "project": layers[0]["project"] | {"runs": list(runs), "shards": 1}}
    return config.load(*layers, overrides)


def demo_clips(settings: config.Config, source: Path = DEMO) -> str:
    """Have the demo's clips and captions under the present folder: those of a finished demo, or new ones.

    Returns a sentence about where they came from.
    """
    if (source / "results" / "caption" / "captions.parquet").exists():
        Path("results").mkdir(exist_ok=True)
        for name in ("ingest", "curate", "cut", "caption"):
            link = Path("results") / name
            if not link.exists():
                link.symlink_to((source / "results" / name).resolve(), target_is_directory=True)
        return f"clips and captions of the finished demo in {source.name}/"
    from brickreel.films import demo

    films = Path("films")
    if not (films / "sources.csv").exists():
        demo.render(films)
    for name in ("ingest", "analyze", "curate", "cut", "caption"):
        stage(name, settings)
    return "films, clips and captions made here"


def stage(name: str, settings: config.Config, **scope: Any) -> None:
    """One stage's own `run`, its log quieted to warnings."""
    logging.getLogger("brickreel").setLevel(logging.WARNING)
    importlib.import_module(f"brickreel.stages.{name}").run(settings, **scope)


def told(row: Mapping[str, Any], digits: int = 3) -> str:
    """`0.12 (0.10 to 0.14)`, or the reason why there is no value."""
    if row["value"] is None:
        return str(row["reason"])
    if row["low"] is None:
        return f"{row['value']:.{digits}g} ({row['reason']})"
    return f"{row['value']:.{digits}g} ({row['low']:.{digits}g} to {row['high']:.{digits}g})"


def in_folder(
    options: argparse.ArgumentParser, experiment: Callable[[argparse.Namespace, Path], dict[str, Any]]
) -> dict[str, Any]:
    """Run an experiment of one thread in a folder that is kept when one is named; it is told of a finished demo."""
    options.add_argument("--demo", type=Path, default=DEMO, help="a finished demo, for its clips")
    options.add_argument("--work", type=Path, help="folder to work in and to keep; the same call continues there")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    source = chosen.demo.resolve()
    with tempfile.TemporaryDirectory() as folder:
        work = chosen.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        with chdir(work):
            return experiment(chosen, source)
