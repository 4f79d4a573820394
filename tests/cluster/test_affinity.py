from brickreel.cluster import affinity, fabric
from brickreel.cluster.affinity import Place
from cluster import sysfs

ALL = frozenset(range(104))


def node(root, allowed=ALL, name="n"):
    """Eight ranks on an HGX node whose GPUs 0-3 hang on socket 0 and 4-7 on socket 1."""
    near = affinity.near_cores(fabric.read(sysfs.hgx(root)))
    return [Place(name, address, allowed) for address in sorted(near)], near


def test_every_rank_gets_cores_beside_its_gpu_and_nobody_shares(tmp_path):
    places, near = node(tmp_path)
    shares = [affinity.share(rank, places, near, {}) for rank in range(8)]
    assert [len(cores) for cores in shares] == [13] * 8
    assert frozenset().union(*shares[:4]) == frozenset(range(52))
    assert frozenset().union(*shares[4:]) == frozenset(range(52, 104))


def test_hardware_threads_of_a_core_stay_together(tmp_path):
    places, near = node(tmp_path)
    twins = {core: frozenset({core, core + 26 if core % 52 < 26 else core - 26}) for core in range(104)}
    shares = [affinity.share(rank, places, near, twins) for rank in range(8)]
    assert all(twins[core] <= cores for cores in shares for core in cores)
    assert [len(cores) for cores in shares] == [12] * 8


def test_ranks_that_slurm_bound_already_keep_to_their_own_cores(tmp_path):
    places, near = node(tmp_path)
    bound = [place._replace(allowed=frozenset(range(13 * r, 13 * r + 13))) for r, place in enumerate(places)]
    assert [affinity.share(rank, bound, near, {}) for rank in range(8)] == [place.allowed for place in bound]


def test_cores_of_the_wrong_socket_and_unknown_gpus_are_left_alone(tmp_path):
    places, near = node(tmp_path)
    far = [place._replace(allowed=frozenset(range(52, 60))) for place in places]
    assert affinity.share(0, far, near, {}) == frozenset()
    assert affinity.share(0, [Place("n", "ffff:00:00.0", ALL)], near, {}) == frozenset()


def test_ranks_of_other_nodes_do_not_count(tmp_path):
    places, near = node(tmp_path)
    both = [place._replace(node=name) for name in ("a", "b") for place in places]
    assert affinity.share(0, both, near, {}) == affinity.share(8, both, near, {}) == frozenset(range(13))


def test_fewer_cores_than_ranks_are_not_divided(tmp_path):
    places, near = node(tmp_path, allowed=frozenset({0, 1, 60}))
    assert affinity.share(0, places, near, {}) == frozenset()


def test_lists_of_cores_are_read_and_written_as_the_kernel_does(tmp_path):
    assert affinity.parse("0-3,8\n") == [0, 1, 2, 3, 8]
    assert affinity.parse("") == []
    assert affinity.listed({8, 0, 1, 2, 3}) == "0-3,8"
    sysfs.write(tmp_path / "sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "1,5")
    assert affinity.siblings(tmp_path) == {1: frozenset({1, 5})}
