import pytest

from brickreel.cluster.submission import Resources, StageTask, parameters, parse_options


def test_options_are_read_in_every_form_of_sbatch():
    assert parse_options("--qos=long --exclusive --constraint 'h100&ib'") == {
        "qos": "long",
        "exclusive": True,
        "constraint": "h100&ib",
    }
    assert parse_options("") == {}


@pytest.mark.parametrize("text", ["-p gpu", "long", "--qos=long more"])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match="long form"):
        parse_options(text)


def test_what_is_not_asked_for_is_left_to_slurm():
    asked = parameters(Resources(), "train-demo", "demo")
    assert not {"partition", "account", "gres", "mem", "exclude"} & set(asked)
    assert asked["additional_parameters"]["requeue"] is True


def test_all_memory_of_a_node_can_be_asked_for():
    assert parameters(Resources(mem_mb=0), "x", None)["mem"] == "0M"


def test_fewer_nodes_after_a_loss_are_a_range_for_slurm():
    assert parameters(Resources(nodes=4, min_nodes=2), "x", None)["additional_parameters"]["nodes"] == "2-4"
    assert "nodes" not in parameters(Resources(nodes=4), "x", None)["additional_parameters"]


def test_unfit_nodes_are_excluded():
    assert parameters(Resources(exclude=("gpu2", "gpu7")), "x", None)["exclude"] == "gpu2,gpu7"


def test_names_of_runs_are_quoted_for_the_shell():
    lines = parameters(Resources(), "x", "a'b $(c)")["setup"]
    assert lines[-1] == "use_network_of 'a'\"'\"'b $(c)'"


def test_a_requeued_task_is_the_same_task():
    task = StageTask("train", ("config.yaml",), {"run": "demo"})
    again = task.checkpoint()
    assert again.function is task
