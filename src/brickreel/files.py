"""Files that are whole or absent: everything is written beside its place and renamed into it."""

import errno
import fcntl
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes its name, on any error it vanishes.

    The suffix is kept, since many writers choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    os.chmod(name, 0o666 & ~_umask())
    temporary = Path(name)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write bytes whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write readable JSON whole or not at all; NaN and infinity are refused, since JSON has no word for them."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text_if_changed(path: str | os.PathLike[str], text: str) -> bool:
    """Write only when the content differs, so that an unchanged file keeps its time stamp. True when written."""
    path = Path(path)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON; a broken file is a ValueError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def json_line(row: dict[str, Any]) -> str:
    """One row of JSON lines."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def append_json_line(path: str | os.PathLike[str], row: dict[str, Any]) -> None:
    """Append one row as one `write` to a JSON-lines file: a crash can cut only the last line.

    A line that a crash has cut is closed first, so that it does not swallow the new one.
    """
    line = json_line(row)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = "\n" + line
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def json_lines(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """JSON lines, one at a time; lines cut by a crash are skipped. A file that does not exist has no lines."""
    path = Path(path)
    if not path.exists():
        return
    # Other signs that a text may hold, such as U+2028, do not end a line.
    with path.open(encoding="utf-8", errors="replace", newline="\n") as stream:
        for line in stream:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def read_json_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All of `json_lines`."""
    return list(json_lines(path))


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex digest of a file's content, read in blocks."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def shard_of(key: str, shards: int) -> int:
    """The shard that a film or clip belongs to: a stable hash of its id, spread evenly."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % shards


def draw_of(key: str) -> float:
    """A number from 0 up to 1 that a text decides: what is chosen by it stays chosen whatever else comes or goes."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def flock(stream: TextIO | int, path: str | os.PathLike[str], wait: bool = False) -> None:
    """Lock an open file, which is at `path`, for this process.

    Raises BlockingIOError where another has it and `wait` is not set, and OSError where the file system has no locks.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        folder = Path(path).absolute().parent
        raise OSError(
            f"the file system of {folder} has no file locks ({error.strerror}), without which two jobs could do the"
            " same work: have it mounted with them (Lustre: -o flock), or put the project on one that has"
        ) from error


def hold(path: str | os.PathLike[str]) -> int:
    """Lock a file until this process ends, however it ends; the handle may be closed to release it earlier.

    Raises BlockingIOError that names the process which holds the lock already.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        flock(handle, path)
    except BlockingIOError:
        holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
        os.close(handle)
        raise BlockingIOError(
            f"another process works here already ({holder or 'unknown'}): wait for it or end it"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return handle
