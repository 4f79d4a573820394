"""Torch's flight recorder on request: which collectives a rank has started, while the rank hangs in one of them.

Every rank listens on a socket whose name holds its process id; whoever looks for the cause of a hang names a file
there, and the rank writes its last collectives to it (JSON, as torch's own analyser reads it). A thread does that,
since the main one is inside a collective; a rank that does not answer is itself a finding.
"""

import faulthandler
import json
import logging
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brickreel import files

logger = logging.getLogger("brickreel")

BUFFER = "TORCH_FR_BUFFER_SIZE"
PREFIX = "TORCH_FR_DUMP_TEMP_FILE"
_CREDENTIALS = struct.Struct("3i")  # process, user, group
ENTRIES = "2000"
"""Collectives that are remembered; nccl.env asks for more where there are GPUs."""


def _address(pid: int) -> str:
    """An abstract socket: no file that a killed rank would leave behind."""
    return f"\0brickreel-flight-{pid}"


def listen(rank: int, folder: Path | None = None) -> None:
    """Answer requests until the process ends. Call before the process group is made, so that torch records.

    What NCCL ends by itself, without a request, leaves its record in `folder` (torch's own place for it is the same for
    all jobs of a user), and the stacks of this process among what it prints.
    """
    os.environ.setdefault(BUFFER, ENTRIES)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        attempt = f"{os.environ.get('SLURM_JOB_ID', 'local')}-{os.environ.get('SLURM_RESTART_COUNT', 0)}"
        os.environ.setdefault(PREFIX, f"{folder.resolve()}/nccl-{attempt}-rank-")
    faulthandler.enable(2)
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ear.bind(_address(os.getpid()))
    except OSError:
        ear.close()  # listening already
        return
    threading.Thread(target=_answer, args=(ear, rank), name="flight recorder", daemon=True).start()


def _answer(ear: socket.socket, rank: int) -> None:
    from torch._C import _distributed_c10d

    c10d: Any = _distributed_c10d  # the recorder has no public name
    while True:
        request, about, _, _ = ear.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
        # An abstract socket has no permissions: anybody on the node can write to it.
        if _sender(about) != os.getuid():
            continue
        try:
            prefix = request.decode()
            files.write_text(Path(f"{prefix}-{rank}.json"), _record(c10d))
        except (OSError, AttributeError, RuntimeError, ValueError) as error:
            logger.warning("no flight record of rank %d: %s", rank, error)


def _record(c10d: Any) -> str:
    """The last collectives: nccl's, which has a recorder of its own, where there is a GPU; else gloo's."""
    import torch

    nccl = getattr(c10d, "_dump_nccl_trace_json", None) if torch.cuda.is_available() else None
    return str((nccl or c10d._dump_fr_trace_json)(True, False).decode())


def _sender(about: list[tuple[int, int, bytes]]) -> int | None:
    """The user who sent a message, as the kernel says."""
    for level, kind, data in about:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return int(_CREDENTIALS.unpack(data[: _CREDENTIALS.size])[1])
    return None


def ask(pid: int, prefix: str) -> bool:
    """Have a process of this node write `PREFIX-RANK.json`; False when nobody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
        try:
            mouth.sendto(prefix.encode(), _address(pid))
        except OSError:
            return False
    return True


def read(folder: Path, prefix: str) -> dict[int, dict[str, Any]]:
    """Records by rank."""
    found = {}
    for path in folder.glob(f"{prefix}-*.json"):
        rank = re.fullmatch(rf"{re.escape(prefix)}-(\d+)\.json", path.name)
        if rank:
            found[int(rank[1])] = json.loads(path.read_text(encoding="utf-8"))
    return found


def suspects(records: Mapping[int, Mapping[str, Any]], ranks: int) -> str:
    """A sentence about who is missing in the collective that the others wait in; empty when nothing tells."""
    silent = [rank for rank in range(ranks) if rank not in records]
    # Without any collective the recorder leaves `entries` out.
    entries = {rank: record.get("entries", []) for rank, record in records.items()}
    counts = {rank: sum(not entry["is_p2p"] for entry in found) for rank, found in entries.items()}
    last = {rank: max((entry["record_id"] for entry in found), default=-1) for rank, found in entries.items()}
    sentences = [f"{_ranks(silent)} did not answer: stopped, or gone"] if silent and records else []
    most = max(last.values(), default=-1)
    behind = [rank for rank in sorted(last) if last[rank] < most]
    if behind:
        waiting = next(rank for rank in sorted(last) if last[rank] == most)
        call = next(e for e in reversed(entries[waiting]) if e["record_id"] == most)["profiling_name"]
        sentences.append(f"{_ranks(behind)} did not come to the {call} in which rank {waiting} waits")
    elif not silent and len(set(counts.values())) == 1:
        sentences.append("all ranks stand at the same collective")
    return "; ".join(sentences)


def _ranks(numbers: list[int]) -> str:
    return ("rank " if len(numbers) == 1 else "ranks ") + ", ".join(map(str, numbers))


if __name__ == "__main__":
    ask(int(sys.argv[1]), sys.argv[2])
