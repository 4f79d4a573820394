"""Requests to stop: preemption and time limits come as signals, and training answers between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


class StopRequest:
    """Which signal arrived, if any."""

    def __init__(self) -> None:
        self.name = ""

    def __bool__(self) -> bool:
        return bool(self.name)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler: only remembers, since a signal may arrive in the middle of a collective."""
        self.name = signal.Signals(number).name


@contextmanager
def noticed() -> Iterator[StopRequest]:
    """Remember signals instead of dying of them; the handlers before come back at the end."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
