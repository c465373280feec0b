// total = residual + hidden, normed = (total - mean) rsqrt(variance + eps) weight + bias; without the mean and the bias, and
// with the mean square as the variance, where it is not centered. A row lies in the registers of its lanes.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(LANES *ROWS) norm_forward(const Norm p) {
  const int lane = threadIdx.x % LANES;
  const long long row = (long long)blockIdx.x * ROWS + threadIdx.x / LANES;
  const bool active = row < p.rows;
  const int C = active ? p.C : 0;
  const long long at = active ? row * p.C : 0;

  float x[PACKS][V], r[PACKS][V], w[PACKS][V];
  load_row(p.hidden + at, lane, C, x);
  if (p.residual) {
    load_row(p.residual + at, lane, C, r);
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
#pragma unroll
      for (int v = 0; v < V; v++) x[i][v] += r[i][v];
    }
  }
  load_row(p.weight, lane, C, w);
  float sum = 0.f, squares = 0.f, mean = 0.f;
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
#pragma unroll
    for (int v = 0; v < V; v++) {
      x[i][v] = to_float(from_float<residual_t>(x[i][v]));  // the norm sees what the stream keeps
      sum += x[i][v];
    }
  }
  if (p.total) store_row(p.total + at, lane, C, x);
  if (CENTERED) {
    mean = row_sum(sum) / p.C;
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
      const bool in = (i * LANES + lane) * V < C;  // what lies beyond the row is no part of its variance
#pragma unroll
      for (int v = 0; v < V; v++) x[i][v] = in ? x[i][v] - mean : 0.f;
    }
  }
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
#pragma unroll
    for (int v = 0; v < V; v++) squares = fmaf(x[i][v], x[i][v], squares);
  }
  const float rstd = rsqrtf(row_sum(squares) / p.C + p.eps);
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
#pragma unroll
    for (int v = 0; v < V; v++) x[i][v] *= rstd * w[i][v];
  }
  if (CENTERED && p.bias) {
    load_row(p.bias, lane, C, w);
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
#pragma unroll
      for (int v = 0; v < V; v++) x[i][v] += w[i][v];
    }
  }
  store_row(p.normed + at, lane, C, x);
  if (active && lane == 0) {
    p.rstd[row] = rstd;
    if (CENTERED) p.mean[row] = mean;
  }
}
