"""The model in training: recomputation, compilation, kernels that may not be there, waiting for the device."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import parity
from brickreel.diffusion.iddpm import IDDPM
from brickreel.models.stdit2 import attention
from brickreel.models.stdit2.model import STDiT2


def gradients(model, x_mask=None):
    """Loss and gradients of one step on the reference's masked case."""
    case = parity.case("train_loss_cases", "xmask")
    kwargs = {"y": case["y"], "mask": case["mask"], **parity.made_sizes(3, case["x0"].shape[2])}
    model.zero_grad(set_to_none=True)
    losses = IDDPM().training_losses(model, case["x0"], case["t"], case["noise"], kwargs, case["x_mask"])
    losses["loss"].mean().backward()
    return losses["loss"].detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("share", "low", "high"), [(1, 1.2, 1.35), (0.5, 1.1, 1.18), (0, 1, 1)])
def test_recomputed_blocks_give_the_same_gradients_for_up_to_a_third_more_products(share, low, high):
    model = parity.model()
    with parity.flop_counter() as plain:
        loss, wanted = gradients(model)
    model.recompute(share)
    with parity.flop_counter() as recomputed:
        again, found = gradients(model)
    assert torch.equal(loss, again)
    assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)
    assert low <= recomputed.get_total_flops() / plain.get_total_flops() <= high


def test_the_share_of_recomputed_blocks_is_one_at_most():
    with pytest.raises(ValueError, match="from 0 to 1, not 2"):
        parity.model().recompute(2)


def test_without_checkpointing_no_product_is_computed_twice():
    """Backward takes twice forward's products, whatever else it makes again."""
    case, model = parity.case("forward_cases", "vid_xmask"), parity.model()
    case["x"].requires_grad_()
    with parity.flop_counter() as forward:
        out = model(case["x"], case["t"], case["y"], case["mask"], case["x_mask"], **parity.sizes(case))
    with parity.flop_counter() as backward:
        out.square().mean().backward()
    products = ("aten.mm", "aten.addmm", "aten.bmm", "mkldnn._linear_pointwise")
    counts = [
        sum(v for op, v in counter.get_flop_counts()["Global"].items() if str(op) in products)
        for counter in (forward, backward)
    ]
    assert counts[1] <= 2 * counts[0]


def kept_vectors(depth, share=None):
    """Memory that is still held after forward, in vectors of the hidden size per token."""
    torch.manual_seed(0)
    model = STDiT2(**{**parity.SIZES, "depth": depth})
    if share is not None:
        model.recompute(share)
    frames, text = torch.randn(1, 4, 8, 16, 16), torch.randn(1, 1, 2, 48)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        out = model(frames, torch.tensor([3]), text, **parity.made_sizes(1, 8))
    assert out.requires_grad
    tokens, hidden = 8 * 64, 144
    return sum(event.self_cpu_memory_usage for event in profiler.events()) / (4 * tokens * hidden)


@pytest.mark.parametrize(("share", "vectors"), [(None, 22), (0.5, 12), (1, 1.5)])
def test_activations_that_are_kept_are_few_and_recomputed_blocks_keep_their_input_alone(share, vectors):
    """Per block and token: about 21 vectors of the hidden size where plain formulas keep more than 40."""
    assert (kept_vectors(4, share) - kept_vectors(2, share)) / 2 < vectors


@pytest.mark.slow
@pytest.mark.timeout(900)  # a C++ compiler works for a minute of its own, and longer beside other work
@pytest.mark.parametrize(("share", "backend"), [(0, "inductor"), (1, "aot_eager")])
def test_the_padded_path_compiles_as_one_graph_and_trains_the_same(share, backend):
    case, model = parity.case("forward_cases", "vid_xmask"), parity.model()
    model.recompute(share)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    given = (case["x"], case["t"], case["y"], case["mask"], case["x_mask"])
    wanted = model(*given, **parity.sizes(case))
    wanted.square().mean().backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    found = compiled(*given, **parity.sizes(case))
    found.square().mean().backward()
    assert torch.allclose(found, wanted, atol=1e-5)
    assert all(torch.allclose(p.grad, gradient[n], atol=1e-4) for n, p in model.named_parameters() if n in gradient)


def test_under_autocast_it_is_one_graph_too():
    case, model = parity.case("forward_cases", "vid_xmask"), parity.model()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    given = (case["x"], case["t"], case["y"], case["mask"], case["x_mask"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(compiled(*given, **parity.sizes(case)), model(*given, **parity.sizes(case)), atol=1 / 16)


def test_flash_is_refused_where_it_is_not_installed_and_auto_does_without(monkeypatch):
    monkeypatch.setattr(attention, "flash_kernel", lambda: None)
    monkeypatch.setattr("brickreel.models.stdit2.model.flash_kernel", lambda: None)
    with pytest.raises(ValueError, match="needs the flash-attn package"):
        STDiT2(**parity.SIZES, attn_implementation="flash")
    case, model = parity.case("forward_cases", "vid_even"), parity.model()
    assert model.config.attn_implementation == "auto"
    model(case["x"], case["t"], case["y"], [3, 4], **parity.sizes(case))


def test_the_packed_path_of_flash_computes_what_the_padded_one_does(monkeypatch):
    """flash-attn's function, here written with torch by its documented contract, gets what it needs."""

    def varlen(q, k, v, cu_q, cu_k, max_q, max_k, deterministic):
        assert cu_q.dtype == cu_k.dtype == torch.int32
        assert (cu_k.diff().max(), cu_q.diff().max()) == (max_k, max_q)
        parts = []
        for (a, b), (c, d) in zip(cu_q.unfold(0, 2, 1).tolist(), cu_k.unfold(0, 2, 1).tolist(), strict=True):
            heads = (part.transpose(0, 1)[None] for part in (q[a:b], k[c:d], v[c:d]))
            parts.append(torch.nn.functional.scaled_dot_product_attention(*heads)[0].transpose(0, 1))
        return torch.cat(parts)

    monkeypatch.setattr(attention, "flash_kernel", lambda: varlen)
    monkeypatch.setattr("brickreel.models.stdit2.model.flash_kernel", lambda: varlen)
    case, model = parity.case("forward_cases", "vid_even"), parity.model()
    flash = STDiT2(**parity.SIZES, attn_implementation="flash").eval()
    flash.load_state_dict(model.state_dict())
    given = (case["x"], case["t"], case["y"], [5, 9])
    assert torch.allclose(flash(*given, **parity.sizes(case)), model(*given, **parity.sizes(case)), atol=5e-6)


@pytest.mark.gpu
@pytest.mark.skipif(attention.flash_kernel() is None, reason="flash-attn is not installed")
def test_flash_attn_finds_the_gradients_that_sdpa_finds():
    case, found = parity.on("cuda", parity.case("forward_cases", "vid_even")), {}
    for way in ("flash", "sdpa"):
        model = STDiT2(**parity.SIZES, attn_implementation=way).eval()
        model.load_state_dict(parity.model().state_dict())
        model.cuda()
        with torch.autocast("cuda", torch.bfloat16):
            out = model(case["x"], case["t"], case["y"], [5, 9], **parity.sizes(case))
        out.square().mean().backward()
        found[way] = {"out": out.detach()} | {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    for name, theirs in found["sdpa"].items():
        assert (found["flash"][name] - theirs).norm() <= 0.02 * theirs.norm() + 1e-6, name


@pytest.mark.gpu
def test_forward_never_waits_for_the_gpu():
    case, model = parity.case("forward_cases", "vid_xmask"), parity.model().cuda()
    given = {name: value.cuda() for name, value in case.items()}
    sizes = parity.sizes(given)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(given["x"], given["t"], given["y"], given["mask"], given["x_mask"], **sizes)
        model(given["x"], given["t"], given["y"], [5] * len(given["x"]), given["x_mask"], **sizes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
