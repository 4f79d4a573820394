import shutil
from pathlib import Path

import pytest
import yaml

from brickreel.cluster import doctor, site_facts
from brickreel.cluster.site_facts import Facts, Look

ROOT = Path(__file__).resolve().parent.parent.parent
LISTED = """\
cpu*|up|1-00:00:00|20|64|256000|(null)|idle
cpu*|up|1-00:00:00|2|64|256000|(null)|drain*
hopper|up|2-00:00:00|6|104|2000000|gpu:h100:8(S:0-1)|mix
hopper|up|2-00:00:00|1|104|2000000|gpu:h100:8(S:0-1)|down*
old|down|infinite|4|32|128000+|gpu:4|idle
debug|up|30:00|1|16|64000|gpu:1|alloc
"""
FACTS = Facts("slurm 23.02.1", site_facts.partitions(LISTED), ("lab",), True, True, ("cuda/12.6",), "", "apptainer")


def test_partitions_are_read_with_their_nodes_limits_and_gpus():
    found = {one.name: one for one in FACTS.partitions}
    assert (found["cpu"].default, found["cpu"].nodes, found["cpu"].usable) == (True, 22, 20)
    assert (found["hopper"].gpu_type, found["hopper"].gpus, found["hopper"].max_minutes) == ("h100", 8, 2880)
    assert (found["old"].up, found["old"].gpus, found["old"].memory_mb) == (False, 4, 128000)
    assert found["debug"].max_minutes == 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30:00", 30), ("4:00:00", 240), ("1-12:00:00", 2160), ("infinite", 525600)],
)
def test_time_limits(text, expected):
    assert site_facts.minutes(text) == expected


def test_the_proposal_uses_the_largest_gpu_partition_and_an_account():
    wanted = doctor.propose(FACTS)
    assert wanted["default-resources"] == {"slurm_partition": "cpu", "runtime": 60, "slurm_account": "lab"}
    assert wanted["train"] == {
        "nodes": 4,
        "tasks_per_node": 8,
        "cpus_per_task": 13,
        "slurm_partition": "hopper",
        "gres": "gpu:8",
        "runtime": 1440,
    }


def test_of_a_partition_with_mixed_nodes_only_those_with_gpus_count():
    listed = "all|up|1-0:0:0|2|8|8000|(null)|idle\nall|up|1-0:0:0|2|8|8000|gpu:h100:8|idle\n"
    listed += "gpu|up|1-0:0:0|2|8|8000|gpu:h100:8|idle\ncpu*|up|1-0:0:0|2|8|8000|(null)|idle\n"
    facts = FACTS._replace(partitions=site_facts.partitions(listed))
    mixed = facts.partitions[0]
    assert (mixed.nodes, mixed.gpu_nodes, mixed.gpus) == (4, 2, 8)
    train = doctor.propose(facts)["train"]
    assert (train["slurm_partition"], train["nodes"], train["tasks_per_node"]) == ("gpu", 2, 8)
    assert doctor.site_lines(facts)["BRICKREEL_GPUS"] == "16"
    asked = {"set-resources": {"train": train | {"slurm_partition": "all", "nodes": 4}}}
    checks = doctor.judge(facts, asked, [])
    assert checks[1].value.startswith("all (4/4 nodes, 2 of them with 8 GPUs), gpu (2/2 nodes, 8 GPUs each), cpu (2/2")
    reasons = " ".join(check.reason for check in checks)
    assert "train: `nodes` asks for 4 nodes, partition all has 2" in reasons


def test_the_shipped_profile_keeps_its_comments_and_gets_the_values():
    before = (ROOT / "slurm/config.yaml").read_text()
    after = doctor.edit_profile(before, doctor.propose(FACTS))
    read = yaml.safe_load(after)
    assert read["default-resources"]["slurm_account"] == "lab"
    assert read["set-resources"]["train"]["slurm_partition"] == "hopper"
    assert (
        read["set-resources"]["sample"] | {"slurm_partition": "hopper", "gres": "gpu:1"}
        == read["set-resources"]["sample"]
    )
    assert read["set-threads"] == yaml.safe_load(before)["set-threads"]
    assert "runtime: 60 # minutes" in after
    kept = [line for line in before.splitlines() if line.startswith("#")]
    assert kept == [line for line in after.splitlines() if line.startswith("#")]
    assert doctor.edit_profile(after, doctor.propose(FACTS)) == after


def test_memory_is_what_stages_need_or_what_nodes_have():
    shipped = yaml.safe_load((ROOT / "slurm/config.yaml").read_text())["set-resources"]
    assert {stage: shipped[stage]["mem_mb"] for stage in doctor.MEMORY_MB} == doctor.MEMORY_MB
    small = FACTS._replace(partitions=[one._replace(memory_mb=12000) for one in FACTS.partitions])
    found = {stage: doctor.propose(small)[stage]["mem_mb"] for stage in doctor.MEMORY_MB}
    assert found == {stage: min(12000, wanted) for stage, wanted in doctor.MEMORY_MB.items()}


def test_site_env_gets_the_gpus_and_the_module():
    after = doctor.edit_site_env((ROOT / "slurm/site.env").read_text(), doctor.site_lines(FACTS))
    assert "\nBRICKREEL_GPU=H100\n" in after
    assert "\nBRICKREEL_GPUS=32\n" in after
    assert "\nmodule load cuda/12.6\n" in after


def problems(profile, looks=()):
    return " ".join(check.reason for check in doctor.judge(FACTS, profile, looks) if check.result == "fail")


def test_a_profile_that_fits_has_no_problem():
    assert (
        problems(yaml.safe_load(doctor.edit_profile((ROOT / "slurm/config.yaml").read_text(), doctor.propose(FACTS))))
        == ""
    )


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"slurm_partition": "gpu"}, "there is no partition 'gpu' here, which has cpu, hopper, old, debug"),
        ({"slurm_partition": "hopper", "gres": "gpu:16"}, "`gres` asks for 16 GPUs per node, partition hopper has 8"),
        ({"slurm_partition": "hopper", "nodes": 9}, "`nodes` asks for 9 nodes, partition hopper has 7"),
        ({"slurm_partition": "debug", "runtime": 60}, "`runtime` asks for 60 minutes, partition debug has 30"),
        ({"slurm_partition": "old"}, "partition old is closed"),
        ({"slurm_partition": "hopper", "tasks_per_node": 8, "cpus_per_task": 14}, "112 CPUs per node"),
    ],
)
def test_what_the_profile_asks_for_in_vain_is_named(section, sentence):
    assert sentence in problems({"set-resources": {"train": section}})


def test_a_strange_account_and_a_folder_that_nodes_do_not_see_are_named():
    assert "slurm_account: other is not yours" in problems({"default-resources": {"slurm_account": "other"}})
    assert "does not see" in problems({}, [Look("cpu", "n1", "a node does not see /home/x")])


@pytest.mark.parametrize(
    ("gres", "found"),
    [
        ("gpu:h100:8(S:0-1)", ("h100", 8)),
        ("gpu:8", ("", 8)),
        ("gpu:4090:8", ("4090", 8)),
        ("gpu:2080ti:4,nvme:1", ("2080ti", 4)),
        ("gpu:1g.10gb:7", ("1g.10gb", 7)),
        ("lscratch:5", ("", 0)),
        ("(null)", ("", 0)),
    ],
)
def test_types_of_gpus_may_be_numbers(gres, found):
    assert site_facts.gpus_of(gres) == found


SRUN = """#!/bin/sh
echo "$@" > asked
echo "srun: error: Unable to allocate resources: $REASON" >&2
exit 1
"""


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        ("Connection timed out", site_facts.BUSY),
        ("Requested nodes are busy", site_facts.BUSY),
        ("Invalid qos specification", "the QOS does not exist or is not yours"),
    ],
)
def test_a_busy_partition_is_told_from_one_that_refuses(tmp_path, monkeypatch, reason, sentence):
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("REASON", reason)
    monkeypatch.chdir(tmp_path)
    hopper = next(partition for partition in FACTS.partitions if partition.gpus)
    assert sentence in site_facts.look_from(hopper, "", tmp_path).problem
    assert f"--gres=gpu:{hopper.gpu_type}:1" in (tmp_path / "asked").read_text()


def test_outside_a_project_the_doctor_says_where_to_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="start from the project's folder"):
        doctor.examine(write=False, jobs=False, json_file=None)


def test_without_slurm_the_doctor_says_so(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="Slurm is not installed here"):
        doctor.examine(write=False, jobs=False, json_file=None)
