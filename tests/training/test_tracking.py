import threading
import time

from brickreel.training import tracking
from brickreel.training.tracking import TensorBoard, Trackers


class Broken:
    """A tracker whose server is away."""

    def __init__(self, run, folder):
        raise ConnectionError("no server")


class Slow:
    """A tracker that answers when it is let, and fails at the third point."""

    def __init__(self, run, folder):
        type(self).points, self.answers = [], Slow.answers

    def write(self, step, values):
        self.answers.wait()
        if step == 3:
            raise OSError("disk full")
        self.points.append((step, dict(values)))

    def close(self):
        self.points.append("closed")


def test_curves_arrive_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = Trackers(("tensorboard",), "run", tmp_path)
    for step in (10, 20):
        trackers.write(step, {"train/loss": 1.0 / step})
    trackers.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(point.step, round(point.value, 6)) for point in events.Scalars("train/loss")] == [(10, 0.1), (20, 0.05)]


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tracking.logger, "propagate", True)
    kinds = {"broken": Broken, "slow": Slow, "tensorboard": TensorBoard}
    Slow.answers = threading.Event()
    trackers = Trackers(("broken", "slow", "tensorboard"), "run", tmp_path, kinds)
    for step in range(1, 6):
        trackers.write(step, {"loss": 1.0})  # returns, though no tracker has answered
    Slow.answers.set()
    trackers.close()
    assert Slow.points == [(1, {"loss": 1.0}), (2, {"loss": 1.0})]
    assert "tracker broken is left out: ConnectionError: no server" in caplog.text
    assert "tracker slow is left out: OSError: disk full" in caplog.text
    assert list((tmp_path / "tensorboard").iterdir())


def test_without_trackers_nothing_is_written(tmp_path):
    trackers = Trackers((), "run", tmp_path)
    trackers.write(1, {"loss": 1.0})
    trackers.close()
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_stuck_does_not_hold_up_the_end(tmp_path):
    Slow.answers = threading.Event()
    trackers = Trackers(("slow",), "run", tmp_path, {"slow": Slow})
    for step in range(tracking.WAITING_POINTS + 10):
        trackers.write(step, {"loss": 1.0})
    began = time.monotonic()
    trackers.close(timeout_s=0.2)
    assert time.monotonic() - began < 5
    Slow.answers.set()
