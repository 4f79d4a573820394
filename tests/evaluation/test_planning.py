import pytest

import tiny
from brickreel.config import Base, Encode, Run
from brickreel.evaluation import planning
from brickreel.evaluation.machine import Machine
from brickreel.models import load
from brickreel.training.buckets import Bucket, BucketPlan


@pytest.fixture
def base(tmp_path) -> Base:
    return Base.model_validate(tiny.base_settings(tiny.save_base(tmp_path)))


@pytest.mark.parametrize(("on_gpu", "size"), [(True, 2), (False, 4)])
def test_encoders_take_their_parameters_in_the_precision_that_they_are_loaded_in(base, on_gpu, size):
    autoencoder = load.autoencoder(base.autoencoder.path)
    text_encoder = load.text_encoder(base.text_encoder.path)
    parameters = sum(one.numel() for part in (autoencoder.vae, text_encoder.model) for one in part.parameters())
    assert planning.encoder_bytes(base, Encode(dtype="bfloat16"), on_gpu) == size * parameters


def test_encoders_that_are_not_on_this_machine_have_no_size(base):
    missing = base.model_copy(update={"text_encoder": base.text_encoder.model_copy(update={"path": "/nowhere"})})
    assert planning.encoder_bytes(missing, Encode(), on_gpu=True) is None


@pytest.mark.slow
def test_only_an_online_run_holds_the_encoders_beside_the_model(base):
    model = planning.Model.read(load.locate("transformer", base.transformer.path))
    buckets = BucketPlan((Bucket("64p-4", 4, 64, 64, items=8, batch=2),), "", used=8, heldout=0)

    def told(online: bool, encoders: int | None) -> dict:
        settings = Run(micro_batches=2, precision="fp32", online=online)
        return planning.memory(planning.Work.of(buckets, settings, model, 12), settings, Machine(), encoders)

    latents, online = told(False, 2**30), told(True, 2**30)
    assert "encoders" not in latents["memory_gib"]
    assert online["memory_gib"]["encoders"] == 1
    assert online["memory_gib"]["total"] == pytest.approx(latents["memory_gib"]["total"] + 1, rel=1e-3)
    assert online["memory_basis"]["reason"] is None
    assert "not counted" in told(True, None)["memory_basis"]["reason"]
