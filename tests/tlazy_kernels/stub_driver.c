/* A CUDA driver without a device: it knows what Triton asks one of sm_90, and notes each launch. */
#include <cuda.h>
#include <stdint.h>

#define REACH 4096

static int nothing;
int64_t launches = 0, unloads = 0;
int64_t seen[64]; /* of the last launch: grid, threads, shared memory, stream, parameters */

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *v) { return *v = 13000, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *n) { return *n = 1, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *d, int i) { return *d = i, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) { return *c = (CUcontext)&nothing, CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *c) { return *c = (CUcontext)&nothing, CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext c) { return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *d) { return *d = 0, CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *v, CUlimit l) { return *v = 1 << 20, CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit l, size_t v) { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult e, const char **s) { return *s = "stub", CUDA_SUCCESS; }
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction f, CUfunc_cache c) { return CUDA_SUCCESS; }
CUresult cuModuleLoadData(CUmodule *m, const void *d) { return *m = (CUmodule)&nothing, CUDA_SUCCESS; }
CUresult cuModuleUnload(CUmodule m) { return unloads++, CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *n) { return *f = (CUfunction)&nothing, CUDA_SUCCESS; }
CUresult cuPointerGetAttribute(void *v, CUpointer_attribute a, CUdeviceptr p) { return *(CUdeviceptr *)v = p, CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int *n, CUfunction f, const CUlaunchConfig *c) { return *n = 1, CUDA_SUCCESS; }
CUresult cuStreamIsCapturing(CUstream s, CUstreamCaptureStatus *c) { return *c = 0, CUDA_SUCCESS; }

CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute a, CUdevice d) {
  switch (a) {
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *v = 9; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *v = 0; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *v = 232448; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *v = 233472; break;
  default: *v = 132;
  }
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *v, CUfunction_attribute a, CUfunction f) {
  *v = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 32;
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **parameters, void **extra) {
  int64_t head[] = {c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->sharedMemBytes, (int64_t)c->hStream};
  int n = sizeof(head) / sizeof(*head);
  for (int i = 0; i < n; i++)
    seen[i] = head[i];
  /* How many there are is not told: those end where what follows is no address of the launcher's
     stack. The rest of a narrow one's 8 bytes is noise. */
  for (int i = 0; n + i < 64; i++) {
    int64_t away = (char *)parameters[i] - (char *)parameters;
    if (away < -REACH || away > REACH)
      break;
    seen[n + i] = *(int64_t *)parameters[i];
  }
  launches++;
  return CUDA_SUCCESS;
}
