/* Stands in for NVIDIA's driver: memory is the host's, work is done at once, and every call is written to stdout. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAY(...) (printf(__VA_ARGS__), printf("\n"), fflush(stdout), 0)
typedef unsigned long long address;

int cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status) {
    const char *endings[] = {"", "_v2", "_v3"};
    char name[256];
    *function = 0;
    for (int k = 0; k < 3 && !*function; k++) {
        snprintf(name, sizeof name, "%s%s", symbol, endings[k]);
        *function = dlsym(dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD), name);
    }
    if (status) *status = *function ? 0 : 1;
    return *function ? 0 : 500;
}
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "NVIDIA H200", length); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)0xC0; return 0; }
int cuCtxSetCurrent(void *context) { return SAY("context %p", context); }
int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)0x50; return SAY("stream flags=%u", flags); }
int cuStreamDestroy_v2(void *stream) { return SAY("destroy stream %p", stream); }
int cuCtxSynchronize(void) { return SAY("wait for all"); }
int cuStreamSynchronize(void *stream) { return SAY("wait %p", stream); }
int cuEventCreate(void **event, unsigned flags) {
    static uintptr_t number = 0xE0;
    *event = (void *)number++;
    return SAY("event %p flags=%u", *event, flags);
}
int cuEventDestroy_v2(void *event) { return SAY("destroy event %p", event); }
int cuEventRecord(void *event, void *stream) { return SAY("mark %p %p", event, stream); }
int cuEventSynchronize(void *event) { return SAY("wait for mark %p", event); }
int cuMemAlloc_v2(address *memory, size_t size) { return posix_memalign((void **)memory, 256, size) ? 2 : 0; }
int cuMemFree_v2(address memory) { free((void *)memory); return SAY("free"); }
int cuMemAllocHost_v2(void **memory, size_t size) { return posix_memalign(memory, 256, size) ? 2 : 0; }
int cuMemFreeHost(void *memory) { free(memory); return SAY("free pinned"); }
int cuMemsetD8Async(address memory, unsigned char value, size_t size, void *stream) {
    memset((void *)memory, value, size);
    return SAY("set %zu to %d %p", size, value, stream);
}
int cuMemcpyHtoDAsync_v2(address target, const void *source, size_t size, void *stream) {
    memcpy((void *)target, source, size);
    return SAY("upload %zu %p", size, stream);
}
int cuMemcpyDtoDAsync_v2(address target, address source, size_t size, void *stream) {
    memcpy((void *)target, (void *)source, size);
    return SAY("copy %zu %p", size, stream);
}
int cuMemcpyDtoHAsync_v2(void *target, address source, size_t size, void *stream) {
    memcpy(target, (void *)source, size);
    return SAY("download %zu %p", size, stream);
}
int cuStreamBeginCapture_v2(void *stream, int mode) { return SAY("capture %p mode=%d", stream, mode); }
int cuStreamEndCapture(void *stream, void **graph) { *graph = (void *)0xA0; return SAY("captured %p", stream); }
int cuGraphGetNodes(void *graph, void **nodes, size_t *count) {
    for (size_t k = 0; nodes && k < *count && k < 2; k++) nodes[k] = (void *)(0xD0 + k);
    *count = 2;
    return 0;
}
int cuGraphNodeGetType(void *node, int *type) { *type = 0; return SAY("type of %p", node); }
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    *executable = (void *)0xB0;
    return SAY("instantiate %p flags=%llu", graph, flags);
}
int cuGraphDestroy(void *graph) { return SAY("destroy %p", graph); }
int cuGraphLaunch(void *executable, void *stream) { return SAY("launch %p %p", executable, stream); }
int cuGraphExecDestroy(void *executable) { return SAY("destroy executable %p", executable); }
int cuPointerGetAttribute(void *value, int attribute, address pointer) {
    *(int *)value = attribute == 2 ? 2 : 0; /* memory of a device, and of device 0 */
    return 0;
}
int cuPointerGetAttributes(unsigned count, const int *attributes, void **values, address pointer) {
    for (unsigned k = 0; k < count; k++) cuPointerGetAttribute(values[k], attributes[k], pointer);
    return 0;
}
