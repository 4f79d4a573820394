"""Programs and ranks in processes that are forked from one that has imported already: each start spares seconds.

Not from the server of `multiprocessing`, of which a process has one: that of brickreel's film readers, which imports
little else.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest import mock

STAGES = [f"brickreel.{name}" for name in ("stages.train", "training.loop", "training.encoding", "stages.caption")]
LATE = ["brickreel.__main__", "brickreel.captions.client", "peft", "scipy.stats", "torch.utils.tensorboard"]

_server = forkserver.ForkServer()
_server.set_forkserver_preload([*STAGES, *LATE, "snakemake.cli"])


def start(target: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """A process that calls a function of a module."""
    process = multiprocessing.get_context("forkserver").Process(target=target, args=arguments)
    with mock.patch.object(forkserver, "connect_to_new_process", _server.connect_to_new_process):
        process.start()
    return process


def program(
    words: Sequence[str], cwd: Path | None = None, streams: Sequence[Path] = (), **environment: str
) -> ForkServerProcess:
    """What `python WORDS` does, which begin with -m or -c, in this process's environment and what is added to it.

    `streams`: files that take stdout and stderr; without them nobody does.
    """
    return start(_program, words, cwd or Path.cwd(), dict(os.environ) | environment, streams or [Path(os.devnull)] * 2)


def run(module: str, arguments: Sequence[str], cwd: Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """What `python -m MODULE ARGUMENTS` does in a folder, with this process's environment."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        child = program(["-m", module, *arguments], cwd, streams)
        child.join()
        out, err = (stream.read_text() for stream in streams)
    done = subprocess.CompletedProcess([module, *arguments], child.exitcode, out, err)
    assert child.exitcode == 0 or not check, out + err
    return done


def _program(words: Sequence[str], cwd: Path, environment: Mapping[str, str], streams: Sequence[Path]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    how, what, *arguments = words
    sys.argv = [what if how == "-m" else "-c", *arguments]
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})
