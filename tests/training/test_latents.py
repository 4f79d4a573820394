from pathlib import Path

import pytest
import torch

from brickreel.training import latents
from brickreel.training.latents import Sample

ROW = {"clip_id": "a", "kind": "clip"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path("00")


def sample(seed: int, tokens: int = 5) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    mean, logvar = (torch.randn(4, 2, 3, 3, generator=generator).bfloat16() for _ in range(2))
    return Sample(mean, logvar, torch.randn(tokens, 8, generator=generator).bfloat16())


def written(prefix: Path, count: int = 3, file_mib: int = 1) -> list[dict]:
    writer = latents.Writer(prefix, "digest", file_mib)
    rows = []
    for number in range(count):
        rows.append(
            writer.add({"sample_id": f"s{number}", "clip_id": f"c{number}", "kind": "clip"}, sample(number), {})
        )
        writer.flush(at_least_full=True)
    writer.flush()
    return rows


def test_samples_come_back_bit_by_bit_unpadded(here):
    for number, row in enumerate(written(here)):
        assert all(torch.equal(*pair) for pair in zip(latents.read(row), sample(number), strict=True))


def test_a_clips_text_is_stored_once_for_all_its_samples(here):
    writer = latents.Writer(here, "digest", 1)
    text = sample(0).text
    rows = [writer.add(ROW | {"sample_id": f"s{number}"}, sample(number)._replace(text=text), {}) for number in (1, 2)]
    assert sum(name.endswith(".text") for name in writer.tensors) == 1
    writer.flush()
    assert all(torch.equal(latents.read(row).text, text) for row in rows)


def test_files_are_cut_near_their_size_between_clips(here):
    writer = latents.Writer(here, "digest", 1)
    for number in range(3):
        large = Sample(torch.zeros(4, 40, 64, 64).bfloat16(), torch.zeros(4, 1, 1, 1).bfloat16(), sample(0).text)
        writer.add(ROW | {"sample_id": f"s{number}", "clip_id": str(number)}, large, {})
        writer.flush(at_least_full=True)
    assert [path.name for path in latents.part_files(here)] == [f"00-000{number}.safetensors" for number in range(3)]


def test_a_flipped_bit_is_noticed_and_names_sample_and_file(here):
    row = written(here, 1)[0]
    content = bytearray(Path(row["file"]).read_bytes())
    content[-3] ^= 4
    Path(row["file"]).write_bytes(content)
    with pytest.raises(ValueError, match=r"sample s0 in 00-0000.safetensors is damaged: its checksum does not match"):
        latents.read(row)


@pytest.mark.parametrize("harm", ["gone", "cut", "without the sample"])
def test_a_missing_sample_is_one_sentence(here, harm):
    row = written(here, 1)[0]
    path = Path(row["file"])
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:40])
    else:
        row = row | {"sample_id": "other"}
    with pytest.raises(ValueError, match=r"sample \w+ cannot be read from 00-0000.safetensors"):
        latents.read(row)


def test_a_replaced_file_is_read_anew(here):
    row = written(here, 1)[0]
    latents.read(row)
    Path(row["file"]).unlink()
    writer = latents.Writer(here, "digest", 1)
    fresh = writer.add(ROW | {"sample_id": "s0", "clip_id": "c0"}, sample(9), {})
    writer.flush()
    assert fresh["file"] == row["file"]
    assert torch.equal(latents.read(fresh).mean, sample(9).mean)


def test_a_clips_samples_and_text_can_be_taken_out_of_a_file(here):
    gone, kept, other = written(here)
    path = Path(gone["file"])
    latents.remove_clips(path, {"c0"})
    assert b"s0" not in path.read_bytes() + b"".join(part.read_bytes() for part in latents.part_files(here))
    assert b"c0" not in path.read_bytes()
    assert latents.read(kept)
    assert latents.read(other)
    assert sorted(latents.finished(here, "digest")) == ["s1", "s2"]
    before = path.stat()
    latents.remove_clips(path, {"c0"})
    assert path.stat().st_ino == before.st_ino


def test_only_files_of_the_same_settings_count_as_finished(here):
    written(here)
    assert sorted(latents.finished(here, "digest")) == ["s0", "s1", "s2"]
    assert latents.finished(here, "other") == {}


@pytest.mark.parametrize("part", Sample._fields)
def test_a_sample_that_is_not_finite_is_refused_by_name(here, part):
    strange = torch.full_like(getattr(sample(0), part), torch.nan)
    writer = latents.Writer(here, "digest", 1)
    row = writer.add(ROW | {"sample_id": "s0"}, sample(0)._replace(**{part: strange}), {})
    writer.flush()
    with pytest.raises(
        ValueError, match=rf"sample s0 in 00-0000.safetensors is not finite \({part}\): delete that file and run"
    ):
        latents.read(row)
