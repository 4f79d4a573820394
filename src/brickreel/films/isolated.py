"""Work on one film in a process of its own: a decoder that hangs, crashes or eats memory harms no other film."""

import errno
import fcntl
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

GIB = 2**30
# Seconds between two signs of progress: far fewer than any film may stall for.
PULSE_S = 1.0


class Limits(NamedTuple):
    """What one film may take."""

    seconds: float
    """In all."""
    stall_s: float
    """Without a sign of progress."""
    memory_gib: float


class Pulse:
    """Tells `progress` that the work goes on, at most once in `PULSE_S` seconds: to be called as often as may be."""

    def __init__(self, progress: Callable[[Any], None] | None) -> None:
        self.progress = progress
        self.told = time.monotonic()

    def __call__(self, value: Any) -> None:
        """Say how far the work is, unless that was said just now."""
        now = time.monotonic()
        if self.progress and now - self.told >= PULSE_S:
            self.told = now
            self.progress(value)


def call(
    work: Callable[..., Any], arguments: tuple[Any, ...], limits: Limits, watch: Callable[[Any], None] | None = None
) -> Any:
    """Return `work(*arguments, progress)` from a child process; `progress(value)` reaches `watch` here.

    `work` is a function of a module, its arguments are plain values, paths absolute. Raises ValueError with the reason
    when the child fails in any way: its own ValueError or OSError, a crash, a limit; OSError when the disk is full,
    which is no fault of the film. The child ends with this process, however that ends.
    """
    context = _context()
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(there, work, arguments, limits.memory_gib), daemon=True)
    child.start()
    there.close()
    try:
        return _listen(here, child, limits, watch)
    finally:
        if child.is_alive():
            child.kill()
        child.join()
        here.close()


def _listen(pipe: Connection, child: Any, limits: Limits, watch: Callable[[Any], None] | None) -> Any:
    end = time.monotonic() + limits.seconds
    while True:
        left = end - time.monotonic()
        if not pipe.poll(max(0.0, min(left, limits.stall_s))):
            if left <= limits.stall_s:
                raise ValueError(f"took longer than the limit of {limits.seconds:.0f} s")
            raise ValueError(f"hangs: no progress for {limits.stall_s:.0f} s")
        try:
            kind, value = pipe.recv()
        except (EOFError, ConnectionError):
            child.join(5)
            raise ValueError(_death(child.exitcode)) from None
        if kind == "result":
            return value
        if kind == "error":
            raise ValueError(value)
        if kind == "full":
            raise OSError(errno.ENOSPC, value)
        if watch:
            watch(value)


def _death(status: int | None) -> str:
    if status is not None and status < 0:
        return f"crashes the decoder (signal {-status})"
    return f"ends its process with status {status}"


def _run(pipe: Connection, work: Callable[..., Any], arguments: tuple[Any, ...], memory_gib: float) -> None:
    _end_with_caller()
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory_gib * GIB), int(memory_gib * GIB)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        result = work(*arguments, lambda done: pipe.send(("progress", done)))
    except MemoryError:
        pipe.send(("error", f"needs more than {memory_gib:g} GiB of memory"))
    except (ValueError, OSError) as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        pipe.send(("full" if full else "error", str(error)))
    except Exception as error:
        pipe.send(("error", f"unexpected {type(error).__name__}: {error}"))
    else:
        pipe.send(("result", result))


def _end_with_caller() -> None:
    """In the child: get SIGKILL when the process that called dies, however it dies, even while a decoder hangs."""
    caller = multiprocessing.parent_process()
    assert caller
    # Not PR_SET_PDEATHSIG: the parent is the fork server, which itself lives for as long as it has children. The pipe
    # behind the sentinel is held open by the caller alone, and the kernel signals its end.
    fcntl.fcntl(caller.sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(caller.sentinel, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(caller.sentinel, fcntl.F_SETFL, fcntl.fcntl(caller.sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    if wait([caller.sentinel], 0):
        os.kill(os.getpid(), signal.SIGKILL)


@cache
def _context() -> Any:
    # A fork server is a clean process without threads of ours, and starts a child in milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["brickreel.films.probe", "brickreel.films.signals", "brickreel.films.cutting"])
    return context
