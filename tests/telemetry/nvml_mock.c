/* A stand-in for libnvidia-ml.so.1 that follows a script, for nvidia-ml-py to load without a GPU.
 *
 * NVML_MOCK names the script, one step per line: GPU METRIC TIME VALUE, where VALUE holds from TIME (seconds) on.
 * NVML_MOCK_CLOCK names a file of one double, the virtual time; without it the machine's monotonic clock counts from
 * the first call. Counters are exact integrals of the script and GPM returns exact means, so that tests compare with
 * arithmetic. Structs and numbers are this project's reading of NVML's public interface: the mock proves how the
 * recorder behaves, not how a driver does.
 *
 * Metrics: util, sm, occupancy, tensor, dram (%), power (W), temp (C), mhz, used (GiB), thermal and capped (0 or 1),
 * ecc (count), links (NVLinks up, of 18), pid (of a process that computes), xid (an event at its time), lost (1: every
 * call fails with 15), nogpm (1: no permission, code 4).
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, TOO_SMALL = 7, TIMEOUT = 10, DRIVER_NOT_LOADED = 9, LOST = 15 };
enum { GPUS = 16, STEPS = 4096 };
static const unsigned long long XID = 8;

typedef struct { int gpu; char metric[16]; double time, value; int told; } Step;
typedef struct { int index; } Device;
typedef struct { int gpu; double time; } Sample;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Rates;
typedef struct { unsigned version; int sensor; int temperature; } Temperature;
typedef struct { unsigned version, supported; } Support;
typedef struct { unsigned id; int status; double value; char *names[3]; } Metric;
typedef struct { unsigned version, count; Sample *first, *second; Metric metrics[477]; } Metrics;
typedef struct { Device *device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } Event;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
typedef union { double d; unsigned ui; unsigned long ul; unsigned long long ull; long long sll; int si; } Value;
typedef struct { uint32_t id, scope; int64_t stamp, latency; int type, status; Value value; } Field;

static Step steps[STEPS];
static Device devices[GPUS];
static int count, gpus, clock_file = -1;
static double origin;

static double machine_time(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

static double now(void) {
    double time = 0;
    if (clock_file >= 0) return pread(clock_file, &time, sizeof time, 0) == sizeof time ? time : 0;
    return machine_time() - origin;
}

static double value_at(int gpu, const char *metric, double time) {
    double value = 0;
    for (int i = 0; i < count; i++)
        if (steps[i].gpu == gpu && steps[i].time <= time && !strcmp(steps[i].metric, metric)) value = steps[i].value;
    return value;
}

/* The integral from 0: steps stand in the order of their times. */
static double integral(int gpu, const char *metric, double time) {
    double sum = 0, since = 0, value = 0;
    for (int i = 0; i < count; i++)
        if (steps[i].gpu == gpu && steps[i].time <= time && !strcmp(steps[i].metric, metric)) {
            sum += value * (steps[i].time - since);
            since = steps[i].time;
            value = steps[i].value;
        }
    return sum + value * (time - since);
}

static int state(Device *device) { return value_at(device->index, "lost", now()) ? LOST : OK; }
static double current(Device *device, const char *metric) { return value_at(device->index, metric, now()); }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    const char *script = getenv("NVML_MOCK"), *clock_path = getenv("NVML_MOCK_CLOCK");
    FILE *file = script ? fopen(script, "r") : NULL;
    if (!file) return DRIVER_NOT_LOADED;
    origin = machine_time();
    if (clock_path) clock_file = open(clock_path, O_RDONLY);
    for (count = gpus = 0; count < STEPS; count++) {
        Step *step = &steps[count];
        if (fscanf(file, "%d %15s %lf %lf", &step->gpu, step->metric, &step->time, &step->value) != 4) break;
        step->told = 0;
        if (step->gpu >= gpus) gpus = step->gpu + 1;
    }
    fclose(file);
    for (int i = 0; i < GPUS; i++) devices[i].index = i;
    return OK;
}

const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : "an error"; }
int nvmlDeviceGetCount_v2(unsigned *result) { *result = gpus; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) { *device = &devices[index]; return OK; }

int nvmlDeviceGetName(Device *device, char *name, unsigned length) {
    snprintf(name, length, "NVIDIA H100 80GB HBM3");
    return state(device);
}

int nvmlDeviceGetUUID(Device *device, char *name, unsigned length) {
    snprintf(name, length, "GPU-%d", device->index);
    return state(device);
}

int nvmlDeviceGetMemoryInfo_v2(Device *device, Memory *memory) {
    memory->total = 80ULL << 30;
    memory->used = (unsigned long long)(current(device, "used") * (1ULL << 30));
    memory->free = memory->total - memory->used;
    return state(device);
}

int nvmlDeviceGetUtilizationRates(Device *device, Rates *rates) {
    rates->gpu = (unsigned)current(device, "util");
    rates->memory = 0;
    return state(device);
}

int nvmlDeviceGetPowerUsage(Device *device, unsigned *milliwatts) {
    *milliwatts = (unsigned)(1000 * current(device, "power"));
    return state(device);
}

int nvmlDeviceGetTotalEnergyConsumption(Device *device, unsigned long long *millijoules) {
    *millijoules = (unsigned long long)(1000 * integral(device->index, "power", now()) + 0.5);
    return state(device);
}

int nvmlDeviceGetClockInfo(Device *device, int kind, unsigned *mhz) {
    (void)kind;
    *mhz = (unsigned)current(device, "mhz");
    return state(device);
}

int nvmlDeviceGetMaxClockInfo(Device *device, int kind, unsigned *mhz) {
    (void)kind;
    *mhz = 1980;
    return state(device);
}

int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *celsius) {
    (void)sensor;
    *celsius = (unsigned)current(device, "temp");
    return state(device);
}

/* 0x40: slowed by hardware for heat; 0x4: held at the power cap. */
static unsigned long long reasons(Device *device) {
    return (current(device, "thermal") ? 0x40 : 0) | (current(device, "capped") ? 0x4 : 0);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, unsigned long long *bits) {
    *bits = reasons(device);
    return state(device);
}

static int field(Device *device, unsigned id, unsigned long long *value) {
    switch (id) {
    case 74: *value = (unsigned long long)(1e9 * integral(device->index, "capped", now()) + 0.5); return OK;
    case 270: *value = (unsigned long long)(1e9 * integral(device->index, "thermal", now()) + 0.5); return OK;
    case 4: *value = (unsigned long long)current(device, "ecc"); return OK;
    case 269: case 271: case 144: case 145: case 94: *value = 0; return OK;
    default: return NOT_SUPPORTED;
    }
}

int nvmlDeviceGetFieldValues(Device *device, int number, Field *fields) {
    for (int i = 0; i < number; i++) {
        fields[i].type = 3;
        fields[i].status = field(device, fields[i].id, &fields[i].value.ull);
    }
    return state(device);
}

static int scripted(Device *device, const char *metric) {
    for (int i = 0; i < count; i++)
        if (steps[i].gpu == device->index && !strcmp(steps[i].metric, metric)) return 1;
    return 0;
}

int nvmlDeviceGetNvLinkState(Device *device, unsigned link, unsigned *active) {
    if (!scripted(device, "links")) return NOT_SUPPORTED;
    if (link >= 18) return INVALID;
    *active = link < current(device, "links");
    return state(device);
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *number, Process *processes) {
    unsigned pid = (unsigned)current(device, "pid"), room = *number;
    *number = pid ? 1 : 0;
    if (room < *number) return TOO_SMALL;
    if (pid) processes[0] = (Process){pid, 1ULL << 30, ~0u, ~0u};
    return state(device);
}

int nvmlEventSetCreate(void **set) { *set = steps; return OK; }
int nvmlDeviceGetSupportedEventTypes(Device *device, unsigned long long *kinds) { *kinds = XID; return state(device); }

int nvmlDeviceRegisterEvents(Device *device, unsigned long long kinds, void *set) {
    (void)set;
    return kinds == XID ? state(device) : NOT_SUPPORTED;
}

int nvmlEventSetWait_v2(void *set, Event *event, unsigned timeout) {
    (void)set, (void)timeout;
    for (int i = 0; i < count; i++)
        if (!strcmp(steps[i].metric, "xid") && !steps[i].told && steps[i].time <= now()) {
            steps[i].told = 1;
            event->device = &devices[steps[i].gpu];
            event->type = XID;
            event->data = (unsigned long long)steps[i].value;
            return OK;
        }
    return TIMEOUT;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetTemperatureV(Device *device, Temperature *temperature) {
    temperature->temperature = (int)current(device, "temp");
    return state(device);
}

int nvmlDeviceGetCurrentClocksEventReasons(Device *device, unsigned long long *bits) {
    *bits = reasons(device);
    return state(device);
}

int nvmlGpmQueryDeviceSupport(Device *device, Support *support) {
    support->supported = 1;
    return state(device);
}

int nvmlGpmSampleAlloc(Sample **sample) {
    *sample = calloc(1, sizeof **sample);
    return OK;
}

int nvmlGpmSampleGet(Device *device, Sample *sample) {
    if (current(device, "nogpm")) return NO_PERMISSION;
    sample->gpu = device->index;
    sample->time = now();
    return state(device);
}

int nvmlGpmMetricsGet(Metrics *query) {
    for (unsigned i = 0; i < query->count; i++) {
        Metric *metric = &query->metrics[i];
        const char *name = metric->id == 2 ? "sm" : metric->id == 3 ? "occupancy" : metric->id == 5 ? "tensor"
                         : metric->id == 10 ? "dram" : NULL;
        double from = query->first->time, to = query->second->time;
        metric->status = name && to > from ? OK : NOT_SUPPORTED;
        if (metric->status == OK)
            metric->value = (integral(query->first->gpu, name, to) - integral(query->first->gpu, name, from)) / (to - from);
    }
    return OK;
}
#endif
