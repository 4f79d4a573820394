"""What a film may do to the process that reads it. A module of its own: child processes must be able to import it."""

import errno
import os
import signal
import time


def work(value, progress):
    progress(value)
    return value * 2


def complain(progress):
    raise ValueError("is no film")


def crash(progress):
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(progress):
    time.sleep(60)


def never_end(progress):
    while True:
        progress(1)
        time.sleep(0.01)


def eat_memory(progress):
    return len(b"x" * 2**32)


def fill_the_disk(progress):
    raise OSError(errno.ENOSPC, "No space left on device")
