// Gradients of all directions from one read of the tokens and of the results' gradients; the pre-activation is computed
// again. A warp walks 32 V channels of a strip; the warps of a block hold neighbouring strips and add up their parts of
// the weights' gradient in a fixed order.
#include "common.cuh"

constexpr int WARPS = 4;
constexpr int STEP = 4;  // tokens in flight per thread

// d/dy y sigmoid(y).
__device__ __forceinline__ float silu_slope(float y) {
  const float s = sigmoid(y);
  return s * fmaf(y, 1.f - s, 1.f);
}

struct Ahead {
  pack_t x, dout[K];

  __device__ __forceinline__ void load(const Conv &p, const io_t *x_at, const io_t *dout_at, int t) {
    x = load_or_zero(x_at, p.x.row, t, p.L);
#pragma unroll
    for (int k = 0; k < K; k++) dout[k] = load_or_zero(dout_at + k * p.out.route, p.out.row, position(k, t), p.L);
  }
};

extern "C" __global__ void __launch_bounds__(32 * WARPS) conv_backward(const Conv p) {
  __shared__ float parts[WARPS][W + 1][V][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int tile = blockIdx.x % p.tiles, stack = blockIdx.x / p.tiles;
  const int stacks = (p.strips + WARPS - 1) / WARPS;
  const long long b = stack / stacks;
  const int strip = stack % stacks * WARPS + warp, e = (tile * 32 + lane) * V;
  const int begin = strip * p.strip, stop = min(begin + p.strip, p.L);  // positions whose gradients this warp owns

  float dw[K][W][V] = {}, dbias[K][V] = {};
  if (e < p.E && begin < stop) {
    const io_t *x = p.x.at + b * p.x.batch + e, *dout = p.out.at + b * p.out.batch + e;
    io_t *dx = p.dx.at + b * p.dx.batch + e;
    float window[W][V], sum[W][V] = {};  // tokens t-W+1 .. t, and the parts of their gradient found so far
    Ahead ahead[STEP];
#pragma unroll
    for (int i = 0; i < STEP; i++) ahead[i].load(p, x, dout, begin + i);
#pragma unroll
    for (int i = 1; i < W; i++) load_or_zero(x, p.x.row, begin - W + i, p.L).unpack(window[i]);
    const Taps taps(p, e);

    for (int at = begin; at < stop + W - 1; at += STEP) {
      Ahead now[STEP];
#pragma unroll
      for (int i = 0; i < STEP; i++) now[i] = ahead[i];
      if (at + STEP < stop + W - 1) {
#pragma unroll
        for (int i = 0; i < STEP; i++) ahead[i].load(p, x, dout, at + STEP + i);
      }
#pragma unroll
      for (int i = 0; i < STEP; i++) {
        const int t = at + i;
#pragma unroll
        for (int j = 0; j < W - 1; j++) {
#pragma unroll
          for (int v = 0; v < V; v++) window[j][v] = window[j + 1][v];
        }
        now[i].x.unpack(window[W - 1]);
#pragma unroll
        for (int k = 0; k < K; k++) {
          const int s = position(k, t);
          const bool owned = s >= begin && s < stop;
          float d[V];
          now[i].dout[k].unpack(d);
#pragma unroll
          for (int v = 0; v < V; v++) {
            if (SILU) {
              float y = taps.bias[k][v];
#pragma unroll
              for (int j = 0; j < W; j++) y = fmaf(taps.w[k][j][v], window[j][v], y);
              d[v] *= silu_slope(y);
            }
            const float mine = owned ? d[v] : 0.f;
            dbias[k][v] += mine;
#pragma unroll
            for (int j = 0; j < W; j++) {
              dw[k][j][v] = fmaf(mine, window[j][v], dw[k][j][v]);
              sum[j][v] = fmaf(taps.w[k][j][v], d[v], sum[j][v]);
            }
          }
        }
        const int done = t - W + 1;
        if (done >= begin && done < stop) pack_t::from(sum[0]).store(dx + done * p.dx.row);
#pragma unroll
        for (int j = 0; j < W; j++) {
#pragma unroll
          for (int v = 0; v < V; v++) sum[j][v] = j < W - 1 ? sum[j + 1][v] : 0.f;
        }
      }
    }
  }

  // partial (stacks of strips, K, W + 1, E): the taps' gradients, then the bias's.
#pragma unroll
  for (int k = 0; k < K; k++) {
    __syncthreads();
#pragma unroll
    for (int v = 0; v < V; v++) {
#pragma unroll
      for (int i = 0; i < W; i++) parts[warp][tap(k, i)][v][lane] = dw[k][i][v];
      parts[warp][W][v][lane] = dbias[k][v];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < (W + 1) * 32 * V; i += 32 * WARPS) {
      const int channel = i % (32 * V), row = i / (32 * V), e_out = tile * 32 * V + channel;
      float total = 0.f;
#pragma unroll
      for (int w = 0; w < WARPS; w++) total += parts[w][row][channel % V][channel / V];
      if (e_out < p.E) p.partial[(((long long)stack * K + k) * (W + 1) + row) * p.E + e_out] = total;
    }
  }
}

// Sums of partial (rows, n = K (W + 1) E) over its rows, each always in the same order: dweight (K, E, W), dbias (K, E).
extern "C" __global__ void __launch_bounds__(256) conv_sum(const float *partial, weight_t *dweight, weight_t *dbias,
                                                           int rows, int E, int n) {
  __shared__ float parts[8][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, i = blockIdx.x * 32 + lane;
  float total = 0.f;
  if (i < n) {
#pragma unroll 4
    for (int r = warp; r < rows; r += 8) total += partial[(long long)r * n + i];
  }
  parts[warp][lane] = total;
  __syncthreads();
  if (warp > 0 || i >= n) return;
  total = 0.f;
#pragma unroll
  for (int w = 0; w < 8; w++) total += parts[w][lane];
  const int e = i % E, row = i / E % (W + 1), k = i / E / (W + 1);
  const long long channel = (long long)k * E + e;
  if (row < W) dweight[channel * W + row] = from_float<weight_t>(total);
  else if (dbias) dbias[channel] = from_float<weight_t>(total);
}
