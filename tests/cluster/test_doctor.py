import shutil
from pathlib import Path

import pytest
import yaml

from brickreel.cluster import doctor, proposal, site_facts
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
    assert (found["hopper"].richest, found["hopper"].max_minutes) == (("h100", 8, 7), 2880)
    assert (found["old"].up, found["old"].kinds, found["old"].memory_mb) == (False, (("", 4, 4),), 128000)
    assert found["debug"].max_minutes == 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30:00", 30), ("4:00:00", 240), ("1-12:00:00", 2160), ("infinite", 525600)],
)
def test_time_limits(text, expected):
    assert site_facts.minutes(text) == expected


def problems(profile, looks=()):
    return " ".join(check.reason for check in doctor.judge(FACTS, profile, looks) if check.result == "fail")


def test_a_profile_that_fits_has_no_problem():
    text = (ROOT / "slurm/config.yaml").read_text()
    assert problems(yaml.safe_load(proposal.edit_profile(text, proposal.propose(FACTS, yaml.safe_load(text))))) == ""


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"slurm_partition": "gpu"}, "there is no partition 'gpu' here, which has cpu, hopper, old, debug"),
        ({"slurm_partition": "hopper", "gres": "gpu:16"}, "`gres` asks for 16 GPUs per node, partition hopper has 8"),
        ({"slurm_partition": "hopper", "nodes": 9}, "`nodes` asks for 9 nodes, partition hopper has 7"),
        ({"slurm_partition": "debug", "runtime": 60}, "`runtime` asks for 60 minutes, partition debug has 30"),
        ({"slurm_partition": "old"}, "partition old is closed"),
        ({"slurm_partition": "hopper", "tasks_per_node": 8, "cpus_per_task": 14}, "112 CPUs per node"),
        ({"slurm_partition": "hopper", "gres": "gpu:a100:8"}, "asks for 8 a100 GPUs per node, partition hopper has 0"),
        ({"slurm_partition": "hopper", "gres": "gpu:4", "tasks_per_node": 8}, "8 tasks per node, of one GPU each"),
        ({"slurm_partition": "hopper", "slurm_account": "abs"}, "slurm_account: abs is not yours"),
        ({"gres": "gpu:8"}, "`gres` asks for 8 GPUs per node, partition cpu has 0"),
    ],
)
def test_what_the_profile_asks_for_in_vain_is_named(section, sentence):
    assert sentence in problems({"set-resources": {"train": section}})


def test_what_a_stage_takes_from_the_defaults_is_judged_with_it():
    short = {"default-resources": {"slurm_partition": "debug", "runtime": 60, "mem_mb": 99999}}
    told = problems({**short, "set-resources": {"evaluate": {"gres": "gpu:1"}, "train": {"gres": "gpu:1"}}})
    assert "evaluate: `runtime` asks for 60 minutes, partition debug has 30" in told
    assert "evaluate: `mem_mb` asks for 99999 MB per node" in told
    assert "train: `runtime` asks for 1440 minutes" in told
    assert "train: `mem_mb`" not in told
    assert problems({"default-resources": {"slurm_partition": "cpu", "runtime": "4h"}}) == ""


def test_a_type_that_snakemake_refuses_is_named_where_snakemake_submits():
    facts = FACTS._replace(partitions=site_facts.partitions("gpu*|up|1-0:0:0|2|64|8000|gpu:a100-sxm4:8|idle"))
    section = {"gres": "gpu:a100-sxm4:1"}
    checks = doctor.judge(facts, {"set-resources": {"sample": section, "train": section}}, [])
    assert [check.result for check in checks[-2:]] == ["fail", "pass"]
    assert proposal.propose(facts, {"set-resources": {"sample": section}})["sample"] == {"gres": "gpu:1"}


def test_a_partition_whose_name_is_python_must_be_quoted_twice():
    facts = FACTS._replace(partitions=site_facts.partitions("all*|up|1-0:0:0|2|8|8000|(null)|idle"))
    checks = [
        doctor.judge(facts, {"default-resources": {"slurm_partition": name}}, [])[-1].result
        for name in ("all", "'all'")
    ]
    assert checks == ["fail", "pass"]
    wanted = proposal.propose(facts, {"default-resources": {"slurm_partition": "all"}})
    assert wanted["default-resources"]["slurm_partition"] == "\"'all'\""
    assert proposal.quoted("2080ti") == "2080ti"


def test_gpus_of_several_types_are_pointed_at():
    listed = "gpu*|up|1-0:0:0|2|64|8000|gpu:a100:8|idle\ngpu*|up|1-0:0:0|4|64|8000|gpu:h100:8|idle\n"
    facts = FACTS._replace(partitions=site_facts.partitions(listed))
    train = {"gres": "gpu:8", "tasks_per_node": 8, "nodes": 4, "slurm_partition": "gpu"}
    found = doctor.judge(facts, {"set-resources": {"train": train}}, [])
    assert found[1].value == "gpu (6/6 nodes, 4 of them with 8 h100 GPUs, 2 of them with 8 a100 GPUs)"
    assert (found[-1].result, "several types (h100, a100)" in found[-1].reason) == ("warn", True)
    assert proposal.propose(facts, {"set-resources": {"train": train}})["train"] == {"gres": "gpu:h100:8"}
    typed = train | {"gres": "gpu:a100:8", "nodes": 4}
    assert "`nodes` asks for 4 nodes, partition gpu has 2" in " ".join(
        check.reason for check in doctor.judge(facts, {"set-resources": {"train": typed}}, [])
    )


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
    hopper = next(partition for partition in FACTS.partitions if partition.kinds)
    assert sentence in site_facts.look_from(hopper, "", tmp_path).problem
    assert f"--gres=gpu:{hopper.richest.gpu_type}:1" in (tmp_path / "asked").read_text()


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
