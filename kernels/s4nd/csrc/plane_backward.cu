// Gradients of y = T_y U T_x^T + D U in U, the taps of both axes, and D.
//
// Macros: see plane_forward.cu, and NEED_U, whether U's gradient is wanted. With W = dY T_x and Z = T_y^T dY:
// dU = Z T_x + D dY, dT_y = sum W U^T, dT_x = sum Z^T U, and a tap's gradient is the sum of its diagonal. Tiles of one
// block diagonal are accumulated together. A block is two warps, which share a feature: the first makes W, the second Z,
// both dU. It leaves the sums over its images in its own place, plane_sum adds those of all.
#include "plane_sum.cuh"

constexpr int QY = NY + 2 * (MY - 1), QX = NX + 2 * (MX - 1);       // block diagonals of 16 x 8
constexpr int SLOT = P * PLANE;

__device__ __forceinline__ void sync_block() { asm volatile("bar.sync 0, 64;" ::: "memory"); }

// Sums along diagonals of accumulated tiles (Q of 16 x 8, the first on block diagonal 1 - N) into out[lag + L - 1].
template <int N, int L, int Q>
__device__ __forceinline__ void diagonal_sums(float *out, float *work, const float (&c)[Q][4]) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int q = 0; q < Q; q++) {
    *(float2 *)(work + q * 128 + g * 8 + 2 * t) = make_float2(c[q][0], c[q][1]);
    *(float2 *)(work + q * 128 + (g + 8) * 8 + 2 * t) = make_float2(c[q][2], c[q][3]);
  }
  __syncwarp();
  for (int i = lane; i < 2 * L - 1; i += 32) {
    const int lag = i - (L - 1);
    float sum = 0.0f;
    for (int q = 0; q < Q; q++) {
      const int shift = lag - 8 * (q + 1 - N);
      if (shift < -7 || shift > 15) continue;
      for (int column = max(0, -shift); column < 8 && shift + column < 16; column++)
        sum += work[q * 128 + (shift + column) * 8 + column];
    }
    out[i] = sum;
  }
}

// The first warp's part: W, and with it the sums for dT_y, and dY U^T for its diagonal.
template <typename Right>
__device__ __forceinline__ void add_rows(float (&sum)[QY][4], float (&sum_d)[4], u32 u, u32 dy, const Right &tx) {
#pragma unroll
  for (int i = 0; i < MY; i++) {
    u32 rows[(NX + 1) / 2][4], v[2][NX];
    load_left<NX, false, PITCH>(rows, dy + i * 16 * PITCH, 2 * i + 1 < NY);
    float w[NX][4] = {};
    multiply<NX>(w, [&](int half, int k) { return rows[k / 2][half + 2 * (k % 2)]; }, tx);
    round_strip(v, w);
    walk_lines<false, NX, NY>(u, [&](int j, int k, u32 b0, u32 b1) {
      multiply_pair<NX>(sum[2 * i - j + NY - 1], [&](int half, int k) { return v[half][k]; }, k, b0, b1);
      // Both rows of tiles count as one: the lower half of the left operand stays empty.
      if (SKIP && j / 2 == i)
        multiply_pair<NX>(sum_d, [&](int half, int k) { return half ? 0u : rows[k / 2][j % 2 + 2 * (k % 2)]; }, k, b0,
                          b1);
    });
  }
}

// The second warp's part: Z, left in shared memory, and with it the sums for dT_x.
template <typename Right>
__device__ __forceinline__ void add_columns(float (&sum)[QX][4], u32 u, u32 dy, char *z, const Right &ty) {
  const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
#pragma unroll
  for (int i = 0; i < MX; i++) {
    u32 columns[(NY + 1) / 2][4], v[2][NY];
    load_left<NY, true, PITCH>(columns, dy + i * 32, 2 * i + 1 < NX);
    float c[NY][4] = {};
    multiply<NY>(c, [&](int half, int k) { return columns[k / 2][half + 2 * (k % 2)]; }, ty);
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
      multiply_pair<NY>(sum[2 * i - j + NX - 1], [&](int half, int k) { return v[half][k]; }, k, b0, b1);
    });
  }
}

// A strip of dU = Z T_x + D dY, in place of dY.
template <typename Right>
__device__ __forceinline__ void write_strip(char *plane, u32 z, int strip, const Right &tx, float d) {
  u32 v[(NX + 1) / 2][4];
  load_left<NX, true, PITCH_Z>(v, z + strip * 32, 2 * strip + 1 < NY);
  float c[NX][4] = {};
  multiply<NX>(c, [&](int half, int k) { return v[k / 2][half + 2 * (k % 2)]; }, tx);
  if constexpr (SKIP) add_scaled(c, shared_address(plane), strip, d);
  __syncwarp();
  store_strip(plane, strip, c);
}

// What a warp does; WARP 0 or 1.
template <int WARP> __device__ __forceinline__ void walk(const Plane &a, char *shared, int h, int chunk) {
  char *us = shared, *dys = shared + STAGES * SLOT, *zs = shared + 2 * STAGES * SLOT;
  const int begin = chunk * a.per, end = min(a.batch, begin + a.per);
  const RightToeplitz<NX, true> tx(a.x, h);
  const RightToeplitz<WARP ? NY : 1, true> ty(a.y, h);
  const float d = SKIP ? tap_float(a.D[h]) : 0.0f;
  float sum[WARP ? QX : QY][4] = {}, sum_d[4] = {};
  for (int b = begin, slot = 0; b < end; b += P, slot = slot + 1 == STAGES ? 0 : slot + 1) {
    char *planes = dys + slot * SLOT, *inputs = us + slot * SLOT;
    await<STAGES - 1>();
    sync_block();
#pragma unroll
    for (int p = 0; p < P; p++) {
      const u32 u = shared_address(inputs + p * PLANE), dy = shared_address(planes + p * PLANE);
      if constexpr (WARP == 0) add_rows(sum, sum_d, u, dy, tx);
      else add_columns(sum, u, dy, zs + p * PLANE_Z, ty);
    }
    sync_block();
    if constexpr (NEED_U) {
#pragma unroll
      for (int p = 0; p < P; p++) {
#pragma unroll
        for (int i = 0; i < MY; i++) {
          if ((p * MY + i) * 2 / (P * MY) == WARP)
            write_strip(planes + p * PLANE, shared_address(zs + p * PLANE_Z), i, tx, d);
        }
      }
      sync_block();
      flush<2>(planes, a.out, a.H, h, b, end);
      sync_block();
    }
    fetch<2>(inputs, a.u, h, b + STAGES * P, end);
    fetch<2>(planes, a.dy, h, b + STAGES * P, end);
    commit();
  }
  await<0>();
  sync_block();
  float *out = a.partial + ((long long)chunk * a.H + h) * SUMS;
  if constexpr (WARP) diagonal_sums<NX, LX>(out + LAGS_Y, (float *)shared + 128 * QY, sum);
  else diagonal_sums<NY, LY>(out, (float *)shared, sum);
  if constexpr (SKIP && WARP == 0) {
    const float sum_of_diagonal = trace(sum_d);
    if (threadIdx.x == 0) out[SUMS - 1] = sum_of_diagonal;
  }
}

extern "C" __global__ void __launch_bounds__(64, BLOCKS) plane_backward(const Plane a) {
  extern __shared__ uint4 shared[];
  constexpr int SLOTS = P * (2 * STAGES * PLANE + PLANE_Z), BYTES = SLOTS > 512 * (QY + QX) ? SLOTS : 512 * (QY + QX);
  static_assert(BYTES == SHARED_BYTES, "cuda_config.py counts the shared memory too");
  const int h = blockIdx.x % a.H, chunk = blockIdx.x / a.H, begin = chunk * a.per, end = min(a.batch, begin + a.per);
  char *slots = (char *)shared;
  if constexpr (PADS) {
    clear<2>(slots, 2 * STAGES * SLOT);
    sync_block();
  }
#pragma unroll
  for (int stage = 0; stage < STAGES; stage++) {
    fetch<2>(slots + stage * SLOT, a.u, h, begin + stage * P, end);
    fetch<2>(slots + (STAGES + stage) * SLOT, a.dy, h, begin + stage * P, end);
    commit();
  }
  if (threadIdx.x < 32) walk<0>(a, slots, h, chunk);
  else walk<1>(a, slots, h, chunk);
}
