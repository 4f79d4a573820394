import pytest

from brickreel.cluster import fabric
from cluster import sysfs


@pytest.fixture
def root(tmp_path):
    return sysfs.hgx(tmp_path)


def test_a_node_with_eight_rails_and_a_storage_adapter(root):
    found = fabric.read(root)
    assert found.kind == "infiniband"
    assert [port.name for port in found.rails] == [f"mlx5_{index}:1" for index in range(8)]
    assert found.bandwidth_gb_s == 400
    assert [gpu.nearest for gpu in found.gpus] == [(f"mlx5_{index}:1", "PIX") for index in range(8)]
    assert {gpu.numa_node for gpu in found.gpus} == {0, 1}


def test_interfaces_that_lead_nowhere_are_left_out(root):
    found = {interface.name: interface for interface in fabric.read(root).interfaces}
    assert set(found) == {"bond0", "ib0"}
    assert found["bond0"].default_route
    assert found["ib0"].over_infiniband


def test_a_port_that_is_down_is_no_rail_and_its_gpu_is_far_from_the_next(root):
    sysfs.set_port(root, "mlx5_3", up=False)
    found = fabric.read(root)
    assert [port.name for port in found.idle_rails] == ["mlx5_3:1"]
    assert (found.idle_rails[0].state, found.idle_rails[0].physical_state) == ("DOWN", "Polling")
    assert found.gpus[3].nearest[1] == "NODE"
    assert len(found.rails) == 7


def test_without_gpus_the_fastest_ports_are_the_rails(root):
    for path in (root / "sys/bus/pci/devices").iterdir():
        path.unlink()
    assert [port.name for port in fabric.read(root).rails] == [f"mlx5_{index}:1" for index in range(8)]


def test_ethernet_adapters_with_verbs_are_roce(root):
    for path in root.glob("sys/class/infiniband/*/ports/*/link_layer"):
        path.write_text("Ethernet\n")
    assert fabric.read(root).kind == "roce"


def test_an_empty_machine_is_plain_ethernet_without_interfaces(tmp_path):
    found = fabric.read(tmp_path)
    assert (found.kind, found.rails, found.gpus, found.interfaces) == ("ethernet", (), (), ())


def test_this_machine_can_be_read():
    assert fabric.read().kind in ("ethernet", "roce", "infiniband")
    assert fabric.bytes_sent()


@pytest.mark.parametrize(
    ("one", "other", "same_numa", "expected"),
    [
        ("pci0000:00/01.0/02.0/03.0/gpu", "pci0000:00/01.0/02.0/03.1/nic", True, "PIX"),
        ("pci0000:00/01.0/02.0/03.0/04.0/05.0/gpu", "pci0000:00/01.0/02.0/03.1/nic", True, "PXB"),
        ("pci0000:00/01.0/gpu", "pci0000:00/02.0/nic", True, "PHB"),
        ("pci0000:00/01.0/gpu", "pci0000:10/01.0/nic", True, "NODE"),
        ("pci0000:00/01.0/gpu", "pci0000:80/01.0/nic", False, "SYS"),
    ],
)
def test_distances_have_nccls_names(one, other, same_numa, expected):
    assert fabric.distance(f"/sys/devices/{one}", f"/sys/devices/{other}", same_numa) == expected


def test_sent_bytes_are_counted_by_interface_and_port(root):
    sent = fabric.bytes_sent(root)
    assert sent["bond0"] == 20
    assert sent["mlx5_0:1"] == 4000


def test_active_ports_of_a_fabric_of_its_own_are_neither_rails_nor_roce(root):
    for path in root.glob("sys/class/infiniband/*/ports/*/link_layer"):
        path.write_text("Unknown\n")
    sysfs.set_port(root, "mlx5_0", up=False)
    found = fabric.read(root)
    assert (found.kind, found.rails) == ("ethernet", ())
    assert [port.device for port in found.unfamiliar] == [*(f"mlx5_{index}" for index in range(1, 8)), "mlx5_10"]
