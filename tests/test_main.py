import subprocess
import sys

import pytest

from brickreel.stages import STAGES, Shard


def brickreel(*arguments, cwd):
    command = [sys.executable, "-m", "brickreel", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_help_lists_every_stage_in_order(tmp_path):
    output = brickreel("--help", cwd=tmp_path).stdout
    places = [output.index(f"\n  {stage.name} ") for stage in STAGES]
    assert places == sorted(places)


def test_an_unknown_command_is_refused(tmp_path):
    done = brickreel("tarin", cwd=tmp_path)
    assert done.returncode == 2
    assert "No such command 'tarin'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ingest"], "there is no configuration file config.yaml"),
        (["ingest", "--config", "none.yaml"], "there is no configuration file none.yaml"),
        (["ingest", "--config", "misspelt.yaml"], "unknown key `ingest.source`"),
        (["analyze", "--config", "good.yaml", "--shard", "2/2"], "--shard takes INDEX/COUNT"),
        (["analyze", "--config", "good.yaml", "--shard", "16/project"], "not '16/16'"),
        (["plan", "--config", "good.yaml", "--run", "x"], "there is no run 'x'"),
        (["curate", "--config", "good.yaml"], "does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_no_traceback(tmp_path, arguments, sentence):
    (tmp_path / "misspelt.yaml").write_text("ingest: {source: a.csv}")
    (tmp_path / "good.yaml").write_text("ingest: {sources: a.csv}")
    done = brickreel(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_debug_shows_the_traceback(tmp_path):
    done = brickreel("ingest", "--debug", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_the_log_file_holds_what_was_said(tmp_path):
    done = brickreel("ingest", "--log", "logs/it's\nodd ü.log", cwd=tmp_path)
    assert (tmp_path / "logs/it's\nodd ü.log").read_text() == done.stderr


@pytest.mark.parametrize("text", ["", "1", "a/2", "-1/2", "2/2", "1/0", "1/2/3"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="INDEX/COUNT"):
        Shard.parse(text)


def test_all_shards_are_dealt_to_the_processes_of_a_job():
    dealt = [[shard.name for shard in Shard.dealt("all/5", rank, 2)] for rank in range(2)]
    assert dealt == [["00", "02", "04"], ["01", "03"]]
    assert Shard.dealt("3/16", 1, 2) == [Shard(3, 16)]
    with pytest.raises(ValueError, match="all/COUNT"):
        Shard.dealt("all/none", 0, 1)


def test_shards_share_the_work_without_overlap():
    shards = [Shard.parse(f"0{index}/3") for index in range(3)]
    owners = [[shard.name for shard in shards if shard.owns(f"film{number}")] for number in range(60)]
    assert all(len(names) == 1 for names in owners)
    assert {name for names in owners for name in names} == {"00", "01", "02"}
