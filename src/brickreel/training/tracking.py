"""Curves in TensorBoard, W&B or MLflow, beside the step log. No tracker can stop or slow a run."""

import logging
import queue
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger("brickreel")

WAITING_POINTS = 1000


class Tracker(Protocol):
    """Where curves go."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""

    def close(self) -> None:
        """The run ends."""


class TensorBoard:
    """Event files under the run's folder."""

    def __init__(self, run: str, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the event file."""
        self.writer.close()


class WandB:
    """Weights & Biases, resumed under the run's name. Its server and key come from its own variables."""

    def __init__(self, run: str, folder: Path) -> None:
        import wandb

        self.run = wandb.init(project="brickreel", name=run, id=run, resume="allow", dir=str(folder))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left."""
        self.run.finish()


class MLflow:
    """MLflow, at the server that MLFLOW_TRACKING_URI names."""

    def __init__(self, run: str, folder: Path) -> None:
        import mlflow

        self.mlflow = mlflow
        mlflow.set_experiment("brickreel")
        mlflow.start_run(run_name=run)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        self.mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """End the run."""
        self.mlflow.end_run()


_KINDS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


class Trackers:
    """All trackers of a run, fed by a thread of their own: what fails is named once and left out."""

    def __init__(self, names: Sequence[str], run: str, folder: Path, kinds: Mapping[str, Any] | None = None) -> None:
        self.points: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(WAITING_POINTS)
        self.names, self.run, self.folder, self.kinds = names, run, folder, kinds or _KINDS
        self.thread = threading.Thread(target=self._serve, name="trackers", daemon=True)
        if names:
            self.thread.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over a point; it is lost when a tracker lags a thousand points behind."""
        if self.names:
            try:
                self.points.put_nowait((step, values))
            except queue.Full:
                logger.debug("trackers lag behind: the point of step %d is lost", step)

    def close(self, timeout_s: float = 10.0) -> None:
        """Let the trackers finish, for a while."""
        if self.names and self.thread.is_alive():
            # One that is stuck leaves the queue full: the run ends without it.
            with suppress(queue.Full):
                self.points.put(None, timeout=timeout_s)
                self.thread.join(timeout_s)

    def _serve(self) -> None:
        open_trackers: dict[str, Tracker] = {}
        for name in self.names:
            self._guard(name, open_trackers, lambda name=name: self._open(name, open_trackers))
        while (point := self.points.get()) is not None:
            for name, tracker in list(open_trackers.items()):
                self._guard(name, open_trackers, lambda tracker=tracker, point=point: tracker.write(*point))
        for name, tracker in list(open_trackers.items()):
            self._guard(name, open_trackers, tracker.close)

    def _open(self, name: str, open_trackers: dict[str, Tracker]) -> None:
        open_trackers[name] = self.kinds[name](self.run, self.folder)

    def _guard(self, name: str, open_trackers: dict[str, Tracker], action: Any) -> None:
        try:
            action()
        except Exception as error:
            open_trackers.pop(name, None)
            logger.warning("tracker %s is left out: %s: %s", name, type(error).__name__, error)
