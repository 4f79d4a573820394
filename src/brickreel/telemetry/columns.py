"""What the recorder measures: every column's unit, kind and resolution, in one table. Loads nothing heavy.

A sample is one row per device: the host (device ""), each GPU ("gpu0"), each InfiniBand port ("mlx5_0/1"), each file
system. What could not be measured is null, never 0. An event is a row with `event` and `detail` and no values.
Counters are stored raw, as read; rates are derived later, so that nothing between two samples is missed.
"""

from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge"]


class Column(NamedTuple):
    """One measured quantity."""

    name: str
    kind: Kind
    quantum: float
    """Resolution kept in the finished Parquet file; the stream keeps the value as read."""
    source: str


_HOST = (
    Column("node_cpu_busy_s", "counter", 0.01, "/proc/stat: user, nice, system, irq, softirq, steal over all cores"),
    Column("node_cpu_iowait_s", "counter", 0.01, "/proc/stat"),
    Column("node_cores", "gauge", 1, "os.cpu_count"),
    Column("allowed_cores", "gauge", 0.01, "scheduler affinity, and the cgroup's cpu.max where that is less"),
    Column("node_mem_available_b", "gauge", 4096, "/proc/meminfo"),
    Column("node_mem_total_b", "gauge", 4096, "/proc/meminfo"),
    Column("net_rx_b", "counter", 1, "/proc/net/dev, interfaces with hardware; all but lo where none has"),
    Column("net_tx_b", "counter", 1, "/proc/net/dev, interfaces with hardware; all but lo where none has"),
    Column("tree_cpu_s", "counter", 0.01, "/proc/PID/stat over the stage's process tree, finished children included"),
    Column("tree_run_delay_s", "counter", 0.001, "/proc/PID/schedstat: runnable, but waiting for a core"),
    Column("tree_rss_b", "gauge", 4096, "/proc/PID/stat; pages shared by processes count once for each"),
    Column("tree_read_b", "counter", 1, "/proc/PID/io: bytes fetched from storage"),
    Column("tree_write_b", "counter", 1, "/proc/PID/io: bytes sent to storage"),
    Column("tree_processes", "gauge", 1, "/proc"),
    Column("cgroup_cpu_s", "counter", 1e-4, "cgroup v2 cpu.stat usage_usec"),
    Column("cgroup_throttled_s", "counter", 1e-4, "cgroup v2 cpu.stat throttled_usec"),
    Column("cgroup_mem_b", "gauge", 4096, "cgroup v2 memory.current less inactive_file: the working set"),
    Column("cgroup_mem_peak_b", "gauge", 4096, "cgroup v2 memory.peak"),
    Column("cgroup_mem_limit_b", "gauge", 4096, "cgroup v2 memory.max"),
    Column("cgroup_oom_kills", "counter", 1, "cgroup v2 memory.events oom_kill"),
    Column("cgroup_read_b", "counter", 1, "cgroup v2 io.stat; network file systems do not appear here"),
    Column("cgroup_write_b", "counter", 1, "cgroup v2 io.stat"),
    Column("pressure_cpu_s", "counter", 1e-4, "PSI: some task waited for a core"),
    Column("pressure_mem_s", "counter", 1e-4, "PSI: some task waited for memory"),
    Column("pressure_io_s", "counter", 1e-4, "PSI: some task waited for IO"),
    Column("fs_read_b", "counter", 1, "of the whole node: /proc/self/mountstats for NFS, llite stats for Lustre"),
    Column("fs_write_b", "counter", 1, "of the whole node: /proc/self/mountstats for NFS, llite stats for Lustre"),
)

_GPU = (
    Column("kernel_time_pct", "gauge", 0.1, "NVML utilization.gpu: time with a kernel, also with one that only waits"),
    Column("sm_active_pct", "gauge", 0.1, "NVML GPM metric 2, mean since the sample before"),
    Column("sm_occupancy_pct", "gauge", 0.1, "NVML GPM metric 3"),
    Column("tensor_pct", "gauge", 0.1, "NVML GPM metric 5"),
    Column("dram_pct", "gauge", 0.1, "NVML GPM metric 10"),
    Column("pcie_tx_mib_s", "gauge", 0.1, "NVML GPM metric 20"),
    Column("pcie_rx_mib_s", "gauge", 0.1, "NVML GPM metric 21"),
    Column("nvlink_rx_mib_s", "gauge", 0.1, "NVML GPM metric 60"),
    Column("nvlink_tx_mib_s", "gauge", 0.1, "NVML GPM metric 61"),
    Column("gpu_mem_used_b", "gauge", 65536, "NVML memory_v2 used"),
    Column("gpu_mem_total_b", "gauge", 65536, "NVML memory_v2 total"),
    Column("gpu_power_w", "gauge", 0.1, "NVML power usage: a mean over 1 s on Hopper"),
    Column("gpu_energy_j", "counter", 0.001, "NVML total energy consumption"),
    Column("gpu_temp_c", "gauge", 1, "NVML temperature"),
    Column("sm_mhz", "gauge", 1, "NVML SM clock"),
    Column("sm_max_mhz", "gauge", 1, "NVML highest SM clock"),
    Column("throttle_bits", "gauge", 1, "NVML clocks event reasons, or throttle reasons on an older driver"),
    Column("throttle_power_s", "counter", 1e-4, "NVML field 74"),
    Column("throttle_thermal_s", "counter", 1e-4, "NVML field 269"),
    Column("throttle_hw_s", "counter", 1e-4, "NVML field 270"),
    Column("throttle_brake_s", "counter", 1e-4, "NVML field 271"),
    Column("ecc_uncorrected", "counter", 1, "NVML field 4: double-bit errors since the driver started"),
    Column("remap_pending", "gauge", 1, "NVML field 144"),
    Column("remap_failed", "gauge", 1, "NVML field 145"),
    Column("pcie_replays", "counter", 1, "NVML field 94"),
    Column("nvlink_errors", "counter", 1, "NVML fields 38, 45, 52, 59: CRC, replay and recovery"),
)

_INFINIBAND = (
    Column("ib_tx_b", "counter", 4, "port_xmit_data times 4"),
    Column("ib_rx_b", "counter", 4, "port_rcv_data times 4"),
    Column("ib_rate_gb_s", "gauge", 0.1, "rate: the line rate in Gb/s"),
    Column("ib_link_downed", "counter", 1, "link_downed"),
    Column("ib_symbol_errors", "counter", 1, "symbol_error"),
    Column("ib_link_recoveries", "counter", 1, "link_error_recovery"),
    Column("ib_xmit_wait", "counter", 1, "port_xmit_wait: ticks in which data waited, a hint of congestion"),
)

COLUMNS = (*_HOST, *_GPU, *_INFINIBAND)
NAMES = tuple(column.name for column in COLUMNS)
BY_NAME = {column.name: column for column in COLUMNS}
HOST = tuple(column.name for column in _HOST)
GPU = tuple(column.name for column in _GPU)
INFINIBAND = tuple(column.name for column in _INFINIBAND)
