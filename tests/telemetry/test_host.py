"""CPU, memory, storage and network from trees of our own that look like /proc and /sys/fs/cgroup."""

import os

import pytest

from brickreel.telemetry.host import Host, descendants
from brickreel.telemetry.infiniband import Ports

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def process(proc, pid, parent, user=0, system=0, children=0, pages=0, name="python (x) 1"):
    folder = proc / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    fields = ["S", str(parent), *["0"] * 9, str(user), str(system), str(children), "0", *["0"] * 6, str(pages)]
    (folder / "stat").write_text(f"{pid} ({name}) {' '.join(fields)} 0 0\n")
    (folder / "schedstat").write_text("100 2000000000 5\n")
    (folder / "io").write_text("rchar: 9\nwchar: 9\nread_bytes: 4096\nwrite_bytes: 8192\n")
    return folder


@pytest.fixture
def proc(tmp_path):
    root = tmp_path / "proc"
    root.mkdir()
    # user nice system idle iowait irq softirq steal guest guest_nice
    (root / "stat").write_text("cpu  100 20 30 9999 40 5 6 7 50 0\ncpu0 1 2 3\n")
    (root / "meminfo").write_text("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  600 kB\n")
    (root / "net").mkdir()
    counts = "111 1 0 0 0 0 0 0 222 1 0 0 0 0 0 0"
    (root / "net/dev").write_text(f"a\nb\n    lo: {counts}\n  eth0: {counts}\n   ib0: {counts}\n")
    (root / "pressure").mkdir()
    for name, total in (("cpu", 1_000_000), ("memory", 2_000_000), ("io", 3_000_000)):
        (root / "pressure" / name).write_text(f"some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\nfull x\n")
    (root / "self").mkdir()
    process(root, 10, 1, user=3 * TICK, system=TICK, children=2 * TICK, pages=10)
    process(root, 11, 10, user=TICK, pages=5, name="evil) S 1 1 1 1 (")
    process(root, 12, 11, system=TICK, pages=5)
    process(root, 99, 1, user=1000 * TICK)
    return root


@pytest.fixture
def cgroups(tmp_path, proc):
    folder = tmp_path / "cgroup/slurm/job_1"
    folder.mkdir(parents=True)
    (proc / "10/cgroup").write_text("0::/slurm/job_1\n")
    (folder / "cpu.stat").write_text("usage_usec 5000000\nuser_usec 1\nnr_throttled 3\nthrottled_usec 250000\n")
    (folder / "cpu.max").write_text("150000 100000\n")
    (folder / "memory.current").write_text("1000000\n")
    (folder / "memory.peak").write_text("2000000\n")
    (folder / "memory.max").write_text("max\n")
    (folder / "memory.stat").write_text("anon 1\ninactive_file 400000\n")
    (folder / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    (folder / "io.stat").write_text("8:0 rbytes=100 wbytes=200 rios=1 wios=1\n8:16 rbytes=1 wbytes=2 rios=1\n")
    return tmp_path / "cgroup"


def test_the_process_tree_is_summed_and_nothing_else(proc, cgroups):
    row = Host(10, proc, cgroups).sample()
    assert row["tree_cpu_s"] == pytest.approx(8)
    assert row["tree_rss_b"] == 20 * PAGE
    assert row["tree_processes"] == 3
    assert row["tree_run_delay_s"] == pytest.approx(6)
    assert (row["tree_read_b"], row["tree_write_b"]) == (3 * 4096, 3 * 8192)


def test_the_recorder_itself_is_left_out(proc):
    process(proc, 13, 10)
    process(proc, 14, 13)
    assert sorted(descendants(proc, 10, leave_out=13)) == [10, 11, 12]


def test_a_child_that_ends_does_not_take_its_time_along(proc, cgroups):
    host = Host(10, proc, cgroups)
    before = host.sample()["tree_cpu_s"]
    for file in ("stat", "schedstat", "io"):
        (proc / "12" / file).unlink()
    (proc / "12").rmdir()
    assert host.sample()["tree_cpu_s"] == before


def test_the_node_counts_busy_time_without_guests_twice(proc, cgroups):
    row = Host(10, proc, cgroups).sample()
    assert row["node_cpu_busy_s"] == pytest.approx((100 + 20 + 30 + 5 + 6 + 7) / TICK)
    assert row["node_cpu_iowait_s"] == pytest.approx(40 / TICK)
    assert (row["node_mem_total_b"], row["node_mem_available_b"]) == (1000 * 1024, 600 * 1024)


def test_the_loopback_is_not_network(proc, cgroups):
    row = Host(10, proc, cgroups, proc / "none").sample()
    assert (row["net_rx_b"], row["net_tx_b"]) == (222, 444)


def test_what_passes_through_a_bond_and_a_vlan_counts_once(proc, cgroups, tmp_path):
    counts = "1000 1 0 0 0 0 0 0 200 1 0 0 0 0 0 0"
    half = "500 1 0 0 0 0 0 0 100 1 0 0 0 0 0 0"
    lines = [f"    lo: {counts}", f"  eth0: {half}", f"  eth1: {half}", f" bond0: {counts}", f"bond0.12: {counts}"]
    (proc / "net/dev").write_text("\n".join(["a", "b", *lines, ""]))
    for name in ("eth0", "eth1"):
        (tmp_path / "net" / name / "device").mkdir(parents=True)
    (tmp_path / "net/bond0").mkdir()
    row = Host(10, proc, cgroups, tmp_path / "net").sample()
    assert (row["net_rx_b"], row["net_tx_b"]) == (1000, 200)


def mounted(proc, *mounts):
    """NFS mounts of (export, mount point, device number, bytes read)."""
    told = [
        f"device {export} mounted on {point} with fstype nfs4 statvers=1.1\n\tbytes:\t1 2 3 4 {read} 600 7 8\n"
        for export, point, _, read in mounts
    ]
    (proc / "self/mountstats").write_text("device proc mounted on /proc with fstype proc\n" + "".join(told))
    rows = [
        f"36 25 {number} / {point} rw,relatime shared:1 - nfs4 {export} rw\n" for export, point, number, _ in mounts
    ]
    (proc / "self/mountinfo").write_text("".join(rows))


def test_a_network_file_system_that_is_mounted_twice_counts_once(proc, cgroups):
    twice = [("srv:/home", "/home", "0:52", 500), ("srv:/home/me", "/scratch/me", "0:52", 500)]
    mounted(proc, *twice, ("srv:/data", "/data", "0:53", 30))
    row = Host(10, proc, cgroups).sample()
    assert (row["fs_read_b"], row["fs_write_b"]) == (530, 1200)


def test_without_device_numbers_an_export_counts_once(proc, cgroups):
    mounted(proc, ("srv:/home", "/home", "0:52", 500), ("srv:/home", "/mnt", "0:52", 500))
    (proc / "self/mountinfo").unlink()
    assert Host(10, proc, cgroups).sample()["fs_read_b"] == 500


def test_the_cgroup_gives_cpu_working_set_kills_and_storage(proc, cgroups):
    row = Host(10, proc, cgroups).sample()
    assert row["cgroup_cpu_s"] == pytest.approx(5)
    assert row["cgroup_throttled_s"] == pytest.approx(0.25)
    assert row["cgroup_mem_b"] == 600000
    assert row["cgroup_mem_peak_b"] == 2000000
    assert row["cgroup_mem_limit_b"] is None, "max is no number"
    assert row["cgroup_oom_kills"] == 2
    assert (row["cgroup_read_b"], row["cgroup_write_b"]) == (101, 202)
    assert row["allowed_cores"] == min(1.5, len(os.sched_getaffinity(0)))


def test_of_a_slurm_job_the_jobs_own_cgroup_is_read_and_not_a_daemons_or_a_tasks(proc, cgroups, tmp_path):
    """As Slurm lays them out under cgroup v2: slurmstepd and every task of a step stand apart below the job."""
    job = tmp_path / "cgroup/system.slice/slurmstepd.scope/job_77"
    for below in ("step_0/slurm", "step_0/user/task_0"):
        (job / below).mkdir(parents=True)
        (job / below / "cpu.stat").write_text("usage_usec 1\n")
    (job / "cpu.stat").write_text("usage_usec 9000000\n")
    (job / "memory.max").write_text("5000000\n")
    (job / "cpuset.cpus.effective").write_text("0-15,32-47\n")
    for below in ("/step_0/slurm", "/step_0/user/task_0", ""):
        (proc / "10/cgroup").write_text(f"0::/system.slice/slurmstepd.scope/job_77{below}\n")
        row = Host(10, proc, tmp_path / "cgroup").sample()
        assert row["cgroup_cpu_s"] == pytest.approx(9)
        assert row["cgroup_mem_limit_b"] == 5000000
        assert row["allowed_cores"] == 32, "of the job, not of the rank that started the recorder"


def test_without_a_cgroup_its_columns_are_absent_and_the_rest_stays(proc, tmp_path):
    row = Host(10, proc, tmp_path / "none").sample()
    assert row.get("cgroup_cpu_s") is None
    assert row["tree_cpu_s"] == pytest.approx(8)


def test_pressure_is_in_seconds(proc, cgroups):
    row = Host(10, proc, cgroups).sample()
    assert [row[f"pressure_{name}_s"] for name in ("cpu", "mem", "io")] == [1, 2, 3]


def test_a_kernel_without_pressure_has_none(proc, cgroups):
    (proc / "pressure/io").unlink()
    assert Host(10, proc, cgroups).sample()["pressure_io_s"] is None


def test_network_file_systems_are_added_up(proc, cgroups):
    (proc / "self/mountstats").write_text(
        "device a:/x mounted on /x with fstype nfs4 statvers=1.1\n\tbytes:\t1 2 3 4 500 600 7 8\n"
    )
    stats = proc / "fs/lustre/llite/scratch-1"
    stats.mkdir(parents=True)
    (stats / "stats").write_text(
        "snapshot_time 1 secs.usecs\nread_bytes 3 samples [bytes] 1 9 1000\nwrite_bytes 2 samples [bytes] 1 9 2000\n"
    )
    row = Host(10, proc, cgroups).sample()
    assert (row["fs_read_b"], row["fs_write_b"]) == (1500, 2600)


def test_an_unreadable_proc_gives_an_empty_row_and_no_error(tmp_path):
    assert [value for value in Host(1, tmp_path, tmp_path).sample().values() if value is not None] == []


def test_infiniband_words_become_bytes(tmp_path):
    port = tmp_path / "mlx5_0/ports/1"
    (port / "counters").mkdir(parents=True)
    for name, value in (("port_xmit_data", 250), ("port_rcv_data", 500), ("link_downed", 3), ("symbol_error", 0)):
        (port / "counters" / name).write_text(f"{value}\n")
    (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    row = Ports(tmp_path).sample()["mlx5_0/1"]
    assert (row["ib_tx_b"], row["ib_rx_b"], row["ib_rate_gb_s"]) == (1000, 2000, 400)
    assert (row["ib_link_downed"], row["ib_symbol_errors"]) == (3, 0)
    assert row["ib_xmit_wait"] is None, "a counter that is not there is not 0"


def test_a_node_without_infiniband_has_no_ports(tmp_path):
    assert Ports(tmp_path / "class").sample() == {}
