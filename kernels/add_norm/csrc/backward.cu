// Gradients of add and norm. With n = total rstd and g = d_normed weight, the stream's is d_total + rstd (g - n mean(g n))
// and the weight's the sum over rows of d_normed n. A block walks rows; its part of the weight's gradient stays in registers.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(LANES *ROWS) norm_backward(const Norm p) {
  const int lane = threadIdx.x % LANES, slot = threadIdx.x / LANES;
  float w[PACKS][V], dw[PACKS][V] = {};
  load_row(p.weight, lane, p.C, w);

  for (long long first = (long long)blockIdx.x * ROWS; first < p.rows; first += (long long)gridDim.x * ROWS) {
    const long long row = first + slot;
    const bool active = row < p.rows;
    const int C = active ? p.C : 0;
    const long long at = active ? row * p.C : 0;
    float x[PACKS][V], dy[PACKS][V], dx[PACKS][V] = {};
    load_row(p.total + at, lane, C, x);
    load_row(p.normed + at, lane, C, dy);
    if (p.residual) load_row(p.residual + at, lane, C, dx);
    const float rstd = active ? p.rstd[row] : 0.f;
    float dot = 0.f;
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
#pragma unroll
      for (int v = 0; v < V; v++) {
        x[i][v] *= rstd;
        dw[i][v] = fmaf(dy[i][v], x[i][v], dw[i][v]);
        dy[i][v] *= w[i][v];
        dot = fmaf(dy[i][v], x[i][v], dot);
      }
    }
    dot = row_sum(dot) / p.C;
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
#pragma unroll
      for (int v = 0; v < V; v++) dx[i][v] = fmaf(rstd, fmaf(-x[i][v], dot, dy[i][v]), dx[i][v]);
    }
    store_row(p.d_hidden + at, lane, C, dx);
    if (p.d_residual) store_row(p.d_residual + at, lane, C, dx);
  }

  // partial (blocks, C): the block's rows added up in order.
  __shared__ float parts[ROWS][LANES * V];
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    __syncthreads();
#pragma unroll
    for (int v = 0; v < V; v++) parts[slot][lane * V + v] = dw[i][v];
    __syncthreads();
    for (int c = threadIdx.x; c < LANES * V; c += LANES * ROWS) {
      float total = 0.f;
#pragma unroll
      for (int r = 0; r < ROWS; r++) total += parts[r][c];
      const int channel = i * LANES * V + c;
      if (channel < p.C) p.partial[(long long)blockIdx.x * p.C + channel] = total;
    }
  }
}

// Sums of partial (rows, n) over its rows, each always in the same order.
extern "C" __global__ void __launch_bounds__(1024) norm_sum(const float *partial, weight_t *out, int rows, int n) {
  __shared__ float parts[32][33];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, i = blockIdx.x * 32 + lane;
  float total = 0.f;
  if (i < n) {
#pragma unroll 8
    for (int r = warp; r < rows; r += 32) total += partial[(long long)r * n + i];
  }
  parts[lane][warp] = total;
  __syncthreads();
  const int mine = blockIdx.x * 32 + warp;  // each warp adds one column's parts
  total = parts[warp][lane];
#pragma unroll
  for (int s = 16; s > 0; s /= 2) total += __shfl_xor_sync(~0u, total, s);
  if (lane == 0 && mine < n) out[mine] = from_float<weight_t>(total);
}
