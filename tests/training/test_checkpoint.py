import errno
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from brickreel import files
from brickreel.training import checkpoint
from brickreel.training.checkpoint import Checkpoints, list_checkpoints, name_of

CPU = torch.device("cpu")
RANK = """
import os, sys, torch, torch.distributed as dist
from pathlib import Path
from brickreel.training.checkpoint import Checkpoints
rank, port, folder, action = sys.argv[1:]
dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=2)
store = Checkpoints(Path(folder), int(rank), 2, torch.device("cpu"))
try:
    exec(action)
except OSError as error:
    print(type(error).__name__, error.errno)
"""


def on_two_ranks(folder: Path, *actions: str) -> list[str]:
    """What each rank prints of the error in its action."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [[sys.executable, "-c", RANK, str(rank), port, str(folder), act] for rank, act in enumerate(actions)]
    processes = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for line in words]
    return [process.communicate(timeout=100)[0].strip() for process in processes]


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{part}.{name}": torch.randn(shape, generator=generator)
        for part in ("model", "ema", "exp_avg", "exp_avg_sq")
        for name, shape in (("weight", (5, 7)), ("bias", (3,)))
    }


def zeros() -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(value) for name, value in tensors().items()}


@pytest.fixture
def written(tmp_path):
    """Checkpoints of steps 1 to 3."""
    store = Checkpoints(tmp_path, 0, 1, CPU)
    for step in (1, 2, 3):
        store.save(step, tensors(step), {"step": step, "updates": step}, wait=True)
    store.close()
    return tmp_path


def test_what_was_saved_is_loaded_bit_by_bit(written):
    store = Checkpoints(written, 0, 1, CPU)
    path, passed = store.newest_good()
    found = zeros()
    assert store.load(path, found) == {"step": 3, "updates": 3}
    assert passed == []
    assert all(torch.equal(found[name], value) for name, value in tensors(3).items())
    store.close()


def test_tensors_that_a_checkpoint_has_not_are_one_sentence(written):
    store = Checkpoints(written, 0, 1, CPU)
    with pytest.raises(ValueError, match=r"step-00000003 cannot be loaded: rank 0: .*model\.other"):
        store.load(written / name_of(3), {"model.other": torch.zeros(2)})
    shard = next((written / name_of(3)).glob("*.safetensors"))
    shard.unlink()
    shard.mkdir()
    with pytest.raises(OSError, match=r"step-00000003 cannot be loaded: rank 0: .*No such device") as caught:
        store.load(written / name_of(3), zeros())
    assert caught.value.errno == errno.ENODEV
    store.close()


def test_saving_beside_training_keeps_the_values_of_that_moment(tmp_path):
    store = Checkpoints(tmp_path, 0, 1, CPU)
    values = tensors(1)
    store.save(1, values, {"step": 1}, wait=False)
    for value in values.values():
        value.fill_(7.0)
    store.close()
    found = zeros()
    store = Checkpoints(tmp_path, 0, 1, CPU)
    store.load(store.newest_good()[0], found)
    assert all(torch.equal(found[name], value) for name, value in tensors(1).items())
    store.close()


def test_a_damaged_newest_one_is_passed_over_with_a_sentence(written):
    shard = next((written / name_of(3)).glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    store = Checkpoints(written, 0, 1, CPU)
    path, passed = store.newest_good()
    assert path.name == name_of(2)
    assert passed == [f"checkpoint {name_of(3)} is damaged and was passed over: {shard.name} is damaged"]
    with pytest.raises(ValueError, match=r"step-00000003.damaged cannot be loaded: .*is damaged"):
        checkpoint.load_weights(written / f"{name_of(3)}.damaged", "raw")
    assert checkpoint.load_weights(written / f"{name_of(3)}.damaged", "raw", check=False)
    store.close()


def test_a_damaged_one_is_set_aside_and_never_costs_a_good_one(written):
    for harmed in (3, 3):
        (written / name_of(harmed) / "state.json").write_text("{}")
        store = Checkpoints(written, 0, 1, CPU)
        assert store.newest_good()[0].name == name_of(2)
        assert [step for step, _ in list_checkpoints(written)] == [1, 2]
        store.save(3, tensors(4), {"step": 3}, wait=True)
        store.prune(3, None, 0, {}, written=3)
        store.close()
    assert sorted(path.name for path in written.iterdir()) == [*map(name_of, (1, 2, 3)), f"{name_of(3)}.damaged"]


def test_pruning_leaves_the_checkpoint_just_written_also_where_others_have_higher_numbers(written):
    store = Checkpoints(written, 0, 1, CPU)
    store.prune(1, None, 0, {}, written=2)
    assert [step for step, _ in list_checkpoints(written)] == [2, 3]
    store.close()


@pytest.mark.parametrize("harm", ["missing file", "no manifest", "broken manifest", "half written"])
def test_incomplete_ones_are_never_loaded(written, harm):
    newest = written / name_of(3)
    if harm == "missing file":
        next(newest.glob("*.safetensors")).unlink()
    elif harm == "no manifest":
        (newest / "manifest.json").unlink()
    elif harm == "broken manifest":
        (newest / "manifest.json").write_text("{")
    else:
        os.replace(newest, written / f".{name_of(3)}.partial")
    store = Checkpoints(written, 0, 1, CPU)
    assert store.newest_good()[0].name == name_of(2)
    assert not list(written.glob(".step-*"))
    store.close()


def test_with_no_checkpoint_training_starts_and_with_none_that_is_good_it_does_not(written, tmp_path):
    store = Checkpoints(tmp_path / "empty", 0, 1, CPU)
    assert store.newest_good() == (None, [])
    store.close()
    for _, path in list_checkpoints(written):
        (path / "state.json").write_text("{}")
    store = Checkpoints(written, 0, 1, CPU)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"no checkpoint in .* is whole: checkpoint step-00000003 is dam"
        ) as caught:
            store.newest_good()
        # Attempts and readings beside them would mix with those of the new start.
        assert str(caught.value).endswith(f"Restore one, or move {written.parent} away to start anew")
    store.close()


def test_trouble_of_the_file_system_is_not_taken_for_damage(written):
    shard = next((written / name_of(3)).glob("*.safetensors"))
    shard.unlink()
    shard.mkdir()  # there, and cannot be read
    store = Checkpoints(written, 0, 1, CPU)
    with pytest.raises(OSError, match="Is a directory") as caught:
        store.newest_good()
    assert caught.value.errno == errno.EISDIR
    assert [step for step, _ in list_checkpoints(written)] == [1, 2, 3]
    store.close()


def test_a_rank_that_cannot_read_a_checkpoint_tells_the_others(written):
    """Rank 0 reads the first file, which is there; rank 1 the second one, which is not to be read."""
    second = sorted(json.loads((written / name_of(3) / "manifest.json").read_text())["files"])[1]
    (written / name_of(3) / second).unlink()
    (written / name_of(3) / second).mkdir()
    assert on_two_ranks(written, *["store.newest_good()"] * 2) == [f"IsADirectoryError {errno.EISDIR}"] * 2


@pytest.mark.slow
def test_what_fails_on_one_rank_keeps_its_number_and_a_lost_rank_is_a_lost_connection(tmp_path):
    save = "store.save(1, {'model.weight': torch.zeros(3)}, {}, wait=True)"
    # A folder stands where rank 0, and it alone, is going to write the state.
    blocked = f"(store.folder / '.step-00000001.partial/state.json').mkdir(parents=True, exist_ok=True); {save}"
    assert on_two_ranks(tmp_path, blocked, blocked) == [f"OSError {errno.EISDIR}"] * 2
    assert on_two_ranks(tmp_path, save, "os._exit(0)")[0] == "ConnectionError None"


def test_raw_and_ema_are_told_apart_and_other_words_are_refused(written):
    raw, ema = (checkpoint.load_weights(written / name_of(2), which) for which in ("raw", "ema"))
    assert raw.keys() == ema.keys() == {"weight", "bias"}
    assert torch.equal(raw["weight"], tensors(2)["model.weight"])
    assert torch.equal(ema["bias"], tensors(2)["ema.bias"])
    with pytest.raises(ValueError, match="'raw' or 'ema', not 'best'"):
        checkpoint.load_weights(written / name_of(2), "best")


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        ((1, None, 0), [50]),
        ((2, None, 0), [40, 50]),
        ((1, 20, 0), [20, 40, 50]),
        ((1, None, 1), [30, 50]),
        ((1, 20, 2), [10, 20, 30, 40, 50]),
    ],
)
def test_last_every_and_best_are_kept(rule, left):
    steps = [10, 20, 30, 40, 50]
    losses = {10: 0.4, 20: 0.5, 30: 0.3, 40: 0.6, 50: 0.7}
    assert sorted(set(steps) - set(checkpoint.to_delete(steps, *rule, losses))) == left


def test_pruning_deletes_folders_whole(written):
    store = Checkpoints(written, 0, 1, CPU)
    store.prune(1, None, 0, {})
    assert [path.name for path in written.iterdir()] == [name_of(3)]
    store.close()


@pytest.fixture
def small_files():
    """No file may grow beyond 8 KiB, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_a_checkpoint_but_not_the_run(written, small_files, caplog, monkeypatch):
    monkeypatch.setattr(checkpoint.logger, "propagate", True)
    store = Checkpoints(written, 0, 1, CPU)
    large = tensors(4) | {"model.large": torch.zeros(100_000)}
    store.save(4, large, {"step": 4}, wait=False)
    store.wait()
    assert "a checkpoint could not be written" in caplog.text
    assert store.failures == 1
    assert [step for step, _ in list_checkpoints(written)] == [1, 2, 3]
    assert not list(written.glob(".step-*"))
    with pytest.raises(OSError, match="a checkpoint could not be written: rank 0: ") as caught:
        store.save(4, large, {"step": 4}, wait=True)
    assert caught.value.errno == errno.EFBIG
    store.save(4, tensors(4), {"step": 4}, wait=True)
    assert [step for step, _ in list_checkpoints(written)] == [1, 2, 3, 4]
    assert store.failures == 0
    store.close()


def test_the_third_checkpoint_in_a_row_that_cannot_be_written_ends_the_run(written, small_files):
    store = Checkpoints(written, 0, 1, CPU)
    large = tensors(4) | {"model.large": torch.zeros(100_000)}
    for step in (4, 5):
        store.save(step, large, {"step": step}, wait=False)
    store.save(6, tensors(6), {"step": 6}, wait=False)  # there was room once: they are counted anew
    for step in (7, 8, 9):
        store.save(step, large, {"step": step}, wait=False)
    with pytest.raises(OSError, match="a checkpoint could not be written: rank 0: ") as caught:
        store.save(10, large, {"step": 10}, wait=False)
    assert caught.value.errno == errno.EFBIG
    store.close()


def test_what_fails_after_a_checkpoint_is_whole_is_a_warning_and_not_its_own_failure(written, caplog, monkeypatch):
    monkeypatch.setattr(checkpoint.logger, "propagate", True)
    store = Checkpoints(written, 0, 1, CPU)
    (written / "gauge.jsonl").mkdir()
    store.on_written = lambda step, path: (written / "gauge.jsonl").read_text()
    store.save(4, tensors(4), {"step": 4}, wait=True)
    assert "step-00000004 is written, but older checkpoints could not be tidied away" in caplog.text
    assert "could not be written" not in caplog.text
    assert checkpoint.problem(written / name_of(4)) == ""
    store.close()


def test_a_run_that_was_shortened_takes_the_checkpoint_of_its_last_step(written):
    store = Checkpoints(written, 0, 1, CPU)
    assert [store.newest_good(last)[0].name for last in (2, 3, 9)] == [name_of(step) for step in (2, 3, 3)]
    store.prune(1, None, 0, {})
    (written / f"{name_of(2)}.damaged").mkdir()
    with pytest.raises(ValueError, match=r"max_steps is 2, and training is at step 3 already: .* is kept \(3\)"):
        store.newest_good(2)
    store.close()


def test_a_run_that_was_shortened_to_a_damaged_checkpoint_takes_an_older_one(written):
    store = Checkpoints(written, 0, 1, CPU)
    (written / name_of(2) / checkpoint.STATE).write_text("{}")
    for _ in range(2):  # also where it was cut off before it came to that step again
        path, passed = store.newest_good(2)
        assert path.name == name_of(1)
    assert passed == []
    assert sorted(path.name for path in written.iterdir()) == [name_of(1), f"{name_of(2)}.damaged", name_of(3)]
    store.close()


def test_writing_a_step_again_replaces_it(written):
    store = Checkpoints(written, 0, 1, CPU)
    store.save(3, tensors(9), {"step": 3, "updates": 9}, wait=True)
    store.close()
    assert checkpoint.read_state(written / name_of(3))["updates"] == 9
    assert torch.equal(checkpoint.load_weights(written / name_of(3), "raw")["bias"], tensors(9)["model.bias"])
    assert sorted(path.name for path in written.iterdir()) == [name_of(step) for step in (1, 2, 3)]


def test_a_reader_never_sees_half_a_checkpoint(tmp_path):
    """While one thread writes and prunes, whatever is listed is whole."""
    store = Checkpoints(tmp_path, 0, 1, CPU)
    store.on_written = lambda step, path: store.prune(2, None, 0, {})
    seen, done = [], threading.Event()

    def look() -> None:
        while not done.is_set():
            for _, path in list_checkpoints(tmp_path):
                wrong = checkpoint.problem(path)
                # It may have been pruned in between, but never damaged.
                seen.append(wrong if wrong and path.exists() else "")

    thread = threading.Thread(target=look)
    thread.start()
    for step in range(1, 8):
        store.save(step, tensors(step), {"step": step}, wait=True)
    done.set()
    thread.join()
    store.close()
    assert set(seen) == {""}
    assert [step for step, _ in list_checkpoints(tmp_path)] == [6, 7]


def test_the_manifest_names_every_file(written):
    manifest = json.loads((written / name_of(1) / "manifest.json").read_text())
    on_disk = {path.name for path in (written / name_of(1)).iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == on_disk
    assert all(files.sha256(Path(written / name_of(1) / name)) == value for name, value in manifest["files"].items())
