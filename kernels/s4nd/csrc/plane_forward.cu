// y = T_y U T_x^T + D U for every plane U of (B, H, LY, LX).
//
// Macros: LY, LX; P, images a warp has in work; VEC, bytes a copy takes; KIO, type of taps and D: 0 float, 1 bfloat16;
// SKIP, whether there is D; DENSE, whether rows lie one behind the other; STAGES of copies; WARPS a block; BLOCKS a
// multiprocessor.
#include "plane.cuh"

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) plane_forward(const Plane a) {
  extern __shared__ uint4 shared[];
  constexpr int SLOT = P * PLANE;
  static_assert(WARPS * STAGES * SLOT == SHARED_BYTES, "cuda_config.py counts the shared memory too");
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);  // the same in all lanes, and the compiler knows
  const int unit = blockIdx.x * WARPS + warp, h = unit % a.H, chunk = unit / a.H;
  if (chunk >= a.chunks) return;
  char *slots = (char *)shared + warp * STAGES * SLOT;
  if constexpr (PADS) {
    clear<1>(slots, STAGES * SLOT);
    __syncwarp();
  }
  const int begin = chunk * a.per, end = min(a.batch, begin + a.per);
#pragma unroll
  for (int stage = 0; stage < STAGES; stage++) {
    fetch<1>(slots + stage * SLOT, a.u, h, begin + stage * P, end);
    commit();
  }
  const LeftToeplitz<NY> ty(a.y, h);
  const RightToeplitz<NX, false> tx(a.x, h);
  const float d = SKIP ? tap_float(a.D[h]) : 0.0f;

  for (int b = begin, slot = 0; b < end; b += P, slot = slot + 1 == STAGES ? 0 : slot + 1) {
    char *planes = slots + slot * SLOT;
    await<STAGES - 1>();
    u32 u[P][NX][NY];
#pragma unroll
    for (int p = 0; p < P; p++) {
#pragma unroll
      for (int n = 0; n < NX; n++) load_column<NY, PITCH>(u[p][n], shared_address(planes + p * PLANE), n);
    }
#pragma unroll
    for (int i = 0; i < MY; i++) {
      u32 v[P][2][NX];
      float c[P][NX][4];
#pragma unroll
      for (int p = 0; p < P; p++) {
        float w[NX][4] = {};
        multiply<NY>(w, [&](int half, int k) { return ty(i, half, k); },
                     [&](int k, int n) { return u[p][n][k]; });
        round_strip(v[p], w);
      }
#pragma unroll
      for (int p = 0; p < P; p++) {
#pragma unroll
        for (int n = 0; n < NX; n++) c[p][n][0] = c[p][n][1] = c[p][n][2] = c[p][n][3] = 0.0f;
        multiply<NX>(c[p], [&](int half, int k) { return v[p][half][k]; }, tx);
        if constexpr (SKIP) add_scaled(c[p], shared_address(planes + p * PLANE), i, d);
      }
      __syncwarp();
#pragma unroll
      for (int p = 0; p < P; p++) store_strip(planes + p * PLANE, i, c[p]);
    }
    __syncwarp();
    flush<1>(planes, a.out, a.H, h, b, end);
    __syncwarp();
    fetch<1>(planes, a.u, h, b + STAGES * P, end);
    commit();
  }
}
