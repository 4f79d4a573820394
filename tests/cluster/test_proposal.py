from pathlib import Path

import pytest
import yaml

from brickreel.cluster import proposal, site_facts
from brickreel.cluster.site_facts import Facts

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "slurm/config.yaml").read_text()
SHIPPED = yaml.safe_load(TEXT)
CPU = "cpu*|up|1-00:00:00|20|64|256000|(null)|idle\n"
HOPPER = "hopper|up|2-00:00:00|7|104|2000000|gpu:h100:8(S:0-1)|mix\n"
DEBUG = "debug|up|30:00|1|16|24000|gpu:1|alloc\n"


def facts(listed, accounts=("lab",), needed=True):
    return Facts(
        "slurm 23.02.1", site_facts.partitions(listed), accounts, needed, True, ("cuda/12.6",), "", "apptainer"
    )


FACTS = facts(CPU + HOPPER + DEBUG)


def written(found, text=TEXT):
    return yaml.safe_load(proposal.edit_profile(text, proposal.propose(found, yaml.safe_load(text) or {})))


def test_only_what_is_missing_or_does_not_fit_is_proposed():
    wanted = proposal.propose(FACTS, SHIPPED)
    assert wanted == {
        "default-resources": {"slurm_account": "lab"},
        **{stage: {"slurm_partition": "hopper"} for stage in ("encode", "sample", "evaluate", "preflight", "train")},
    }


def test_what_a_person_wrote_and_what_fits_stays():
    own = written(FACTS)
    own["default-resources"]["slurm_account"] = "second"
    train = {"nodes": 2, "gres": "gpu:h100:4", "tasks_per_node": 4, "cpus_per_task": 26, "runtime": 2880}
    own["set-resources"]["train"] |= train
    own["set-resources"]["evaluate"] |= {"slurm_partition": "debug", "mem_mb": 16000, "runtime": 20}
    assert proposal.propose(facts(CPU + HOPPER + DEBUG, ("lab", "second")), own) == {}


def test_on_a_small_and_short_cluster_everything_shrinks_to_what_it_has():
    own = written(facts("all*|up|2:00:00|2|16|12000|gpu:2|idle\n", needed=False))
    assert own["default-resources"] == SHIPPED["default-resources"] | {"slurm_partition": "'all'"}
    stages = own["set-resources"]
    assert stages["train"] == SHIPPED["set-resources"]["train"] | {
        "slurm_partition": "'all'", "nodes": 2, "tasks_per_node": 2, "gres": "gpu:2", "runtime": 120
    }  # fmt: skip
    assert {stages[stage]["runtime"] for stage in ("ingest", "analyze", "caption", "encode", "evaluate")} == {120}
    assert stages["preflight"]["runtime"] == 60
    assert (stages["sample"]["mem_mb"], stages["cut"]["mem_mb"]) == (12000, 8000)


def test_a_stage_in_a_shorter_partition_than_the_default_one_gets_its_time():
    own = {"default-resources": {"slurm_partition": "cpu", "runtime": 60, "slurm_account": "lab"}}
    own["set-resources"] = {"export": {"slurm_partition": "debug"}, "mine": {"runtime": 9999}}
    wanted = proposal.propose(FACTS, own)
    assert (wanted["export"], wanted["mine"]) == ({"runtime": 30}, {"runtime": 1440})


def test_of_partitions_with_equal_gpus_the_one_without_other_nodes_is_chosen():
    listed = "mixed|up|1-0:0:0|2|8|8000|(null)|idle\nmixed|up|1-0:0:0|2|8|8000|gpu:h100:8|idle\n"
    listed += "tight|up|1-0:0:0|2|8|8000|gpu:h100:8|idle\ncpu*|up|1-0:0:0|2|8|8000|(null)|idle\n"
    train = written(facts(listed))["set-resources"]["train"]
    assert (train["slurm_partition"], train["nodes"], train["tasks_per_node"]) == ("tight", 2, 8)
    assert train["cpus_per_task"] == 1
    asked = {"set-resources": {"train": train | {"slurm_partition": "mixed", "nodes": 4}}}
    assert proposal.propose(facts(listed), asked)["train"] == {"nodes": 2}


def test_a_type_of_gpu_that_the_new_partition_has_not_is_dropped():
    old = {"set-resources": {"sample": {"slurm_partition": "v100s", "gres": "gpu:v100:1"}}}
    assert proposal.propose(FACTS, old)["sample"] == {"slurm_partition": "hopper", "gres": "gpu:1"}


def test_the_profile_keeps_its_comments_and_is_settled_after_one_time():
    after = proposal.edit_profile(TEXT, proposal.propose(FACTS, SHIPPED))
    read = yaml.safe_load(after)
    assert read["default-resources"]["slurm_account"] == "lab"
    assert read["set-threads"] == SHIPPED["set-threads"]
    assert "runtime: 60 # minutes" in after
    kept = [line for line in TEXT.splitlines() if line.startswith("#")]
    assert kept == [line for line in after.splitlines() if line.startswith("#")]
    assert proposal.propose(FACTS, read) == {}


@pytest.mark.parametrize(
    "text", ["", "default-resources:\n    runtime: 60\nset-resources:\n    cut:\n        mem_mb: 1\n"]
)
def test_sections_that_are_missing_or_indented_otherwise_are_written(text):
    own = written(FACTS, text)
    assert own["default-resources"]["slurm_account"] == "lab"
    assert own["set-resources"]["train"]["slurm_partition"] == "hopper"
    assert own["set-resources"]["train"]["gres"] == "gpu:8"
    assert proposal.propose(FACTS, own) == {}


def test_site_env_gets_the_gpus_and_the_module_and_keeps_what_is_written_there():
    env = (ROOT / "slurm/site.env").read_text()
    profile = written(FACTS)
    after = proposal.edit_site_env(env, proposal.site_lines(FACTS, profile))
    assert "\nBRICKREEL_GPU=H100\n" in after
    assert "\nBRICKREEL_GPUS=32\n" in after
    assert "\nmodule load cuda/12.6\n" in after
    own = after.replace("=H100", '="H100 NVL"').replace("cuda/12.6", "cuda/11.8")
    profile["set-resources"]["train"]["nodes"] = 2
    again = proposal.edit_site_env(own, proposal.site_lines(FACTS, profile))
    assert again == own.replace("BRICKREEL_GPUS=32", "BRICKREEL_GPUS=16")


def test_a_slice_of_a_gpu_is_no_model():
    sliced = facts("gpu*|up|1-0:0:0|2|64|8000|gpu:1g.10gb:7|idle\n")
    assert "BRICKREEL_GPU" not in proposal.site_lines(sliced, written(sliced))
