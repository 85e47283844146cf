/* gpu_sources.c — the text of the GPU kernels, as scripts/msl/library.py makes it from Compute/Metal.
 * Devices compile it when they are first used. */
#include "gpu_sources.h"

static const unsigned char metal[] = {
#embed "kernels.metal" suffix(, 0)
};
static const unsigned char cuda[] = {
#embed "kernels.cu" suffix(, 0)
};

const char *gpu_source_metal_text(void) { return (const char *)metal; }
const char *gpu_source_cuda_text(void) { return (const char *)cuda; }
