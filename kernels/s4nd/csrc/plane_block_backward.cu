// plane_backward.cu for planes that take a block; the same macros, P = 1.
//
// A warp owns strip i of W and dU, and of Z^T; it accumulates all tiles of its strip of dT_y and dT_x.
#include "plane_block.cuh"
#include "plane_sum.cuh"

// Sums along diagonals of an L x L matrix of N x N tiles of 8, whose strips of 16 rows the warps hold, into
// out[lag + L - 1].
template <int N, int L>
__device__ __forceinline__ void diagonal_sums(float *out, float *work, const float (&c)[N][4], int i) {
  constexpr int STRIP = N * 128;
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  __syncthreads();
  if (i < (N + 1) / 2) {
#pragma unroll
    for (int j = 0; j < N; j++) {
      float *to = work + i * STRIP + j * 128 + g * 8 + 2 * t;
      *(float2 *)to = make_float2(c[j][0], c[j][1]);
      *(float2 *)(to + 64) = make_float2(c[j][2], c[j][3]);
    }
  }
  __syncthreads();
  for (int q = threadIdx.x; q < 2 * L - 1; q += 32 * STRIPS) {
    const int lag = q - (L - 1);
    float sum = 0.0f;
    for (int column = max(0, -lag); column < min(L, L - lag); column++) {
      const int row = column + lag;
      sum += work[row / 16 * STRIP + column / 8 * 128 + row % 16 * 8 + column % 8];
    }
    out[q] = sum;
  }
}

__device__ __forceinline__ void add_rows(float (&sum)[NY][4], float (&sum_d)[4], u32 u, u32 dy, int i,
                                         const uint2 *table) {
  u32 rows[(NX + 1) / 2][4], v[2][NX];
  load_left<NX, false, PITCH>(rows, dy + i * 16 * PITCH, 2 * i + 1 < NY);
  float w[NX][4] = {};
  multiply_toeplitz<NX, true>(w, [&](int half, int k) { return rows[k / 2][half + 2 * (k % 2)]; }, table);
  round_strip(v, w);
  walk_lines<false, NX, NY>(u, [&](int j, int k, u32 b0, u32 b1) {
    multiply_pair<NX>(sum[j], [&](int half, int k) { return v[half][k]; }, k, b0, b1);
  });
  if constexpr (SKIP) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      if (2 * i + half >= NY) break;
      u32 left[NX], right[NX];
      load_row(left, dy, 2 * i + half);
      load_row(right, u, 2 * i + half);
#pragma unroll
      for (int k = 0; k < NX; k += 2)
        multiply_pair<NX>(sum_d, [&](int lower, int k) { return lower ? 0u : left[k]; }, k, right[k],
                          right[k + 1 < NX ? k + 1 : k]);
    }
  }
}

__device__ __forceinline__ void add_columns(float (&sum)[NX][4], u32 u, u32 dy, char *z, int i, const uint2 *table) {
  const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
  u32 columns[(NY + 1) / 2][4], v[2][NY];
  load_left<NY, true, PITCH>(columns, dy + i * 32, 2 * i + 1 < NX);
  float c[NY][4] = {};
  multiply_toeplitz<NY, true>(c, [&](int half, int k) { return columns[k / 2][half + 2 * (k % 2)]; }, table);
  round_strip(v, c);
  if constexpr (NEED_U) {
    char *to = z + (16 * i + g) * PITCH_Z + t * 4;
#pragma unroll
    for (int n = 0; n < NY; n++) {
      *(u32 *)(to + n * 16) = v[0][n];
      if (2 * i + 1 < NX) *(u32 *)(to + 8 * PITCH_Z + n * 16) = v[1][n];
    }
  }
  walk_lines<true, NY, NX>(u, [&](int j, int k, u32 b0, u32 b1) {
    multiply_pair<NY>(sum[j], [&](int half, int k) { return v[half][k]; }, k, b0, b1);
  });
}

__device__ __forceinline__ void write_strip(char *plane, u32 z, int i, const uint2 *table, float d) {
  u32 v[(NX + 1) / 2][4];
  load_left<NX, true, PITCH_Z>(v, z + i * 32, 2 * i + 1 < NY);
  float c[NX][4] = {};
  multiply_toeplitz<NX, true>(c, [&](int half, int k) { return v[k / 2][half + 2 * (k % 2)]; }, table);
  if constexpr (SKIP) add_scaled(c, shared_address(plane), i, d);
  __syncwarp();
  store_strip(plane, i, c);
}

extern "C" __global__ void __launch_bounds__(32 * STRIPS, BLOCKS) plane_block_backward(const Plane a) {
  extern __shared__ uint4 shared[];
  constexpr int SLOTS = 2 * STAGES * PLANE, TABLES = SLOTS + PLANE_Z;
  constexpr int END = TABLES + Table<NX>::BYTES + Table<NY>::BYTES;
  constexpr int WORK_Y = 512 * NY * MY, WORK_X = 512 * NX * MX, WORK = WORK_Y > WORK_X ? WORK_Y : WORK_X;
  static_assert((END > WORK ? END : WORK) == SHARED_BYTES, "cuda_config.py counts the shared memory too");
  char *us = (char *)shared, *dys = us + STAGES * PLANE, *zs = us + SLOTS;
  uint2 *table_x = (uint2 *)(us + TABLES), *table_y = table_x + Table<NX>::BYTES / 8;
  const int i = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const int h = blockIdx.x % a.H, chunk = blockIdx.x / a.H, begin = chunk * a.per, end = min(a.batch, begin + a.per);
  if constexpr (PADS) {
    clear<STRIPS>(us, SLOTS);
    __syncthreads();
  }
#pragma unroll
  for (int stage = 0; stage < STAGES; stage++) {
    fetch<STRIPS>(us + stage * PLANE, a.u, h, begin + stage, end);
    fetch<STRIPS>(dys + stage * PLANE, a.dy, h, begin + stage, end);
    commit();
  }
  fill_table<NX, true>(table_x, a.x, h);
  fill_table<NY, true>(table_y, a.y, h);
  const float d = SKIP ? tap_float(a.D[h]) : 0.0f;
  float sum_y[NY][4] = {}, sum_x[NX][4] = {}, sum_d[4] = {};
  for (int b = begin, slot = 0; b < end; b++, slot = slot + 1 == STAGES ? 0 : slot + 1) {
    char *input = us + slot * PLANE, *plane = dys + slot * PLANE;
    const u32 u = shared_address(input), dy = shared_address(plane);
    await<STAGES - 1>();
    __syncthreads();
    if (i < MY) add_rows(sum_y, sum_d, u, dy, i, table_x);
    if (i < MX) add_columns(sum_x, u, dy, zs, i, table_y);
    __syncthreads();
    if constexpr (NEED_U) {
      if (i < MY) write_strip(plane, shared_address(zs), i, table_x, d);
      __syncthreads();
      flush<STRIPS>(plane, a.out, a.H, h, b, end);
      __syncthreads();
    }
    fetch<STRIPS>(input, a.u, h, b + STAGES, end);
    fetch<STRIPS>(plane, a.dy, h, b + STAGES, end);
    commit();
  }
  await<0>();
  float *out = a.partial + ((long long)chunk * a.H + h) * SUMS, *work = (float *)shared;
  diagonal_sums<NY, LY>(out, work, sum_y, i);
  diagonal_sums<NX, LX>(out + LAGS_Y, work, sum_x, i);
  if constexpr (SKIP) {
    const float mine = trace(sum_d);
    __syncthreads();
    if (threadIdx.x % 32 == 0) work[i] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
      float sum = 0.0f;
      for (int warp = 0; warp < MY; warp++) sum += work[warp];
      out[SUMS - 1] = sum;
    }
  }
}
