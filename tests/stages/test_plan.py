import json
from pathlib import Path

import pytest

from brickreel import config, files, tables
from brickreel.models.stdit2.model import PRESETS
from brickreel.stages import plan
from brickreel.training.buckets import BucketPlan, data_key

VARIABLES = ("BRICKREEL_GPU", "BRICKREEL_GPUS", "BRICKREEL_USD_PER_GPU_HOUR", "BRICKREEL_USD_PER_KWH")


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def model_folder(preset: str) -> str:
    """A transformer's folder as far as plan looks: its settings, without weights."""
    files.write_json("base model/config.json", {"_class_name": "STDiT2", **PRESETS[preset]})
    return "base model"


def rows(settings: config.RunData, bucket: str, count: int, frames: int, size: tuple[int, int], **changes):
    return [
        {
            "sample_id": f"{bucket}-{number}",
            "clip_id": f"{bucket}-{number}",
            "film_id": f"{number % 7:016x}",
            "kind": "clip" if frames > 1 else "still",
            "bucket": bucket,
            "frames": frames,
            "height": size[0],
            "width": size[1],
            "pose_rate": 8.0,
            "offset": 0,
            "crop": 0.5,
            "text_tokens": 200,
            "scaling_factor": 0.18215,
            "split": "train",
            "data_keys": [data_key(settings)],
            "file": None,
            "text_file": None,
            "crc32": number,
            "outcome": "ok",
            "reason": "",
        }
        | changes
        for number in range(count)
    ]


def origin(buckets: dict, **changes) -> config.Config:
    data = {"time": "frames", "stride": 4, "buckets": {"360p": buckets}, "assignment": "opensora-1.1"}
    run = {"data": data, "max_steps": 2010, "micro_batches": 32, "seed": 42, **changes}
    return config.load({"base": {"transformer": {"path": model_folder("XL/2")}}, "runs": {"r": run}})


def planned(settings: config.Config, index: list[dict]) -> dict:
    tables.write("encode_index", "results/encode/index.parquet/00.parquet", index)
    plan.run(settings, "r")
    return json.loads(Path("results/plan/r/plan.json").read_text())


def test_forecast_of_the_origins_32_frame_run_matches_what_it_reported(monkeypatch):
    monkeypatch.setenv("BRICKREEL_GPU", "NVIDIA H100 80GB HBM3")
    monkeypatch.setenv("BRICKREEL_GPUS", "32")
    monkeypatch.setenv("BRICKREEL_USD_PER_GPU_HOUR", "2.5")
    settings = origin({32: (1.0, 8)})
    got = planned(settings, rows(settings.runs["r"].data, "360p-32", 24_000, 32, (360, 640)))

    assert got["per_bucket"][0]["forward_tflop_per_sample"] == pytest.approx(43.8, rel=0.005)
    assert got["per_bucket"][0]["tokens_per_sample"] * 8 == 235_520
    assert got["flops_per_step"] == pytest.approx(256 * 131.4e12, rel=0.005)
    assert got["clips"] == {"used": 24_000, "heldout": 0, "dropped": {}}
    assert got["epochs"] == pytest.approx(2010 * 256 / 24_000, rel=1e-3)
    # It took 169.6 GPU-hours at about 11 % MFU: the pessimistic end of the interval.
    assert got["gpu_hours"]["low"] < got["gpu_hours"]["value"] < 169.6 < 1.02 * got["gpu_hours"]["high"]
    assert got["gpu_hours"]["high"] == pytest.approx(169.6, rel=0.05)
    assert got["step_s"]["high"] == pytest.approx(9.5, rel=0.05)
    assert got["wall_h"]["value"] * 32 == pytest.approx(got["gpu_hours"]["value"], rel=1e-3)
    assert got["usd"]["value"] == pytest.approx(2.5 * got["gpu_hours"]["value"], rel=1e-3)
    assert got["energy_kwh"]["high"] == pytest.approx(0.7 * got["gpu_hours"]["high"], rel=1e-3)
    assert got["memory_gib"]["activations_checkpointed"] == pytest.approx(33.1, rel=0.05)
    assert got["memory_gib"]["activations"] == pytest.approx(306, rel=0.05)
    assert got["memory_gib"]["total"] < 80 * 1e9 / 2**30
    assert got["memory_basis"]["reason"] is None
    assert got["memory_basis"]["parameters"] == 767_452_100  # the null text embedding, 200 x 4096, is a buffer
    assert BucketPlan.from_json(got["buckets"]).used == 24_000


@pytest.mark.slow
def test_forecast_of_the_origins_64_frame_run_balances_its_micro_batches(monkeypatch):
    monkeypatch.setenv("BRICKREEL_GPU", "NVIDIA H100 80GB HBM3")
    monkeypatch.setenv("BRICKREEL_GPUS", "32")
    settings = origin({1: (1.0, 256), 32: (1.0, 8), 64: (1.0, 4)})
    data = settings.runs["r"].data
    index = [
        *rows(data, "360p-1", 17_000, 1, (360, 640)),
        *rows(data, "360p-32", 14_000, 32, (360, 640)),
        *rows(data, "360p-64", 10_000, 64, (360, 640)),
    ]
    got = planned(settings, index)
    bucket = {row["name"]: row for row in got["per_bucket"]}
    assert bucket["360p-64"]["forward_tflop_per_sample"] == pytest.approx(87.8, rel=0.01)
    assert {row["tokens_per_sample"] * row["micro_batch"] for row in got["per_bucket"]} == {235_520}
    assert got["tokens_per_step"] == 32 * 235_520
    assert got["clips"]["dropped"] == {"remainder": 17_000 % 256}
    text, latents = 41_000 * 200 * 4096 * 2, (17_000 + 32 * 14_000 + 64 * 10_000) * 45 * 80 * 4 * 2 * 2
    assert got["disk_gib"]["latents"] == pytest.approx((text + latents) / 2**30, rel=0.01)


def test_what_is_not_known_is_null_with_a_reason_and_never_zero():
    settings = origin({32: (1.0, 8)})
    got = planned(settings, rows(settings.runs["r"].data, "360p-32", 64, 32, (360, 640)))
    for name in ("step_s", "wall_h", "gpu_hours", "energy_kwh", "usd", "captioning_usd"):
        assert got[name]["value"] is None, name
        assert got[name]["reason"], name


def test_a_price_without_gpu_hours_and_electricity_alone(monkeypatch):
    monkeypatch.setenv("BRICKREEL_GPU", "NVIDIA A100-SXM4-80GB")
    monkeypatch.setenv("BRICKREEL_GPUS", "8")
    monkeypatch.setenv("BRICKREEL_USD_PER_KWH", "0.3")
    settings = origin({32: (1.0, 4)})
    got = planned(settings, rows(settings.runs["r"].data, "360p-32", 64, 32, (360, 640)))
    assert got["usd"]["value"] == pytest.approx(0.3 * got["energy_kwh"]["value"], rel=1e-3)


def test_prices_come_from_the_sites_file_too():
    files.write_text("slurm/site.env", "BRICKREEL_GPU='NVIDIA H100 80GB HBM3'\nexport BRICKREEL_GPUS=16\n")
    settings = origin({32: (1.0, 8)})
    got = planned(settings, rows(settings.runs["r"].data, "360p-32", 64, 32, (360, 640)))
    assert got["basis"]["gpus"] == 16
    assert got["gpu_hours"]["value"] > 0


def test_a_run_that_cannot_fit_is_refused_and_nothing_is_written(monkeypatch):
    monkeypatch.setenv("BRICKREEL_GPU", "NVIDIA H100 80GB HBM3")
    settings = origin({32: (1.0, 8)}, grad_checkpoint=False)
    with pytest.raises(ValueError, match=r"360p-32 needs .* GiB per GPU .* set grad_checkpoint: true"):
        planned(settings, rows(settings.runs["r"].data, "360p-32", 64, 32, (360, 640)))
    assert not Path("results/plan").exists()


def test_a_run_without_clips_is_refused(monkeypatch):
    settings = origin({32: (1.0, 8)})
    index = rows(settings.runs["r"].data, "360p-32", 3, 32, (360, 640), outcome="dropped", reason="too_short")
    with pytest.raises(ValueError, match=r"no training clip is left .*3 too_short"):
        planned(settings, index)
    assert not Path("results/plan").exists()


def test_before_encode_there_is_a_sentence():
    with pytest.raises(FileNotFoundError, match="run the stage that writes it first"):
        plan.run(origin({32: (1.0, 8)}), "r")


@pytest.mark.parametrize("value", ["many", "-3", "0.5"])
def test_a_wrong_variable_is_named(monkeypatch, value):
    monkeypatch.setenv("BRICKREEL_GPUS", value)
    settings = origin({32: (1.0, 8)})
    with pytest.raises(ValueError, match="BRICKREEL_GPUS"):
        planned(settings, rows(settings.runs["r"].data, "360p-32", 64, 32, (360, 640)))


def test_calibration_measures_this_machine_and_needs_no_gpu():
    data = {"buckets": {"64p": {4: (1.0, 2), 1: (1.0, 4)}}}
    run = {"data": data, "max_steps": 10, "micro_batches": 2, "precision": "fp32", "grad_checkpoint": False}
    base = {"transformer": {"path": model_folder("tiny")}}
    settings = config.load({"base": base, "runs": {"r": run}, "plan": {"calibrate": True, "calibrate_s": 1}})
    data = settings.runs["r"].data
    index = [
        *rows(data, "64p-4", 8, 4, (64, 64), text_tokens=12),
        *rows(data, "64p-1", 8, 1, (64, 64), text_tokens=12),
    ]
    got = planned(settings, index)
    assert 0 < got["step_s"]["low"] < got["step_s"]["value"] < got["step_s"]["high"]
    assert got["basis"]["kind"] == "calibration"
    assert set(got["basis"]["micro_batch_s"]) == {"64p-4", "64p-1"}
    assert got["wall_h"]["value"] > 10 * got["step_s"]["value"] / 3600 * 0.99
    assert got["gpu_hours"]["value"] is None
    assert "GPU" in got["gpu_hours"]["reason"]


def small(**changes) -> dict:
    """The forecast of a run of the tiny model on this machine."""
    run = {"data": {"buckets": {"64p": {4: (1.0, 2)}}}, "max_steps": 10, "micro_batches": 2, "precision": "fp32"}
    base = {"transformer": {"path": model_folder("tiny")}}
    settings = config.load({"base": base, "runs": {"r": run | {"grad_checkpoint": False} | changes}})
    return planned(settings, rows(settings.runs["r"].data, "64p-4", 8, 4, (64, 64), text_tokens=12))


def test_gradients_of_a_step_of_one_micro_batch_come_while_activations_go():
    two, one = small(), small(micro_batches=1)
    assert one["memory_gib"]["activations"] == two["memory_gib"]["activations"]
    assert one["memory_gib"]["gradients"] < 0.7 * two["memory_gib"]["gradients"]
    states = sum(two["memory_gib"][name] for name in ("weights", "gradients", "optimizer", "ema"))
    assert states < one["memory_gib"]["total"] < two["memory_gib"]["total"]


@pytest.mark.slow
def test_forecasts_of_memory_and_time_follow_the_share_of_blocks_that_are_recomputed(monkeypatch):
    monkeypatch.setenv("BRICKREEL_GPUS", "32")
    monkeypatch.setenv("BRICKREEL_GPU", "NVIDIA H100 80GB HBM3")
    none, half, whole = (
        planned(settings, rows(settings.runs["r"].data, "360p-32", 64, 32, (360, 640)))
        for settings in (origin({32: (1.0, 1)}, grad_checkpoint=share) for share in (False, 0.5, True))
    )
    kept = [got["memory_gib"]["activations_checkpointed"] for got in (whole, half)]
    assert kept[0] < kept[1] < half["memory_gib"]["activations"]
    assert none["memory_gib"]["activations_checkpointed"] == kept[0], "what it would be"
    totals = [got["memory_gib"]["total"] for got in (whole, half, none)]
    assert totals == sorted(totals)
    assert totals[1] - totals[0] == pytest.approx(1.05 * (kept[1] - kept[0]), rel=1e-2)
    for got, passes in ((none, 3), (half, 3.5)):
        assert got["step_s"]["value"] == pytest.approx(passes / 4 * whole["step_s"]["value"], rel=1e-3)


def test_a_lora_run_holds_states_of_its_additions_only():
    whole, additions = small(), small(lora={"rank": 4})
    trained = additions["memory_basis"]["trained"]
    assert 0 < trained < 0.1 * additions["memory_basis"]["parameters"]
    assert additions["memory_gib"]["weights"] > whole["memory_gib"]["weights"]
    for name, size in (("gradients", 4), ("optimizer", 8), ("ema", 4)):
        assert additions["memory_gib"][name] == pytest.approx(size * trained / 2**30, rel=1e-3), name
    assert additions["memory_gib"]["activations"] < whole["memory_gib"]["activations"]
    assert additions["disk_gib"]["checkpoints"] < 0.1 * whole["disk_gib"]["checkpoints"]
    assert additions["disk_gib"]["final"] == whole["disk_gib"]["final"], "additions are merged into final weights"


@pytest.mark.slow
def test_every_backend_keeps_activations_in_the_precision_of_the_products(monkeypatch):
    monkeypatch.setenv("BRICKREEL_GPUS", "8")
    kept = {}
    for backend, precision in (("ddp", "fp32"), ("ddp", "bf16"), ("colossalai", "bf16")):
        settings = origin({32: (1.0, 8)}, backend=backend, precision=precision)
        got = planned(settings, rows(settings.runs["r"].data, "360p-32", 64, 32, (360, 640)))
        kept[backend, precision] = got["memory_gib"]
    for name in ("activations", "activations_checkpointed"):
        assert kept["ddp", "fp32"][name] > 1.4 * kept["ddp", "bf16"][name], name
        assert kept["ddp", "bf16"][name] == pytest.approx(kept["colossalai", "bf16"][name], rel=0.05), name
    assert kept["colossalai", "bf16"]["activations_checkpointed"] == pytest.approx(33.0, rel=0.01)


def test_fsdp2_holds_whole_gradients_while_it_adds_up_micro_batches(monkeypatch):
    monkeypatch.setenv("BRICKREEL_GPUS", "4")
    alone, several = small(micro_batches=4), small(micro_batches=5)
    assert several["memory_basis"]["backend"] == "fsdp2"
    assert several["memory_gib"]["gradients"] == pytest.approx(4 * alone["memory_gib"]["gradients"], rel=1e-3)
    for name in ("weights", "optimizer", "ema"):
        assert several["memory_gib"][name] == alone["memory_gib"][name], name


def test_an_online_run_says_that_its_encoders_are_not_counted_where_they_are_not_here():
    got, latents = small(online=True), small()
    assert "autoencoder and text encoder" in got["memory_basis"]["reason"]
    assert latents["memory_basis"]["reason"] is None
    assert got["memory_gib"]["total"] == latents["memory_gib"]["total"]


def test_prompts_that_are_too_long_for_the_model_are_told_before_training():
    settings = origin({32: (1.0, 8)})
    index = rows(settings.runs["r"].data, "360p-32", 24, 32, (360, 640), text_tokens=201)
    with pytest.raises(ValueError, match="201 text tokens here, but the model takes 200"):
        planned(settings, index)
    assert not Path("results/plan/r/plan.json").exists()


@pytest.mark.slow
def test_more_gpus_than_micro_batches_are_no_faster_and_that_is_told(monkeypatch, caplog):
    monkeypatch.setattr(plan.logger, "propagate", True)
    monkeypatch.setenv("BRICKREEL_GPU", "NVIDIA H100 80GB HBM3")
    got = {}
    for gpus in (16, 24, 32, 64):
        monkeypatch.setenv("BRICKREEL_GPUS", str(gpus))
        settings = origin({32: (1.0, 1)}, ema_decay=0.99)
        got[gpus] = planned(settings, rows(settings.runs["r"].data, "360p-32", 64, 32, (360, 640)))
    assert got[64]["step_s"] == got[32]["step_s"]
    assert got[24]["step_s"] == got[16]["step_s"]
    assert got[16]["step_s"]["value"] == pytest.approx(2 * got[32]["step_s"]["value"], rel=1e-3)
    assert got[64]["gpu_hours"]["value"] == pytest.approx(2 * got[32]["gpu_hours"]["value"], rel=1e-3)
    assert [len(got[gpus]["warnings"]) for gpus in (16, 24, 32, 64)] == [0, 1, 0, 1]
    assert "32 ranks are as fast, the other 32 are paid for nothing" in caplog.text


@pytest.mark.slow
def test_a_lora_run_has_a_shorter_backward_pass(monkeypatch):
    monkeypatch.setenv("BRICKREEL_GPU", "NVIDIA H100 80GB HBM3")
    monkeypatch.setenv("BRICKREEL_GPUS", "8")
    times, flops = {}, {}
    for name, changes in {
        "whole": {},
        "additions": {"lora": {}},
        "again": {"lora": {}, "grad_checkpoint": False},
    }.items():
        settings = origin({32: (1.0, 1)}, **({"grad_checkpoint": True} | changes))
        got = planned(settings, rows(settings.runs["r"].data, "360p-32", 64, 32, (360, 640)))
        times[name], flops[name] = got["step_s"]["value"], got["flops_per_step"]
    assert 2 / 3 < flops["additions"] / flops["whole"] < 0.75
    # What is recomputed is one forward pass in both.
    assert times["additions"] / times["whole"] == pytest.approx(
        (3 * flops["additions"] / flops["whole"] + 1) / 4, rel=1e-3
    )
    assert times["again"] < times["additions"]
