/* A CUDA runtime whose one GPU uses the host's memory: allocations and copies are real, and kernels are counted, not launched.
 *
 * build.py adds every other function that PyTorch imports; those do nothing and return success. All work is done at once, so
 * waiting is immediate; each wait is reported, because a real GPU would make the host wait.
 */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OK return cudaSuccess

static const size_t TOTAL_MEMORY = 80UL << 30;
static long launches;
long pretended_launches(void) { return launches; }

/* Called with the name of what waits: device.py sets it. */
void (*pretended_on_wait)(const char *);
static void report(const char *what) { if (pretended_on_wait) pretended_on_wait(what); }

/* Memory: whether an address is pinned memory of the host (1), memory of the device (2) or neither (0). */
enum { OTHER, PINNED, DEVICE, MAX_RANGES = 65536 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct range { char *start; size_t size; int kind; } ranges[MAX_RANGES];
static int num_ranges;

static cudaError_t take(void **result, size_t size, int kind) {
    pthread_mutex_lock(&lock);
    int failed = num_ranges == MAX_RANGES || posix_memalign(result, 512, size ? size : 1);
    if (!failed) ranges[num_ranges++] = (struct range){*result, size, kind};
    pthread_mutex_unlock(&lock);
    return failed ? cudaErrorMemoryAllocation : cudaSuccess;
}
static cudaError_t drop(void *address) {
    pthread_mutex_lock(&lock);
    for (int i = num_ranges - 1; i >= 0; i--)
        if (ranges[i].start == address) { ranges[i] = ranges[--num_ranges]; break; }
    pthread_mutex_unlock(&lock);
    free(address);
    OK;
}
static int kind_of(const void *address) {
    int kind = OTHER;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < num_ranges && !kind; i++)
        if ((char *)address >= ranges[i].start && (char *)address < ranges[i].start + ranges[i].size) kind = ranges[i].kind;
    pthread_mutex_unlock(&lock);
    return kind;
}
cudaError_t cudaMalloc(void **p, size_t n) { return take(p, n, DEVICE); }
cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s) { return take(p, n, DEVICE); }
cudaError_t cudaFree(void *p) { return drop(p); }
cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { return drop(p); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags) { return take(p, n, PINNED); }
cudaError_t cudaFreeHost(void *p) { return drop(p); }
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) { *available = *total = TOTAL_MEMORY; OK; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    memset(a, 0, sizeof *a);
    int kind = kind_of(p);
    a->type = kind == PINNED ? cudaMemoryTypeHost : kind == DEVICE ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    if (kind) a->devicePointer = a->hostPointer = (void *)p;
    OK;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind k) { report("cudaMemcpy"); memmove(to, from, n); OK; }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind k, cudaStream_t s) { memmove(to, from, n); OK; }
cudaError_t cudaMemset(void *p, int value, size_t n) { memset(p, value, n); OK; }
cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s) { memset(p, value, n); OK; }

/* The device. */
cudaError_t cudaGetDeviceCount(int *count) { *count = 1; OK; }
cudaError_t cudaGetDevice(int *device) { *device = 0; OK; }
cudaError_t cudaDriverGetVersion(int *version) { *version = 13000; OK; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13000; OK; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "pretended GPU");
    p->totalGlobalMem = TOTAL_MEMORY; p->major = 9; p->multiProcessorCount = 132; p->warpSize = 32;
    p->maxThreadsPerBlock = 1024; p->maxThreadsPerMultiProcessor = 2048; p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->sharedMemPerBlock = 49152; p->sharedMemPerBlockOptin = 232448; p->l2CacheSize = 50 << 20;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647; p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    OK;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr a, int device) {
    *value = a == cudaDevAttrComputeCapabilityMajor ? 9 : a == cudaDevAttrMultiProcessorCount ? 132 : 0;
    OK;
}
cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int device) { snprintf(text, length, "0000:00:00.0"); OK; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; OK; }
cudaError_t cudaDeviceSynchronize(void) { report("cudaDeviceSynchronize"); OK; }
const char *cudaGetErrorString(cudaError_t e) { return "an error of the pretended CUDA"; }
const char *cudaGetErrorName(cudaError_t e) { return "pretended"; }

/* Streams and events: handles that are nothing but an address. */
static cudaError_t handle(void **result) { *result = malloc(1); OK; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; OK; }
cudaError_t cudaStreamCreate(cudaStream_t *s) { return handle((void **)s); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { return handle((void **)s); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) { return handle((void **)s); }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) { *priority = 0; OK; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { report("cudaStreamSynchronize"); OK; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return handle((void **)e); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { return handle((void **)e); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); OK; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; OK; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { report("cudaEventSynchronize"); OK; }

/* Graphs: one stream at a time is captured. graphs.py records what a graph computes. */
static int capturing;
static cudaStream_t captured;
static unsigned long long capture_id;
static enum cudaStreamCaptureStatus status_of(cudaStream_t s) {
    return capturing && s == captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
}
static cudaError_t capture(cudaStream_t s) { captured = s; capturing = 1; capture_id++; OK; }
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) { return capture(s); }
cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t s, cudaGraph_t g, const cudaGraphNode_t *nodes, const cudaGraphEdgeData *edges,
    size_t count, enum cudaStreamCaptureMode m) { return capture(s); }
cudaError_t cudaGraphCreate(cudaGraph_t *g, unsigned flags) { return handle((void **)g); }
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) { capturing = 0; return handle((void **)g); }
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long f) { return handle((void **)e); }
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *count) { *count = 1; OK; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) { *status = status_of(s); OK; }
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *g,
    const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *count) {
    *status = status_of(s);
    if (id) *id = capture_id;
    if (g) *g = NULL;
    if (nodes) *nodes = NULL;
    if (edges) *edges = NULL;
    if (count) *count = 0;
    OK;
}

/* Kernels. */
static void *nothing[16];
void **__cudaRegisterFatBinary(void *binary) { return nothing; }
static cudaError_t launched(void) { __atomic_add_fetch(&launches, 1, __ATOMIC_RELAXED); OK; }
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { return launched(); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) { return launched(); }
int __cudaLaunchKernel(void) { return launched(); }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024;
    OK;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t m, unsigned g) { *n = 1; OK; }

/* The driver, whose functions PyTorch looks up by name. */
static int success(void) { return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(
    const char *name, void **function, unsigned version, unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
    *function = dlsym(RTLD_DEFAULT, name);
    if (!*function) *function = (void *)success;
    if (result) *result = cudaDriverEntryPointSuccess;
    OK;
}
