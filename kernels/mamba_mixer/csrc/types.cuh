// Dtypes of the mixer's own kernels. Macros name them by number: 0 float, 1 bfloat16, 2 half.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <int CODE> struct Dtype { typedef float type; };
template <> struct Dtype<1> { typedef __nv_bfloat16 type; };
template <> struct Dtype<2> { typedef __half type; };

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ void store(float *to, float v) { *to = v; }
__device__ __forceinline__ void store(__nv_bfloat16 *to, float v) { *to = __float2bfloat16(v); }
__device__ __forceinline__ void store(__half *to, float v) { *to = __float2half(v); }
