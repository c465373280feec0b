// Means over L rows of C channels, and of the rows normed to mean 0 and variance 1. A warp holds a row's channels; a
// block's warps add up their rows, a second launch the blocks, in a fixed order.
// Defines: IO, the rows' dtype (0 float, 1 bfloat16, 2 float16); V channels per access, PACKS accesses per lane and row,
// ROWS at once.
#include "../../cuda/csrc/io.cuh"

typedef Pack<io_t, V> pack_t;
constexpr int WARPS = 4;

struct Means {
  const io_t *x;          // (batch, L, C)
  float *partial;         // (batch, parts, 2, C)
  float *out;             // (batch, 2, C)
  const float *gradient;  // of out
  io_t *dx;
  int L, C, parts;
  float eps;
};

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) v += __shfl_xor_sync(~0u, v, i);
  return v;
}

struct Row {
  float v[PACKS][V];
  float rstd;

  __device__ __forceinline__ void load(const io_t *row, int lane, int C) {
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
      const int c = (i * 32 + lane) * V;
      (c < C ? pack_t::load(row + c) : pack_t::zero()).unpack(v[i]);
    }
  }
  __device__ __forceinline__ float mean(int C) const {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
#pragma unroll
      for (int j = 0; j < V; j++) sum += v[i][j];
    }
    return warp_sum(sum) / C;
  }
  // Subtracts the mean, beyond the last channel too, and finds the scale.
  __device__ __forceinline__ void centre(float mean, int lane, int C, float eps) {
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
#pragma unroll
      for (int j = 0; j < V; j++) {
        v[i][j] = (i * 32 + lane) * V < C ? v[i][j] - mean : 0.f;
        squares = fmaf(v[i][j], v[i][j], squares);
      }
    }
    rstd = rsqrtf(warp_sum(squares) / C + eps);
  }
};

extern "C" __global__ void __launch_bounds__(32 * WARPS) means_partial(const Means p) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const io_t *map = p.x + (long long)blockIdx.y * p.L * p.C;
  float plain[PACKS][V] = {}, normed[PACKS][V] = {};
  for (int first = (blockIdx.x * WARPS + warp) * ROWS; first < p.L; first += gridDim.x * WARPS * ROWS) {
    Row row[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) row[r].load(map + (long long)(first + r) * p.C, lane, first + r < p.L ? p.C : 0);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      if (first + r >= p.L) break;
      const float mean = row[r].mean(p.C);
#pragma unroll
      for (int i = 0; i < PACKS; i++) {
#pragma unroll
        for (int j = 0; j < V; j++) plain[i][j] += row[r].v[i][j];
      }
      row[r].centre(mean, lane, p.C, p.eps);
#pragma unroll
      for (int i = 0; i < PACKS; i++) {
#pragma unroll
        for (int j = 0; j < V; j++) normed[i][j] = fmaf(row[r].v[i][j], row[r].rstd, normed[i][j]);
      }
    }
  }
  __shared__ float parts[WARPS][2][32 * V];
  float *out = p.partial + (long long)(blockIdx.y * gridDim.x + blockIdx.x) * 2 * p.C;
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < V; j++) {
      parts[warp][0][lane * V + j] = plain[i][j];
      parts[warp][1][lane * V + j] = normed[i][j];
    }
    __syncthreads();
    for (int at = threadIdx.x; at < 64 * V; at += 32 * WARPS) {
      const int kind = at / (32 * V), c = at % (32 * V), channel = i * 32 * V + c;
      float sum = 0.f;
#pragma unroll
      for (int w = 0; w < WARPS; w++) sum += parts[w][kind][c];
      if (channel < p.C) out[kind * p.C + channel] = sum;
    }
  }
}

// Block (32, 8): 32 of an image's 2 C sums, each added up by 8 threads.
extern "C" __global__ void __launch_bounds__(256) means_sum(const Means p) {
  __shared__ float sums[8][32];
  const int at = blockIdx.x * 32 + threadIdx.x;
  const float *part = p.partial + (long long)blockIdx.y * p.parts * 2 * p.C + at;
  float sum = 0.f;
  if (at < 2 * p.C) {
#pragma unroll 8
    for (int i = threadIdx.y; i < p.parts; i += 8) sum += part[(long long)i * 2 * p.C];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y || at >= 2 * p.C) return;
  sum = 0.f;
#pragma unroll
  for (int i = 0; i < 8; i++) sum += sums[i][threadIdx.x];
  p.out[(long long)blockIdx.y * 2 * p.C + at] = sum / p.L;
}

// dx = (plain + rstd (normed - mean(normed) - n mean(normed n))) / L with n the normed row, plain and normed out's
// gradients.
extern "C" __global__ void __launch_bounds__(32 * WARPS) means_backward(const Means p) {
  const int lane = threadIdx.x % 32;
  const int at = blockIdx.x * WARPS + threadIdx.x / 32;
  if (at >= p.L) return;
  const long long offset = ((long long)blockIdx.y * p.L + at) * p.C;
  const float *gradient = p.gradient + (long long)blockIdx.y * 2 * p.C;
  Row row;
  row.load(p.x + offset, lane, p.C);
  row.centre(row.mean(p.C), lane, p.C, p.eps);
  float normed[PACKS][V];
  float sum = 0.f, dot = 0.f;
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    const int c = (i * 32 + lane) * V;
    (c < p.C ? Pack<float, V>::load(gradient + p.C + c) : Pack<float, V>::zero()).unpack(normed[i]);
#pragma unroll
    for (int j = 0; j < V; j++) {
      row.v[i][j] *= row.rstd;
      sum += normed[i][j];
      dot = fmaf(normed[i][j], row.v[i][j], dot);
    }
  }
  sum = warp_sum(sum) / p.C, dot = warp_sum(dot) / p.C;
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    const int c = (i * 32 + lane) * V;
    if (c >= p.C) continue;
    float plain[V];
    Pack<float, V>::load(gradient + c).unpack(plain);
#pragma unroll
    for (int j = 0; j < V; j++)
      row.v[i][j] = fmaf(row.rstd, normed[i][j] - sum - row.v[i][j] * dot, plain[j]) / p.L;
    pack_t::from(row.v[i]).store(p.dx + offset + c);
  }
}
