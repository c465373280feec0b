// Writing any dtype of the mixer's own kernels.
#pragma once
#include "../../cuda/csrc/types.cuh"

__device__ __forceinline__ void store(float *to, float v) { *to = v; }
__device__ __forceinline__ void store(__nv_bfloat16 *to, float v) { *to = __float2bfloat16(v); }
__device__ __forceinline__ void store(__half *to, float v) { *to = __float2half(v); }
