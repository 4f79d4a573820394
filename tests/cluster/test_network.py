import subprocess

import pytest

from brickreel.cluster import fabric, network
from cluster import sysfs


@pytest.fixture
def root(tmp_path):
    return sysfs.hgx(tmp_path)


def advice(root, way="bond0", nodes=2):
    found = fabric.read(root)
    return {variable.name: variable.value for variable in network.advise({f"n{i}": found for i in range(nodes)}, way)}


def test_a_storage_adapter_makes_an_exact_list_necessary(root):
    found = advice(root)
    assert found["NCCL_IB_HCA"] == "=" + ",".join(f"mlx5_{index}:1" for index in range(8))
    assert found["NCCL_SOCKET_IFNAME"] == "=bond0"
    assert found["GLOO_SOCKET_IFNAME"] == "bond0"


def test_with_rails_alone_no_adapter_is_named(tmp_path):
    assert "NCCL_IB_HCA" not in advice(sysfs.hgx(tmp_path, storage=False))


def test_one_node_needs_no_interface(root):
    assert "NCCL_SOCKET_IFNAME" not in advice(root, nodes=1)


def test_no_gpus_and_no_network_need_nothing(tmp_path):
    assert network.advise({"a": fabric.read(tmp_path)}, None) == []


def test_the_file_is_shell_and_reads_back_with_a_reason_above_each_line(root, tmp_path):
    variables = network.advise({"a": fabric.read(root), "b": fabric.read(root)}, "bond0")
    path = tmp_path / "nccl.env"
    path.write_text(network.text(variables, ["odd 'quotes' $(false)"]))
    assert network.read(path) == {variable.name: variable.value for variable in variables}
    done = subprocess.run(["bash", "-ec", f". '{path}'; echo $NCCL_IB_HCA"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == network.read(path)["NCCL_IB_HCA"]
    lines = path.read_text().splitlines()
    assert all(lines[i - 1].startswith("# ") for i, line in enumerate(lines) if "=" in line and line[0] in "NGT")


@pytest.mark.parametrize(
    ("variable", "value", "result", "sentence"),
    [
        ("NCCL_SOCKET_IFNAME", "=eth0", "pass", ""),
        ("NCCL_SOCKET_IFNAME", "eth", "pass", ""),
        ("NCCL_SOCKET_IFNAME", "^docker", "pass", ""),
        ("NCCL_SOCKET_IFNAME", "=eth", "fail", "names no interface"),
        ("NCCL_SOCKET_IFNAME", "=docker0", "fail", "leads to no other node"),
        ("GLOO_SOCKET_IFNAME", "ens1", "fail", "names no interface"),
        ("GLOO_SOCKET_IFNAME", "lo", "fail", "reached over eth0"),
        ("GLOO_SOCKET_IFNAME", "ib0", "warn", "reached over eth0"),
        ("GLOO_SOCKET_IFNAME", "eth0", "pass", ""),
    ],
)
def test_an_interface_that_does_not_lead_to_the_other_nodes_is_named(variable, value, result, sentence):
    found, reason = network.judge_interface(variable, value, ["lo", "eth0", "docker0", "ib0"], "eth0")
    assert found == result
    assert sentence in reason


def test_this_node_itself_is_reached_over_nothing():
    assert network.interface_towards("localhost") is None
    assert network.interface_towards("no-such-host.invalid") is None
