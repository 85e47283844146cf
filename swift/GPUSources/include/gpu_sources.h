/* gpu_sources.h — the GPU kernels as text: one for Metal, one for NVRTC. */
#ifndef PYDS4_GPU_SOURCES_H
#define PYDS4_GPU_SOURCES_H

#include "kernel_args.h"

const char *gpu_source_metal_text(void);
const char *gpu_source_cuda_text(void);

#endif
