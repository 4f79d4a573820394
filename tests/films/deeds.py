"""What a film may do to the process that reads it. A module of its own: child processes must be able to import it."""

import ctypes
import errno
import os
import signal
import time
from pathlib import Path

import ffmpeg

from brickreel.films.ffmpeg import Pipe


def work(value, progress):
    progress(value)
    return value * 2


def complain(progress):
    raise ValueError("is no film")


def crash(progress):
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(progress):
    time.sleep(60)


def hang_with_ffmpeg(folder, progress):
    """Write the ids of the fork server, this process and its ffmpeg, then hang in foreign code that holds the lock."""
    raw = ffmpeg.input("pipe:0", format="rawvideo", pix_fmt="gray", s="16x16", framerate="24")
    pipe = Pipe(ffmpeg.output(raw.video, "film.mp4"), folder)
    pipe.write(bytes(256))
    (Path(folder) / "begun").write_text(f"{os.getppid()} {os.getpid()} {pipe.process.pid}")
    (Path(folder) / "begun").rename(Path(folder) / "pids")
    ctypes.PyDLL(None).sleep(60)


def never_end(progress):
    while True:
        progress(1)
        time.sleep(0.01)


def eat_memory(progress):
    return len(b"x" * 2**32)


def fill_the_disk(progress):
    raise OSError(errno.ENOSPC, "No space left on device")
