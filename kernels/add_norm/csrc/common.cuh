// Defines: HIDDEN, RESIDUAL, WEIGHT and OUT, dtypes of hidden, of the residual stream, of the weight and of the normed
// tensor (0 float, 1 bfloat16, 2 float16); V channels per access, PACKS accesses per lane, LANES per row (8, 16 or whole
// warps), ROWS per block; CENTERED (0: RMS norm, 1: layer norm).
#pragma once
#define IO HIDDEN
#include "../../cuda/csrc/io.cuh"

typedef io_t hidden_t;
typedef Dtype<RESIDUAL>::type residual_t;
typedef Dtype<WEIGHT>::type weight_t;
typedef Dtype<OUT>::type out_t;

// Rows of C channels, contiguous. Pointers may be null where the comment says so.
struct Norm {
  hidden_t *hidden;      // forward only
  residual_t *residual;  // forward: the stream so far, null at its start; backward: gradient of total, null for zero
  weight_t *weight;
  weight_t *bias;        // null for none; centered only, as is mean
  out_t *normed;         // backward: its gradient
  residual_t *total;     // hidden + residual; forward: null where nobody needs it
  float *rstd;
  float *mean;
  hidden_t *d_hidden;
  residual_t *d_residual;  // null where d_hidden has the same values
  float *partial;        // (blocks, C), with a bias (blocks, 2, C)
  long long rows;
  int C;
  float eps;
};

constexpr int WARPS = LANES > 32 ? LANES / 32 : 1;  // of a row

template <typename T> __device__ __forceinline__ void load_row(const T *row, int lane, int C, float (&v)[PACKS][V]) {
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    const int c = (i * LANES + lane) * V;
    (c < C ? Pack<T, V>::load(row + c) : Pack<T, V>::zero()).unpack(v[i]);
  }
}
template <typename T> __device__ __forceinline__ void store_row(T *row, int lane, int C, const float (&v)[PACKS][V]) {
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    const int c = (i * LANES + lane) * V;
    if (c < C) Pack<T, V>::from(v[i]).store(row + c);
  }
}

// Sum over a row's lanes, the same in each. Every thread of the block must call it.
__device__ __forceinline__ float row_sum(float v) {
#pragma unroll
  for (int i = (LANES < 32 ? LANES : 32) / 2; i > 0; i /= 2) v += __shfl_xor_sync(~0u, v, i);
  if constexpr (WARPS > 1) {
    __shared__ float parts[ROWS * WARPS];
    const int warp = threadIdx.x / 32, first = warp / WARPS * WARPS;
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[warp] = v;
    __syncthreads();
    v = 0.f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) v += parts[first + i];
  }
  return v;
}
