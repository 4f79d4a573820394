"""GPUs through NVML (nvidia-ml-py): activity, energy, clocks, throttling, memory, errors, events.

`utilization.gpu` says only that some kernel ran, and reads 100 % on a GPU that waits in a collective. On Hopper and
later GPM gives how busy the multiprocessors and tensor cores were; it needs no DCGM and runs beside it.
A value that cannot be read is None; the reason is reported once, when it changes, as an event.
"""

import ctypes
import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pynvml

GPM = {
    "sm_active_pct": pynvml.NVML_GPM_METRIC_SM_UTIL,
    "sm_occupancy_pct": pynvml.NVML_GPM_METRIC_SM_OCCUPANCY,
    "tensor_pct": pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
    "dram_pct": pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL,
    "pcie_tx_mib_s": pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC,
    "pcie_rx_mib_s": pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC,
    "nvlink_rx_mib_s": pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC,
    "nvlink_tx_mib_s": pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC,
}
NANOSECONDS = 1e-9
# Column -> (NVML field ids whose values are added, factor).
FIELDS = {
    "throttle_power_s": ((pynvml.NVML_FI_DEV_PERF_POLICY_POWER,), NANOSECONDS),
    "throttle_thermal_s": ((pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN,), NANOSECONDS),
    "throttle_hw_s": ((pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN,), NANOSECONDS),
    "throttle_brake_s": ((pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN,), NANOSECONDS),
    "ecc_uncorrected": ((pynvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL,), 1),
    "remap_pending": ((pynvml.NVML_FI_DEV_REMAPPED_PENDING,), 1),
    "remap_failed": ((pynvml.NVML_FI_DEV_REMAPPED_FAILURE,), 1),
    "pcie_replays": ((pynvml.NVML_FI_DEV_PCIE_REPLAY_COUNTER,), 1),
    "nvlink_errors": (
        (
            pynvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
            pynvml.NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL,
            pynvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
            pynvml.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
        ),
        1,
    ),
}
FIELD_IDS = sorted({field for ids, _ in FIELDS.values() for field in ids})
# How the value of a field is stored: NVML_VALUE_TYPE_* in their order.
VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")

EVENTS = {
    pynvml.nvmlEventTypeXidCriticalError: "xid",
    pynvml.nvmlEventTypeDoubleBitEccError: "ecc_double_bit",
}

Row = dict[str, float | None]


class Event(NamedTuple):
    """Something that happened to a device ("" when it concerns all of them)."""

    device: str
    event: str
    detail: str


def allotted(uuids: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """Those of a node's GPUs (`gpu0` -> UUID) that are this job's: NVML shows all that no cgroup hides.

    By what Slurm gave to the job, since `CUDA_VISIBLE_DEVICES` may be one task's; without Slurm by that variable.
    """
    everything = list(uuids)
    if listed := environ.get("SLURM_STEP_GPUS") or environ.get("SLURM_JOB_GPUS"):
        words = listed.split(",")
        mine = [device for device, uuid in uuids.items() if any(_names(word, device, uuid) for word in words)]
        # Where cgroups hide the others, those that are left are numbered anew.
        return mine if mine and len(words) < len(uuids) else everything
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or "MIG-" in visible:
        return everything
    words = [word.strip() for word in visible.split(",")]
    return [device for device, uuid in uuids.items() if any(_names(word, device, uuid) for word in words)]


def _names(word: str, device: str, uuid: str) -> bool:
    return device == f"gpu{word}" or (word.startswith("GPU-") and uuid.startswith(word))


class Gpus:
    """The job's GPUs. Without a library, a driver or a GPU there are none, and `events` says why."""

    def __init__(self) -> None:
        self.handles: dict[str, Any] = {}
        self.uuids: dict[str, str] = {}
        self.names: dict[int, str] = {}
        self.gpm: dict[str, list[Any]] = {}
        self.sampled: set[str] = set()
        self.reasons: dict[tuple[str, str], int] = {}
        self.news: list[Event] = []
        self.event_set: Any = None
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self.news.append(Event("", "not_measured", f"gpu: {error}"))
            return
        for index in range(count):
            self._find(index)
        mine = allotted(self.uuids)
        self.handles = {device: handle for device, handle in self.handles.items() if device in mine}
        self.news = [event for event in self.news if event.device in mine]
        for device, handle in self.handles.items():
            self._open(device, handle)
        self._subscribe()

    def _find(self, index: int) -> None:
        device = f"gpu{index}"
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError as error:
            self.news.append(Event(device, "not_measured", f"gpu: {error}"))
            self.uuids[device] = ""
            return
        self.handles[device] = handle
        self.uuids[device] = self._read(device, "uuid", lambda: pynvml.nvmlDeviceGetUUID(handle)) or ""

    def _open(self, device: str, handle: Any) -> None:
        # By address: a GPU that has fallen off the bus cannot be asked for its index when its event arrives.
        self.names[ctypes.cast(handle, ctypes.c_void_p).value or 0] = device
        name = self._read(device, "name", lambda: pynvml.nvmlDeviceGetName(handle))
        self.news.append(Event(device, "device", f"{name or 'unknown'}|{self.uuids[device]}"))
        supported = self._read(device, "gpm", lambda: pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice)
        if supported:
            self.gpm[device] = [pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()]
        elif supported == 0:
            self._missing(device, "gpm", pynvml.NVML_ERROR_NOT_SUPPORTED)

    def _subscribe(self) -> None:
        try:
            self.event_set = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError as error:
            self.news.append(Event("", "not_measured", f"events: {error}"))
            return
        wanted = 0
        for kind in EVENTS:
            wanted |= kind
        for device, handle in self.handles.items():
            self._read(device, "events", functools.partial(self._register, handle, wanted))

    def _register(self, handle: Any, wanted: int) -> None:
        supported = pynvml.nvmlDeviceGetSupportedEventTypes(handle)
        pynvml.nvmlDeviceRegisterEvents(handle, wanted & supported, self.event_set)

    def sample(self) -> dict[str, Row]:
        """GPU -> column -> value."""
        return {device: self._sample(device, handle) for device, handle in self.handles.items()}

    def _sample(self, device: str, handle: Any) -> Row:
        def read(name: str, call: Callable[[], Any]) -> Any:
            return self._read(device, name, call)

        memory = read("memory", lambda: pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2))
        rates = read("utilization", lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))
        power = read("power", lambda: pynvml.nvmlDeviceGetPowerUsage(handle))
        energy = read("energy", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        sm_clock = pynvml.NVML_CLOCK_SM
        return {
            "kernel_time_pct": rates.gpu if rates else None,
            "gpu_mem_used_b": memory.used if memory else None,
            "gpu_mem_total_b": memory.total if memory else None,
            "gpu_power_w": None if power is None else power / 1000,
            "gpu_energy_j": None if energy is None else energy / 1000,
            "gpu_temp_c": read("temperature", lambda: temperature(handle)),
            "sm_mhz": read("clock", lambda: pynvml.nvmlDeviceGetClockInfo(handle, sm_clock)),
            "sm_max_mhz": read("max_clock", lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, sm_clock)),
            "throttle_bits": read("throttle", lambda: event_reasons(handle)),
            **self._fields(device, handle),
            **self._activity(device, handle),
        }

    def _fields(self, device: str, handle: Any) -> Row:
        values = self._read(device, "fields", lambda: pynvml.nvmlDeviceGetFieldValues(handle, FIELD_IDS))
        if values is None:
            return {}
        found: dict[int, float] = {}
        codes: dict[int, int] = {}
        for value in values:
            codes[value.fieldId] = value.nvmlReturn
            if value.nvmlReturn == pynvml.NVML_SUCCESS:
                found[value.fieldId] = getattr(value.value, VALUE_MEMBERS[value.valueType])
        row: Row = {}
        for column, (ids, factor) in FIELDS.items():
            # Success is the lowest code.
            self._missing(device, column, max(codes.get(field, pynvml.NVML_SUCCESS) for field in ids))
            row[column] = sum(found[field] for field in ids) * factor if all(field in found for field in ids) else None
        return row

    def _activity(self, device: str, handle: Any) -> Row:
        """GPM: means between the sample before and this one; nothing at the first call."""
        if device not in self.gpm:
            return {}
        before, now = self.gpm[device]
        if self._read(device, "gpm_sample", lambda: pynvml.nvmlGpmSampleGet(handle, now)) is None:
            return {}
        self.gpm[device] = [now, before]
        if device not in self.sampled:
            self.sampled.add(device)
            return {}
        query = pynvml.c_nvmlGpmMetricsGet_t()
        query.version, query.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, len(GPM)
        query.sample1, query.sample2 = before, now
        for place, metric in enumerate(GPM.values()):
            query.metrics[place].metricId = metric
        if self._read(device, "gpm_metrics", lambda: pynvml.nvmlGpmMetricsGet(query)) is None:
            return {}
        row: Row = {}
        for place, column in enumerate(GPM):
            metric = query.metrics[place]
            self._missing(device, column, metric.nvmlReturn)
            # Over an interval of some milliseconds an H100 succeeds with a value that is no number.
            known = metric.nvmlReturn == pynvml.NVML_SUCCESS and math.isfinite(metric.value)
            row[column] = metric.value if known else None
        return row

    def nvlinks(self) -> dict[str, tuple[int, int]]:
        """GPU -> NVLinks that are up, the most that any GPU of the node has up, be it another job's.

        Nothing where none is up anywhere, and without a GPU that has no links or does not say: a card that could carry
        a bridge and has none knows its links as down, so that only its peers tell what should be up.
        """
        found, most = {}, _most_nvlinks(len(self.uuids))
        for device, handle in self.handles.items():
            states = self._read(device, "nvlinks", functools.partial(_nvlink_states, handle))
            if states and most:
                found[device] = (sum(states), most)
        return found

    def processes(self) -> dict[str, list[int]]:
        """GPU -> ids of the processes that compute on it; without a GPU that does not say."""
        found = {}
        for device, handle in self.handles.items():
            running = self._read(
                device, "processes", functools.partial(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
            )
            if running is not None:
                found[device] = [process.pid for process in running]
        return found

    def events(self) -> list[Event]:
        """What happened since the last call: XIDs, ECC errors, measurements that failed or came back."""
        while self.event_set is not None:
            try:
                data = pynvml.nvmlEventSetWait_v2(self.event_set, 0)
            except pynvml.NVMLError as error:
                if error.value != pynvml.NVML_ERROR_TIMEOUT:
                    self._missing("", "events", error.value)
                break
            device = self.names.get(ctypes.cast(data.device, ctypes.c_void_p).value or 0, "")
            kind = EVENTS.get(data.eventType, "event")
            self.news.append(Event(device, kind, str(data.eventData)))
        news, self.news = self.news, []
        return news

    def _read(self, device: str, what: str, call: Callable[[], Any]) -> Any:
        try:
            value = call()
        except pynvml.NVMLError as error:
            self._missing(device, what, error.value)
            return None
        self._missing(device, what, pynvml.NVML_SUCCESS)
        return value

    def _missing(self, device: str, what: str, code: int) -> None:
        """Report a change of what can be measured, once."""
        if code == self.reasons.get((device, what), pynvml.NVML_SUCCESS):
            return
        self.reasons[(device, what)] = code
        if code == pynvml.NVML_SUCCESS:
            self.news.append(Event(device, "measured", what))
        else:
            self.news.append(Event(device, "not_measured", f"{what}: {pynvml.NVMLError(code)} (code {code})"))


def _nvlink_states(handle: Any) -> list[int]:
    """1 or 0 for each NVLink: up or not."""
    states = []
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        try:
            states.append(pynvml.nvmlDeviceGetNvLinkState(handle, link))
        except pynvml.NVMLError as error:
            # Beyond the GPU's last link.
            if error.value not in (pynvml.NVML_ERROR_INVALID_ARGUMENT, pynvml.NVML_ERROR_NOT_SUPPORTED):
                raise
    return states


def _most_nvlinks(count: int) -> int:
    """The most NVLinks that one of the node's first `count` GPUs has up."""
    most = 0
    for index in range(count):
        try:
            most = max(most, sum(_nvlink_states(pynvml.nvmlDeviceGetHandleByIndex(index))))
        except pynvml.NVMLError:
            continue  # nothing to compare with; of the job's own GPUs it is said elsewhere
    return most


def temperature(handle: Any) -> int:
    """Degrees Celsius, by the newer call or the older one."""
    try:
        return pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU)
    except pynvml.NVMLError as error:
        if error.value not in (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NOT_SUPPORTED):
            raise
        return pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)


def event_reasons(handle: Any) -> int:
    """Bits that say why the clock is not at its highest; an older driver knows them as throttle reasons."""
    try:
        return pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except pynvml.NVMLError as error:
        if error.value != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
        return pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
