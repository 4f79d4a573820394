"""Backends in one process: what they compute, apart from how many ranks there are."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from brickreel.config import Run
from brickreel.models.stdit2 import STDiT2
from brickreel.training import backends
from brickreel.training.backends.ddp import DataParallel

CPU = torch.device("cpu")


def build(**run) -> DataParallel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    return DataParallel(model, Run.model_validate(run), 1, CPU)


def step(backend, scale: float = 1.0, lr: float = 0.1) -> None:
    with backend.round(last=True):
        backend.backward(backend.wrapped(torch.ones(2, 3)).square().sum())
    backend.update(lr, scale)


def test_the_optimizer_is_adamw_of_scaled_gradients():
    backend = build(weight_decay=0.1)
    twin = build().model
    reference = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        step(backend, scale=0.25)
        reference.zero_grad()
        (0.25 * twin(torch.ones(2, 3)).square().sum()).backward()
        reference.step()
    for mine, theirs in zip(backend.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_the_average_is_exponential_and_frozen_weights_have_none():
    backend = build(ema_decay=0.9)
    expected = {name: value.detach().clone() for name, value in backend.trained()}
    assert "0.bias" not in expected
    for _ in range(4):
        step(backend)
        for name, value in backend.trained():
            expected[name] = 0.9 * expected[name] + 0.1 * value.detach()
    for name, value in expected.items():
        torch.testing.assert_close(backend.ema[name], value)


def test_swapping_twice_changes_nothing_and_once_shows_the_average():
    backend = build(ema_decay=0.5)
    step(backend)
    before = {name: value.detach().clone() for name, value in backend.trained()}
    average = {name: value.clone() for name, value in backend.ema.items()}
    backend.swap_ema()
    assert all(torch.equal(value, average[name]) for name, value in backend.trained())
    backend.swap_ema()
    assert all(torch.equal(value, before[name]) for name, value in backend.trained())


def test_squares_are_of_gradients_and_trained_weights():
    backend = build()
    backend.backward(backend.model(torch.ones(2, 3)).sum())
    gradients = sum(float(value.grad.double().square().sum()) for _, value in backend.trained())
    weights = sum(float(value.detach().double().square().sum()) for _, value in backend.trained())
    assert backend.squares().tolist() == pytest.approx([gradients, weights], rel=1e-6)


def test_a_skipped_step_leaves_no_gradient_and_no_trace():
    backend = build()
    before = {name: value.detach().clone() for name, value in backend.state().items()}
    backend.backward(backend.model(torch.full((2, 3), torch.inf)).sum())
    backend.skip()
    assert all(value.grad is None for _, value in backend.trained())
    assert all(torch.equal(value, before[name]) for name, value in backend.state().items())
    assert backend.updates() == 0


def test_a_rank_that_is_alone_knows_that_it_waits_for_none_and_a_gpu_among_others_does_not_know():
    alone = build()
    assert alone.tells_comm
    assert alone.tells_local
    among = build()
    among.world_size = 2
    assert (among.tells_comm, among.tells_local) == (True, True)
    among.device = torch.device("cuda")
    assert (among.tells_comm, among.tells_local) == (False, True)


def test_the_default_backend_follows_the_machine():
    cuda = torch.device("cuda", 0)
    assert [backends.choose("auto", *place) for place in ((1, CPU), (8, CPU), (1, cuda), (8, cuda))] == [
        "ddp",
        "ddp",
        "ddp",
        "fsdp2",
    ]
    assert backends.choose("colossalai", 8, cuda) == "colossalai"


@pytest.mark.parametrize("name", ["fsdp2", "colossalai"])
def test_sharding_backends_ask_for_several_ranks_in_one_sentence(name):
    with pytest.raises(ValueError, match=f"backend {name} needs several ranks: use ddp for one process"):
        backends.build(name, nn.Linear(2, 2), Run(), 1, CPU)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_what_goes_from_block_to_block_has_the_precision_of_the_products(name, tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = STDiT2.preset("tiny", depth=3)
        seen = []
        for block in model.blocks:
            block.register_forward_pre_hook(lambda block, given: seen.append(given[0].dtype))
        backend = backends.build(name, model, Run(precision="bf16"), 1, CPU)
        sizes = {key: torch.ones(1) for key in ("num_frames", "height", "width", "fps")}
        with torch.autocast("cpu", torch.bfloat16):
            out = backend.wrapped(torch.ones(1, 8, 2, 4, 4), torch.ones(1), torch.ones(1, 1, 4, 64), **sizes)
    finally:
        dist.destroy_process_group()
    assert seen == [torch.bfloat16] * 3
    assert out.dtype == torch.float32
