"""The ffmpeg program: the system's, or the one inside the imageio-ffmpeg wheel."""

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any


@cache
def program() -> str:
    """Path of an ffmpeg binary. Raises FileNotFoundError when there is none."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise FileNotFoundError("no ffmpeg: install it on the system, or the package imageio-ffmpeg") from error


def run(stream: Any, timeout_s: float, overwrite: bool = True) -> None:
    """Run a command built with ffmpeg-python, without a shell.

    Raises ValueError with ffmpeg's last words when it fails, TimeoutError when it takes longer than `timeout_s`.
    """
    arguments = [program(), "-nostdin", "-loglevel", "error", *stream.get_args(), *(["-y"] if overwrite else [])]
    try:
        done = subprocess.run(arguments, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"ffmpeg took longer than {timeout_s:.0f} s") from error
    if done.returncode:
        raise failure(done.returncode, done.stderr)


def failure(status: int, stderr: bytes) -> ValueError | OSError:
    """The error that ffmpeg's last words amount to: OSError for a full disk, which no other film escapes either."""
    words = stderr.decode(errors="replace").strip().splitlines()
    full = os.strerror(errno.ENOSPC)
    if any(full in line for line in words):
        return OSError(errno.ENOSPC, full)
    return ValueError(f"ffmpeg failed with status {status}: {words[-1] if words else 'no message'}")


class Pipe:
    """A running command that reads raw pictures from its standard input."""

    def __init__(self, stream: Any, folder: Path) -> None:
        """Start a command built with ffmpeg-python in `folder`, which relative outputs count from."""
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `close`)
        arguments = [program(), "-loglevel", "error", *stream.get_args(), "-y"]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stderr=self.complaints, cwd=folder)

    def write(self, picture: bytes) -> None:
        """Hand over one picture. Raises as `failure` when ffmpeg has ended."""
        assert self.process.stdin
        try:
            self.process.stdin.write(picture)
        except BrokenPipeError:
            self.finish()

    def finish(self) -> None:
        """Wait until everything is written. Raises as `failure`."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        status = self.process.wait()
        if status:
            self.complaints.seek(0)
            raise failure(status, self.complaints.read())

    def close(self) -> None:
        """End the command, finished or not."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.complaints.close()
