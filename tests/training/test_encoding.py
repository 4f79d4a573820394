import pytest
import torch

from brickreel.training.encoding import choose_device


@pytest.mark.parametrize(("visible", "taken"), [(8, 3), (1, 0), (2, 1)])
def test_a_rank_takes_one_of_the_gpus_that_it_sees(monkeypatch, visible, taken):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert choose_device("auto", 3) == torch.device("cuda", taken)
    assert choose_device("cpu", 3) == torch.device("cpu")


def test_a_gpu_that_is_asked_for_in_vain_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", 3) == torch.device("cpu")
    with pytest.raises(ValueError, match="torch finds no GPU: use auto or cpu"):
        choose_device("cuda")
