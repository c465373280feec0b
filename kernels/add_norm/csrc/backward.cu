// Gradients of add and norm. With n = total rstd and g = d_normed weight, the stream's is d_total + rstd (g - n mean(g n))
// and the weight's the sum over rows of d_normed n. Centered, n = (total - mean) rstd, the stream's gradient loses
// rstd mean(g) as well, and the bias's is the sum over rows of d_normed. A block walks rows; its part of the parameters'
// gradients stays in registers.
#include "common.cuh"

// Adds the block's rows up in order, for one access of every lane.
__device__ __forceinline__ void add_up(const float (&mine)[V], int pack, int C, float *to) {
  __shared__ float parts[ROWS][LANES * V];
  __syncthreads();
#pragma unroll
  for (int v = 0; v < V; v++) parts[threadIdx.x / LANES][threadIdx.x % LANES * V + v] = mine[v];
  __syncthreads();
  for (int c = threadIdx.x; c < LANES * V; c += LANES * ROWS) {
    float total = 0.f;
#pragma unroll
    for (int r = 0; r < ROWS; r++) total += parts[r][c];
    const int channel = pack * LANES * V + c;
    if (channel < C) to[channel] = total;
  }
}

extern "C" __global__ void __launch_bounds__(LANES *ROWS) norm_backward(const Norm p) {
  const int lane = threadIdx.x % LANES, slot = threadIdx.x / LANES;
  float w[PACKS][V], dw[PACKS][V] = {}, db[CENTERED ? PACKS : 1][V] = {};
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
    const float mean = CENTERED && active ? p.mean[row] : 0.f;
    float dot = 0.f, sum = 0.f;
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
#pragma unroll
      for (int v = 0; v < V; v++) {
        x[i][v] = (x[i][v] - mean) * rstd;
        dw[i][v] = fmaf(dy[i][v], x[i][v], dw[i][v]);
        if (CENTERED) db[CENTERED * i][v] += dy[i][v];
        dy[i][v] *= w[i][v];
        sum += dy[i][v];
        dot = fmaf(dy[i][v], x[i][v], dot);
      }
    }
    dot = row_sum(dot) / p.C;
    sum = CENTERED ? row_sum(sum) / p.C : 0.f;
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
#pragma unroll
      for (int v = 0; v < V; v++) dx[i][v] = fmaf(rstd, fmaf(-x[i][v], dot, dy[i][v] - sum), dx[i][v]);
    }
    store_row(p.d_hidden + at, lane, C, dx);
    if (p.d_residual) store_row(p.d_residual + at, lane, C, dx);
  }

  float *partial = p.partial + (long long)blockIdx.x * p.C * (p.bias ? 2 : 1);
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    add_up(dw[i], i, p.C, partial);
    if (CENTERED && p.bias) add_up(db[CENTERED * i], i, p.C, partial + p.C);
  }
}

// Sums of partial (rows, n) over its rows, each always in the same order; the first C into `out`, the others into `rest`.
extern "C" __global__ void __launch_bounds__(1024) norm_sum(const float *partial, weight_t *out, weight_t *rest, int rows,
                                                            int n, int C) {
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
  if (lane == 0 && mine < n) *(mine < C ? out + mine : rest + (mine - C)) = from_float<weight_t>(total);
}
