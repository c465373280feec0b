// The scan's small companions: carries between segments, the merge of routes, sums, and the gate's gradient. Defines: IO.
#include "common.cuh"

// State entering each segment, from the segments' end states (from zero) and total step sizes.
// end, entry: (rows, segments, N, E); sum_dt: (rows, segments, E); start, final: (rows, N, E), start null for zero.
// In reverse, segments are walked from the last: the adjoint's direction.
extern "C" __global__ void carry(const float *end, const float *sum_dt, const float *A, const float *start, float *entry,
                                 float *final_state, int rows, int K, int segments, int N, int E, int reverse) {
  const long long id = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (id >= (long long)rows * N * E) return;
  const int e = id % E, n = id / E % N;
  const long long row = id / ((long long)E * N);
  const float a = A[((row % K) * E + e) * N + n] * LOG2E;
  float h = start ? start[id] : 0.f;
  for (int i = 0; i < segments; i++) {
    const long long slot = row * segments + (reverse ? segments - 1 - i : i);
    const long long at = (slot * N + n) * E + e;
    entry[at] = h;
    h = fmaf(ex2(a * sum_dt[slot * E + e]), h, end[at]);
  }
  if (final_state) final_state[id] = h;
}

// out (B, L, E) = silu(z) * scale * sum over K of partial (B, K, L, E).
extern "C" __global__ void merge(const float *partial, const io_t *z, io_t *ungated, io_t *out, float scale, int K,
                                 long long per_batch, long long total) {
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += (long long)gridDim.x * blockDim.x) {
    const long long b = i / per_batch, at = i % per_batch;
    float y = 0.f;
    for (int k = 0; k < K; k++) y += partial[(b * K + k) * per_batch + at];
    y *= scale;
    if (ungated) ungated[i] = from_float<io_t>(y);
    if (z) {
      const float g = to_float(z[i]);
      y *= g * sigmoid(g);
    }
    out[i] = from_float<io_t>(y);
  }
}

// Sum over rows of part (rows, n), row by row, so that the order of the additions is fixed. The first n0 sums go to out0,
// the next n1 to out1 and the rest to out2; floats or io_t.
extern "C" __global__ void sum_rows(const float *part, void *out0, void *out1, void *out2, int rows, int floats,
                                    long long n0, long long n1, long long n) {
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) {
    float v = 0.f;
#pragma unroll 8
    for (int r = 0; r < rows; r++) v += part[r * n + i];
    void *out = i < n0 ? out0 : i < n0 + n1 ? out1 : out2;
    const long long at = i < n0 ? i : i < n0 + n1 ? i - n0 : i - n0 - n1;
    if (floats) ((float *)out)[at] = v;
    else ((io_t *)out)[at] = from_float<io_t>(v);
  }
}

// With out = y silu(z): dz.
extern "C" __global__ void gate_backward(const io_t *dout, const io_t *z, const io_t *y, io_t *dz, long long total) {
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += (long long)gridDim.x * blockDim.x) {
    const float g = to_float(z[i]), s = sigmoid(g), d = to_float(dout[i]);
    dz[i] = from_float<io_t>(d * to_float(y[i]) * s * fmaf(g, 1.f - s, 1.f));
  }
}
