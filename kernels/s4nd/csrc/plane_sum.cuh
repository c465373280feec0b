// Gradients of taps and D: what the kernels of a backward leave in `partial`, and its sum.
#pragma once
#include "plane.cuh"

constexpr int PITCH_Z = 16 * (NY | 1), PLANE_Z = 8 * NX * PITCH_Z;  // Z lies transposed, (LX, LY)
constexpr int LAGS_Y = 2 * LY - 1, LAGS_X = 2 * LX - 1, SUMS = LAGS_Y + LAGS_X + 1;

// Sum of the upper 8 x 8 tile's diagonal, in all lanes.
__device__ __forceinline__ float trace(const float (&c)[4]) {
  const int lane = threadIdx.x & 31, g = lane >> 2;
  float sum = g / 2 == (lane & 3) ? c[g & 1] : 0.0f;
#pragma unroll
  for (int shift = 16; shift; shift /= 2) sum += __shfl_xor_sync(~0u, sum, shift);
  return sum;
}

// Sums over the chunks: gradients (H, taps) of both axes' taps and (H) of D.
extern "C" __global__ void plane_sum(const Plane a, float *dy, float *dx, float *dD) {
  const int width = a.y.taps + a.x.taps + 1, i = blockIdx.x * blockDim.x + threadIdx.x;
  const int h = i / width, place = i % width;
  if (h >= a.H) return;
  const bool first = place < a.y.taps, last = place == width - 1;
  const int t = first ? place : place - a.y.taps;
  const int lag = first ? t - a.y.center : t - a.x.center, reach = first ? LY - 1 : LX - 1;
  const int from = last ? SUMS - 1 : (first ? 0 : LAGS_Y) + lag + reach;
  float sum = 0.0f;
  if (last ? SKIP : lag >= -reach && lag <= reach) {
    const float *at = a.partial + (long long)h * SUMS + from;
    for (int c = 0; c < a.chunks; c++) sum += at[(long long)c * a.H * SUMS];
  }
  if (last) {
    if (SKIP) dD[h] = sum;
  } else if (first) dy[(long long)h * a.y.taps + t] = sum;
  else dx[(long long)h * a.x.taps + t] = sum;
}
