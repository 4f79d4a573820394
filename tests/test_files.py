import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from brickreel import files


def test_replacing_leaves_nothing_behind_after_an_error(tmp_path):
    target = tmp_path / "a 'quoted'\nfilm ü.json"
    with pytest.raises(RuntimeError), files.replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_replacing_keeps_the_old_file_after_an_error(tmp_path):
    target = tmp_path / "table.json"
    files.write_json(target, {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        files.write_json(target, {"a": float("nan")})
    assert files.read_json(target) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_replaced_files_follow_the_umask(tmp_path):
    files.write_text(tmp_path / "x", "y")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~mask


def test_unchanged_text_keeps_its_time_stamp(tmp_path):
    path = tmp_path / "settings.json"
    assert files.write_text_if_changed(path, "a")
    os.utime(path, (1, 1))
    assert not files.write_text_if_changed(path, "a")
    assert path.stat().st_mtime == 1
    assert files.write_text_if_changed(path, "b")
    assert path.read_text() == "b"


def test_json_lines_survive_a_cut_last_line(tmp_path):
    path = tmp_path / "logs" / "ledger.jsonl"
    files.append_json_line(path, {"n": 1, "text": "zeile\nzwei"})
    files.append_json_line(path, {"n": 2})
    with path.open("a") as stream:
        stream.write('{"n": 3, "te')
    assert [row["n"] for row in files.read_json_lines(path)] == [1, 2]


def test_json_lines_may_hold_any_sign_in_their_texts(tmp_path):
    path = tmp_path / "log.jsonl"
    rows = [{"text": f"a{sign}b"} for sign in ("\u2028", "\x85", "\r", "\x0c")]
    for row in rows:
        files.append_json_line(path, row)
    assert files.read_json_lines(path) == rows


def test_a_line_appended_after_a_cut_one_is_not_lost(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"n": 1}\n{"n": 2, "te')
    files.append_json_line(path, {"n": 3})
    assert [row["n"] for row in files.read_json_lines(path)] == [1, 3]


def test_broken_json_is_named(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json is not valid JSON"):
        files.read_json(path)


def test_shards_are_stable_and_even():
    keys = [f"{number:016x}" for number in range(4000)]
    counts = [0] * 16
    for key in keys:
        counts[files.shard_of(key, 16)] += 1
    assert min(counts) > 190
    assert max(counts) < 310
    assert files.shard_of("00000000deadbeef", 16) == files.shard_of("00000000deadbeef", 16)
    assert json.dumps([files.shard_of(key, 4) for key in keys[:6]]) == "[3, 1, 0, 2, 0, 2]"


def test_a_held_file_names_its_holder_and_is_free_after_a_kill(tmp_path):
    path = tmp_path / "lock"
    code = "import sys, time; from brickreel import files; files.hold(sys.argv[1]); print('held'); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-u", "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"process {holder.pid} on"):
            files.hold(path)
    finally:
        holder.kill()
        holder.wait()
    os.close(files.hold(path))


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def without(stream, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", without)  # no such file system can be mounted here
    with pytest.raises(OSError, match=f"the file system of {tmp_path} has no file locks"):
        files.hold(tmp_path / "lock")
