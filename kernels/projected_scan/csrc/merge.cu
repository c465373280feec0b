// Adds the channel tiles' sums of the projected scan's backward. Defines: those of common.cuh.
#include "common.cuh"

constexpr int QP = KB * 8;

// sums (tiles, rows, QP) -> out (rows, Q), tile by tile, so that the order of the additions is fixed. B and C come in
// units of ln 2.
extern "C" __global__ void projected_merge(const float *sums, io_t *out, long long rows, int tiles, float scale) {
  const long long total = rows * (QP / 4);
  const float4 *from = reinterpret_cast<const float4 *>(sums);
  const long long threads = (long long)gridDim.x * blockDim.x;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += threads) {
    float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 4
    for (int tile = 0; tile < tiles; tile++) {
      const float4 w = from[tile * total + i];
      v.x += w.x, v.y += w.y, v.z += w.z, v.w += w.w;
    }
    const long long row = i / (QP / 4);
    const int q = (int)(i % (QP / 4)) * 4;
    const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (q + j < Q) out[row * Q + q + j] = from_float<io_t>(values[j] * (q + j < R ? scale : scale * LN2));
  }
}
