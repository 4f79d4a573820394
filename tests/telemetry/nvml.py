"""The mock NVML library: built with the machine's C compiler, loaded by nvidia-ml-py in a process of its own."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml_mock.c")

DRIVER = """
import json, os, struct, sys
from brickreel.telemetry.gpu import Gpus
gpus, rows = Gpus(), []
for time in json.loads(sys.argv[1]):
    with open(os.environ.get("NVML_MOCK_CLOCK", os.devnull), "r+b") as clock:
        clock.write(struct.pack("d", time))
    row = {"values": gpus.sample(), "nvlinks": gpus.nvlinks(), "processes": gpus.processes()}
    rows.append(row | {"events": [list(event) for event in gpus.events()]})
print(json.dumps(rows))
"""


def build(folder: Path, old: bool = False) -> Path:
    """Compile `libnvidia-ml.so.1` into a folder of its own under `folder`; returns that folder. About 0.3 s."""
    place = folder / ("old-driver" if old else "driver")
    place.mkdir()
    words = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-Wl,-soname,libnvidia-ml.so.1"]
    words += ["-DOLD_DRIVER"] if old else []
    subprocess.run([*words, "-o", str(place / "libnvidia-ml.so.1"), str(SOURCE)], check=True)
    return place


def script(folder: Path, *lines: str) -> Path:
    """A script for the mock; lines must be in the order of their times."""
    path = folder / "script"
    path.write_text("\n".join(lines) + "\n")
    return path


def sample(library: Path | None, lines: list[str] | None, times: list[float], folder: Path) -> list[dict]:
    """Sample all GPUs at virtual times; per time `values` (GPU -> column -> value) and all else that `Gpus` says."""
    clock = folder / "clock"
    clock.write_bytes(struct.pack("d", 0.0))
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    environment["NVML_MOCK_CLOCK"] = str(clock)
    if library is not None:
        environment["LD_LIBRARY_PATH"] = str(library)
    if lines is not None:
        environment["NVML_MOCK"] = str(script(folder, *lines))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(times)], env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)
