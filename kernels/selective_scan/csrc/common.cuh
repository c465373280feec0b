// Shared by the selective-scan kernels: dtypes, fast exponentials, the parameter block, and step addressing.
#pragma once
#ifndef SOFTPLUS
#define SOFTPLUS 1
#endif
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#if IO == 0
typedef float io_t;
#elif IO == 1
typedef __nv_bfloat16 io_t;
#else
typedef __half io_t;
#endif

constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
constexpr int CHUNK = 64;  // steps between saved states; config.py holds the same number

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
template <typename T> __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) { return __float2bfloat16(v); }
template <> __device__ __forceinline__ __half from_float<__half>(float v) { return __float2half(v); }

// Two neighbouring channels as one load or store; needs an even E and aligned tensors.
#if IO == 0
typedef float2 io_pair;
__device__ __forceinline__ float2 unpack(io_pair v) { return v; }
__device__ __forceinline__ io_pair pack(float2 v) { return v; }
#elif IO == 1
typedef __nv_bfloat162 io_pair;
__device__ __forceinline__ float2 unpack(io_pair v) { return __bfloat1622float2(v); }
__device__ __forceinline__ io_pair pack(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
#else
typedef __half2 io_pair;
__device__ __forceinline__ float2 unpack(io_pair v) { return __half22float2(v); }
__device__ __forceinline__ io_pair pack(float2 v) { return __floats2half2_rn(v.x, v.y); }
#endif

__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float lg2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// log(1 + e^x). The logarithm alone would lose every digit of a small step, so below e^x = 1/128 two terms of its series take over (2e-5).
__device__ __forceinline__ float softplus(float x) {
#if IO == 0
  return x > 20.f ? x : log1pf(expf(x));
#else
  const float e = ex2(x * LOG2E);
  const float r = e < 0.0078125f ? fmaf(-0.5f * e, e, e) : lg2(1.f + e) * LN2;
  return x > 20.f ? x : r;
#endif
}
// Step size from delta plus bias.
__device__ __forceinline__ float step_size(float raw) { return SOFTPLUS ? softplus(raw) : raw; }
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.f, 1.f + ex2(-x * LOG2E)); }

// One scan. Grid order tensors: x (B, [K,] L, E), delta (B, K, L, E), Bm, Cm (B, K, L, N); A (K, E, N), D, bias (K, E).
// Route k visits route[k * M + s] at step s < lengths[k]. A segment is `segment` consecutive steps, a multiple of CHUNK.
// A launch handles the states [n0, n0 + Ns); more than 16 take several launches.
struct Scan {
  const io_t *x, *delta, *Bm, *Cm, *z;
  const float *A, *D, *bias;
  const int *route, *lengths;
  long long L;
  int batch, K, E, N, n0, Ns, M, segments, segment, tiles;
  int x_per_route;
  float scale;  // of the incoming gradient: 1 / K where routes are averaged
};

// Which block this is: tiles of channels vary fastest, so that neighbours share B and C in the cache.
struct Where {
  int tile, segment, b, k;
  __device__ explicit Where(const Scan &p) {
    unsigned id = blockIdx.x;
    tile = id % p.tiles, id /= p.tiles;
    segment = id % p.segments, id /= p.segments;
    b = id % p.batch, k = id / p.batch;
  }
};
__device__ __forceinline__ long long row_of(const Scan &p, const Where &w) { return ((long long)w.b * p.K + w.k) * p.L; }
__device__ __forceinline__ long long state_at(const Scan &p, long long slot, int n, int e) {
  return (slot * p.N + p.n0 + n) * p.E + e;
}
__device__ __forceinline__ float load_A(const Scan &p, int k, int n, int e) {  // zero beyond the edges: a decay of 1
  return e < p.E && n < p.Ns ? p.A[((long long)k * p.E + e) * p.N + p.n0 + n] * LOG2E : 0.f;
}
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }
__device__ __forceinline__ long long x_row_of(const Scan &p, const Where &w) {
  return (p.x_per_route ? (long long)w.b * p.K + w.k : (long long)w.b) * p.L;
}
