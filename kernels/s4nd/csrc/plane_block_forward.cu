// plane_forward.cu for planes that take a block; the same macros, P = 1.
#include "plane_block.cuh"

extern "C" __global__ void __launch_bounds__(32 * STRIPS, BLOCKS) plane_block_forward(const Plane a) {
  extern __shared__ uint4 shared[];
  static_assert(STAGES * PLANE + Table<NX>::BYTES == SHARED_BYTES, "cuda_config.py counts the shared memory too");
  char *slots = (char *)shared;
  uint2 *table = (uint2 *)(slots + STAGES * PLANE);
  const int i = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const int h = blockIdx.x % a.H, begin = blockIdx.x / a.H * a.per, end = min(a.batch, begin + a.per);
  if constexpr (PADS) {
    clear<STRIPS>(slots, STAGES * PLANE);
    __syncthreads();
  }
#pragma unroll
  for (int stage = 0; stage < STAGES; stage++) {
    fetch<STRIPS>(slots + stage * PLANE, a.u, h, begin + stage, end);
    commit();
  }
  u32 ty[(NY + 1) / 2][4];
#pragma unroll
  for (int k = 0; k < (NY + 1) / 2; k++) {
    const int d = 2 * (i - k);
    const u32 middle = toeplitz_tile<false>(a.y, h, d);
    ty[k][0] = middle, ty[k][3] = own(middle);
    ty[k][1] = own(toeplitz_tile<false>(a.y, h, d + 1)), ty[k][2] = own(toeplitz_tile<false>(a.y, h, d - 1));
  }
  fill_table<NX, false>(table, a.x, h);
  const float d = SKIP ? tap_float(a.D[h]) : 0.0f;

  for (int b = begin, slot = 0; b < end; b++, slot = slot + 1 == STAGES ? 0 : slot + 1) {
    char *plane = slots + slot * PLANE;
    const u32 u = shared_address(plane);
    await<STAGES - 1>();
    __syncthreads();
    u32 v[2][NX];
    if (i < MY) {
      float w[NX][4] = {};
      walk_lines<true, NY, NX>(u, [&](int n, int k, u32 b0, u32 b1) {
        multiply_pair<NY>(w[n], [&](int half, int k) { return ty[k / 2][half + 2 * (k % 2)]; }, k, b0, b1);
      });
      round_strip(v, w);
    }
    __syncthreads();  // the result takes the input's place
    if (i < MY) {
      float c[NX][4] = {};
      multiply_toeplitz<NX, false>(c, [&](int half, int k) { return v[half][k]; }, table);
      if constexpr (SKIP) add_scaled(c, u, i, d);
      __syncwarp();
      store_strip(plane, i, c);
    }
    __syncthreads();
    flush<STRIPS>(plane, a.out, a.H, h, b, end);
    __syncthreads();
    fetch<STRIPS>(plane, a.u, h, b + STAGES, end);
    commit();
  }
}
