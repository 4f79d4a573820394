import pytest
import torch
import torch.nn.functional as F

import parity
from brickreel.models.stdit2 import fused
from brickreel.models.stdit2.embeddings import RotaryEmbedding, rotate


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("frames", [1, 3])
def test_the_norms_gradient_is_the_formulas(frames):
    torch.manual_seed(0)
    x, shift, scale = numbers(2, 3, 4, 8), numbers(2, frames, 1, 8), numbers(2, frames, 1, 8)
    out = fused.modulated_norm(x, shift, scale)
    assert torch.allclose(out, F.layer_norm(x, (8,), eps=1e-6) * (1 + scale) + shift)
    assert torch.autograd.gradcheck(fused.modulated_norm, (x, shift, scale))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("rotated", [False, True])
def test_the_head_norms_gradient_is_the_formulas(norm_first, rotated):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 2, 6, requires_grad=True)
    weight = torch.randn(6, requires_grad=True)
    cos, sin = (part[:, None, None, :] for part in RotaryEmbedding(6)(5))
    rope = (cos, sin) if rotated else None

    def plain(x, weight):
        value = rotate(x, cos, sin) if rotated and not norm_first else x
        value = weight * value * torch.rsqrt(value.square().mean(-1, keepdim=True) + 1e-6)
        return rotate(value, cos, sin) if rotated and norm_first else value

    out, wanted = fused.head_norm(x, weight, rope, norm_first), plain(x, weight)
    assert torch.allclose(out, wanted, atol=1e-6)
    seed = torch.randn_like(out)
    found = torch.autograd.grad(out, (x, weight), seed)
    for mine, theirs in zip(found, torch.autograd.grad(wanted, (x, weight), seed), strict=True):
        assert torch.allclose(mine, theirs, atol=2e-5)


def test_the_layers_input_is_made_again_and_not_kept():
    made = []

    def make(x):
        made.append(x)
        return x.exp()

    layer = torch.nn.Linear(16, 8)
    x = torch.randn(4, 5, 16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        out = fused.linear_of(make, (x,), layer)
    assert kept.count(4 * 5 * 16) == 1  # what exp itself keeps; nothing for the layer
    found = torch.autograd.grad(out.square().sum(), (x, layer.weight))
    assert len(made) == 2
    wanted = torch.autograd.grad(layer(x.exp()).square().sum(), (x, layer.weight))
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.equal(mine, theirs)


def test_under_autocast_gradients_are_those_of_plain_layers():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(16, 16), torch.randn(2, 3, 4, 16, requires_grad=True)
    shift, scale = torch.randn(2, 1, 1, 16), torch.randn(2, 1, 1, 16)
    with torch.autocast("cpu", torch.bfloat16):
        mine = fused.linear_of(fused.modulated_norm, (x, shift, scale), layer)
        plain = layer(F.layer_norm(x, (16,), eps=1e-6) * (1 + scale) + shift)
    assert mine.dtype == plain.dtype == torch.bfloat16
    found, wanted = (torch.autograd.grad(value.float().square().sum(), x)[0] for value in (mine, plain))
    assert torch.allclose(found, wanted, rtol=0.02, atol=0.02)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Functions are traced, and what comes out is called: for kernels it would take a compiler."""
    monkeypatch.setattr(fused.Kernels, "compiled", True)
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic, options: real(f, backend="eager", dynamic=dynamic))
    monkeypatch.setattr(fused, "_on_gpu", lambda value: True)


def test_a_compiled_kernel_serves_many_shapes_and_is_the_function(as_on_a_gpu):
    compiled = []

    @fused.one_kernel
    def scaled_sum(x, scale):
        compiled.append(torch.compiler.is_compiling())
        return (x * scale).sum(-1)

    for rows in (3, 4, 5, 6):
        x = torch.randn(rows, 2, 5, 7, requires_grad=True)
        for scale in torch.randn(rows, 1, 6, 1, 7).unbind(2):
            assert torch.allclose(scaled_sum(x, scale), (x * scale).sum(-1), atol=1e-6)
    assert compiled
    assert all(compiled)


def test_without_a_compiler_the_function_is_called_and_that_is_said_once(as_on_a_gpu, monkeypatch):
    def compiler(function, **options):
        def fail(*args):
            raise torch._dynamo.exc.BackendCompilerFailed(fail, RuntimeError("Failed to find C compiler"), None)

        return fail

    monkeypatch.setattr(torch, "compile", compiler)
    double = fused.one_kernel(lambda x: 2 * x)
    with pytest.warns(UserWarning, match="steps take longer: .*C compiler"):
        assert double(torch.ones(2)).tolist() == [2, 2]
    assert not fused.Kernels.compiled
    assert double(torch.ones(2)).tolist() == [2, 2]


@pytest.mark.parametrize("device", parity.DEVICES)
def test_under_autocast_the_norm_keeps_its_type_and_the_layers_input_is_made_again(device):
    made = []

    def make(x, shift, scale):
        made.append(fused.modulated_norm(x, shift, scale))
        return made[-1]

    with torch.device(device):
        layer = torch.nn.Linear(16, 8)
        x = torch.randn(4, 5, 6, 16, dtype=torch.bfloat16, requires_grad=True)
        shift, scale = torch.randn(4, 1, 2, 1, 16, dtype=torch.bfloat16).unbind(2)
    with torch.autocast(device, torch.bfloat16):
        out = fused.linear_of(make, (x, shift, scale), layer)
    out.float().square().sum().backward()
    assert [value.dtype for value in made] == [torch.bfloat16] * 2
    assert torch.equal(*made)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("samples", "frames", "masked"), [(2, 4, False), (2, 4, True), (3, 1, False), (1, 5, True)])
def test_on_a_gpu_compiled_kernels_compute_what_the_functions_say(monkeypatch, dtype, samples, frames, masked):
    torch.manual_seed(0)
    with torch.device("cuda"):
        x, branch = (torch.randn(samples, frames, 6, 72) for _ in range(2))
        shift, scale, gate = torch.randn(samples, frames if masked else 1, 3, 1, 72).unbind(2)
        weight = torch.randn(24)
        rope = tuple(part[:, None, None, :].to(dtype) for part in RotaryEmbedding(24)(frames))
    given = [value.to(dtype).requires_grad_() for value in (x, branch, shift, scale, gate)] + [weight.requires_grad_()]

    def work(x, branch, shift, scale, gate, weight):
        normed = fused.modulated_norm(x, shift, scale).unflatten(-1, (3, 24))
        turned = fused.head_norm(normed, weight, rope, norm_first=False) + fused.head_norm(normed, weight, None, True)
        return fused.gated(x, gate, branch * turned.flatten(-2))

    found = {}
    for compiled in (True, False):
        monkeypatch.setattr(fused.Kernels, "compiled", compiled)
        out = work(*given)
        found[compiled] = (out, *torch.autograd.grad(out.float().square().mean(), given))
        assert fused.Kernels.compiled is compiled  # it did not give up
    for mine, theirs in zip(found[True], found[False], strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine - theirs).norm() <= (0.02 if dtype == torch.bfloat16 else 1e-5) * theirs.norm()
