"""Programs in a process of their own that has imported already: a second or more is spared whenever one is started."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["snakemake.cli"])


def run(module: str, arguments: Sequence[str], cwd: Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """What `python -m MODULE ARGUMENTS` does in a folder, with this process's environment."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        child = _CONTEXT.Process(target=_program, args=(module, arguments, cwd, dict(os.environ), streams))
        child.start()
        child.join()
        out, err = (stream.read_text() for stream in streams)
    done = subprocess.CompletedProcess([module, *arguments], child.exitcode, out, err)
    assert child.exitcode == 0 or not check, out + err
    return done


def _program(
    module: str, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], streams: Sequence[Path]
) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
