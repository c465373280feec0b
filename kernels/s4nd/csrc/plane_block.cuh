// Planes too large for a warp: a block of a warp for each strip of 16 rows. Matrices are tables in shared memory.
#pragma once
#include "plane.cuh"

constexpr int STRIPS = MY > MX ? MY : MX;
template <int N> struct Table { static constexpr int BYTES = (2 * N - 1) * 256; };

// Neighbouring tiles of a Toeplitz matrix of N x N tiles as the right operand, by block diagonal; BACK: RightToeplitz's.
template <int N, bool BACK> __device__ __forceinline__ void fill_table(uint2 *table, const Taps &k, int h) {
  for (int q = threadIdx.x / 32; q < 2 * N - 1; q += STRIPS) {
    const int d = q + 1 - N;
    table[q * 32 + (threadIdx.x & 31)] =
        make_uint2(toeplitz_tile<BACK>(k, h, d), toeplitz_tile<BACK>(k, h, BACK ? d + 1 : d - 1));
  }
}

// result (16 x N tiles) += left (16 x N tiles) times the Toeplitz matrix.
template <int N, bool BACK, typename Left>
__device__ __forceinline__ void multiply_toeplitz(float (&c)[N][4], Left left, const uint2 *table) {
  const uint2 *at = table + (threadIdx.x & 31);
#pragma unroll
  for (int k = 0; k < N; k += 2) {
    u32 a[4];
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = k + i / 2 < N ? left(i % 2, k + i / 2) : 0u;
#pragma unroll
    for (int n = 0; n < N; n++) {
      const uint2 b = at[(BACK ? k - n + N - 1 : n - k + N - 1) * 32];
      if (k + 1 < N) mma16(c[n], a[0], a[1], a[2], a[3], b.x, b.y);
      else mma8(c[n], a[0], a[1], b.x);
    }
  }
}
