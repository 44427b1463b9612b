/* NVIDIA's management library as far as pytest_llmperf.gpu asks it, answering from the text file $FAKE_NVML:
 *     gpu UUID TOTAL FREE NAME              bytes; the name may have spaces
 *     process GPU compute|graphics PID USED bytes, -1: not available
 *     sample GPU PID MICROSECONDS PERCENT   at 0: one of the empty samples that some drivers add to each answer
 *     error FUNCTION CODE                   the function fails; other lines mean nothing
 * Structures and return codes are those of nvml.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { unsigned pid; unsigned long long time; unsigned sm, memory, encoder, decoder; } Sample;
typedef struct { char uuid[80], name[96]; Memory memory; } Gpu;

/* Calls back for each line until one returns non-zero, and returns that. */
static int each_line(int (*visit)(const char *line, void *data), void *data) {
    char line[256];
    int stop = 0;
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    while (file && !stop && fgets(line, sizeof line, file)) stop = visit(line, data);
    if (file) fclose(file);
    return stop;
}

static int failing(const char *line, void *function) {
    char name[80];
    int code;
    return sscanf(line, "error %79s %d", name, &code) == 2 && !strcmp(name, function) ? code : SUCCESS;
}

#define FAIL_IF_TOLD() do { int code = each_line(failing, (void *)__func__); if (code) return code; } while (0)

struct wanted { size_t index; Gpu gpu; };

static int find_gpu(const char *line, void *data) {
    struct wanted *wanted = data;
    Gpu *gpu = &wanted->gpu;
    if (sscanf(line, "gpu %79s %llu %llu %95[^\n]", gpu->uuid, &gpu->memory.total, &gpu->memory.free, gpu->name) != 4)
        return 0;
    return wanted->index-- == 0;
}

/* A handle is the GPU's index + 1. */
static Gpu gpu_of(void *device) {
    struct wanted wanted = {.index = (size_t)device - 1};
    each_line(find_gpu, &wanted);
    return wanted.gpu;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; FAIL_IF_TOLD(); return SUCCESS; }

static int count_gpu(const char *line, void *count) { *(unsigned *)count += !strncmp(line, "gpu ", 4); return 0; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    FAIL_IF_TOLD();
    *count = 0;
    each_line(count_gpu, count);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    FAIL_IF_TOLD();
    *device = (void *)(size_t)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    snprintf(uuid, length, "%s", gpu_of(device).uuid);
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    snprintf(name, length, "%s", gpu_of(device).name);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
    FAIL_IF_TOLD();
    *memory = gpu_of(device).memory;
    memory->used = memory->total - memory->free;
    return SUCCESS;
}

struct processes { int gpu; const char *kind; Process *found; unsigned count, room; };

static int add_process(const char *line, void *data) {
    struct processes *all = data;
    int gpu, pid;
    long long used;
    char kind[16];
    if (sscanf(line, "process %d %15s %d %lld", &gpu, kind, &pid, &used) != 4) return 0;
    if (gpu != all->gpu || strcmp(kind, all->kind)) return 0;
    if (all->count++ < all->room) all->found[all->count - 1] = (Process){pid, (unsigned long long)used, -1, -1};
    return 0;
}

static int processes(void *device, const char *kind, unsigned *count, Process *found) {
    struct processes all = {(int)(size_t)device - 1, kind, found, 0, *count};
    each_line(add_process, &all);
    *count = all.count;
    return all.count > all.room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Process *found) {
    FAIL_IF_TOLD();
    return processes(device, "compute", count, found);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, Process *found) {
    FAIL_IF_TOLD();
    return processes(device, "graphics", count, found);
}

struct samples { int gpu; unsigned long long since; Sample *found; unsigned count, room; };

static int add_sample(const char *line, void *data) {
    struct samples *all = data;
    int gpu, pid;
    unsigned sm;
    unsigned long long time;
    if (sscanf(line, "sample %d %d %llu %u", &gpu, &pid, &time, &sm) != 4) return 0;
    if (gpu != all->gpu || (time && time <= all->since)) return 0;
    if (all->count++ < all->room) all->found[all->count - 1] = (Sample){pid, time, sm, 0, 0, 0};
    return 0;
}

int nvmlDeviceGetProcessUtilization(void *device, Sample *found, unsigned *count, unsigned long long since) {
    FAIL_IF_TOLD();
    struct samples all = {(int)(size_t)device - 1, since, found, 0, found ? *count : 0};
    each_line(add_sample, &all);
    *count = all.count;
    if (!all.count) return NOT_FOUND;
    return all.count > all.room ? INSUFFICIENT_SIZE : SUCCESS;
}

const char *nvmlErrorString(int code) { (void)code; return "an error of the fake NVML"; }
