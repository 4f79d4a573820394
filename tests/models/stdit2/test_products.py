import pytest
import torch
import torch.nn.functional as F

from brickreel.models.stdit2 import products
from brickreel.models.stdit2.products import Linear, linear


@pytest.fixture(autouse=True)
def _as_on_amd(monkeypatch):
    monkeypatch.setattr(products, "_on_amd", lambda: True)


@pytest.mark.parametrize(("inner", "outer"), [(24, 72), (96, 24), (32, 32)])
@pytest.mark.parametrize("shape", [(2, 5, 7), (1,), (3, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_torch(inner, outer, shape, bias):
    torch.manual_seed(0)
    layer, x = Linear(inner, outer, bias=bias), torch.randn(*shape, inner)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, wanted = layer(mine), F.linear(theirs, layer.weight, layer.bias)
    assert out.shape == wanted.shape
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(out)
    found = torch.autograd.grad((out * weights).sum(), [mine, *layer.parameters()])
    expected = torch.autograd.grad((wanted * weights).sum(), [theirs, *layer.parameters()])
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_transposed_inputs_are_taken_as_they_are():
    x, weight = torch.randn(6, 9).t(), torch.randn(4, 6)
    torch.testing.assert_close(linear(x, weight, None), F.linear(x, weight), atol=1e-5, rtol=1e-5)


def test_two_runs_agree_bit_by_bit():
    torch.manual_seed(0)
    x, layer = torch.randn(300, 64, requires_grad=True), Linear(64, 96)
    runs = [(out := layer(x), *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


def test_other_types_and_autocast_and_fake_tensors_take_torch_s_own_way():
    layer = Linear(8, 4)
    assert layer.double()(torch.randn(2, 8, dtype=torch.float64)).dtype == torch.float64
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 8)).dtype == torch.bfloat16
    with torch.device("meta"):
        assert Linear(8, 4)(torch.randn(2, 8)).device.type == "meta"


def test_nothing_is_to_be_done_for_an_empty_batch():
    assert Linear(8, 4)(torch.randn(0, 8)).shape == (0, 4)


def test_elsewhere_than_on_amd_torch_multiplies(monkeypatch):
    called = []
    monkeypatch.setattr(products, "_product", lambda *inputs: called.append(inputs) or F.linear(*inputs))
    x, layer = torch.randn(3, 8), Linear(8, 4)
    for on_amd in (True, False):
        monkeypatch.setattr(products, "_on_amd", lambda on_amd=on_amd: on_amd)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert len(called) == 1
