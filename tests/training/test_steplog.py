"""Where a step's time goes, on a GPU whose events have no time before the device has passed them."""

import itertools

import pytest
import torch

from brickreel.training.steplog import Clock

MS_PER_EVENT = 10.0


class Event:
    """As torch's: no time before the device has passed both, which only waiting makes sure of (CUDAEvent.h)."""

    order = itertools.count()
    passed = -1

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.place = next(Event.order)

    def synchronize(self):
        Event.passed = max(Event.passed, self.place)

    def elapsed_time(self, other):
        if max(self.place, other.place) > Event.passed:
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return MS_PER_EVENT * (other.place - self.place)


def test_a_gpus_spans_are_read_after_the_device_has_passed_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = Clock(torch.device("cuda"))
    clock.add("data", 0.5)
    for _ in range(2):
        mark = clock.mark()
        mark = clock.span("forward", mark)
        clock.span("backward", mark)
    mark = clock.mark()
    clock.span("optimizer", mark)
    seconds = clock.read()
    assert seconds["forward"] == seconds["backward"] == pytest.approx(0.02)
    assert seconds["optimizer"] == pytest.approx(0.01)
    # The last backward pass exchanges gradients: it is not this rank's alone.
    assert seconds["local"] == pytest.approx(0.5 + 0.03)
    assert clock.read()["forward"] == 0


def test_on_a_cpu_the_hosts_clock_counts():
    clock = Clock(torch.device("cpu"))
    clock.add("local", 0.25)
    mark = clock.span("forward", clock.mark())
    clock.span("backward", mark)
    seconds = clock.read()
    assert seconds["local"] == 0.25
    assert 0 <= seconds["forward"] < 1
