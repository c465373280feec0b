// The scan's small companions: carries between segments, the merge of routes, sums, and the gate's gradient. Defines: IO.
#include "common.cuh"

// State entering each segment, from the segments' end states (from zero) and total step sizes in units of ln 2.
// end, entry: (rows, segments, N, E); sum_dt: (rows, segments, E); start: (rows, N, E), null for zero.
// In reverse, segments are walked from the last: the adjoint's direction. A block takes 32 columns (row, n, e); each of its
// RUNS rows of threads takes a run of neighbouring segments, first to learn what the run does to a state, then, from the
// runs before it, to write the entries.
constexpr int RUNS = 16;
extern "C" __global__ void __launch_bounds__(32 * RUNS)
    carry(const float *__restrict__ end, const float *__restrict__ sum_dt, const float *__restrict__ A,
          const float *__restrict__ start, float *__restrict__ entry, int rows, int K, int segments, int N, int E, int reverse) {
  __shared__ float decay_of[RUNS][32], left_by[RUNS][32];
  const long long id = (long long)blockIdx.x * 32 + threadIdx.x % 32;
  const bool ok = id < (long long)rows * N * E;
  const int run = threadIdx.x / 32, per_run = (segments + RUNS - 1) / RUNS;
  const int first = run * per_run, stop = min(first + per_run, segments);
  const int e = id % E, n = id / E % N;
  const long long row = id / ((long long)E * N);
  const float a = ok ? A[((row % K) * E + e) * N + n] : 0.f;
  auto slot_of = [&](int i) { return row * segments + (reverse ? segments - 1 - i : i); };
  float h = 0.f, size = 0.f;
#pragma unroll 4
  for (int i = first; i < stop && ok; i++) {
    const float s = sum_dt[slot_of(i) * E + e];
    h = fmaf(ex2(a * s), h, end[(slot_of(i) * N + n) * E + e]), size += s;
  }
  decay_of[run][threadIdx.x % 32] = ex2(a * size), left_by[run][threadIdx.x % 32] = h;
  __syncthreads();
  if (!ok) return;
  h = start ? start[id] : 0.f;
  for (int r = 0; r < run; r++) h = fmaf(decay_of[r][threadIdx.x % 32], h, left_by[r][threadIdx.x % 32]);
#pragma unroll 4
  for (int i = first; i < stop; i++) {
    const long long at = (slot_of(i) * N + n) * E + e;
    const float left = end[at], s = sum_dt[slot_of(i) * E + e];
    entry[at] = h;
    h = fmaf(ex2(a * s), h, left);
  }
}

// Four neighbours at a time where their number allows.
template <typename T> struct alignas(4 * sizeof(T)) Four {
  T v[4];
};
__device__ __forceinline__ io_t gated(float y, io_t z) {
  const float g = to_float(z);
  return from_float<io_t>(y * g * sigmoid(g));
}
// out (B, L, E) = silu(z) * scale * sum over K of partial (B, K, L, E); `size` is L x E, `blocks` those of a batch entry.
extern "C" __global__ void merge(const float *partial, const io_t *z, io_t *ungated, io_t *out, float scale, int K,
                                 long long size, int fours, int blocks) {
  const long long first = blockIdx.x / blocks * size;
  partial += first * K, out += first, z = z ? z + first : z, ungated = ungated ? ungated + first : ungated;
  const long long step = (long long)blocks * blockDim.x, at = (long long)(blockIdx.x % blocks) * blockDim.x + threadIdx.x;
  for (long long i = at; fours && i < size / 4; i += step) {
    float y[4] = {};
#pragma unroll 4
    for (int k = 0; k < K; k++) {
      const Four<float> v = ((const Four<float> *)(partial + k * size))[i];
#pragma unroll
      for (int j = 0; j < 4; j++) y[j] += v.v[j];
    }
    Four<io_t> plain, r, gate;
    if (z) gate = ((const Four<io_t> *)z)[i];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      plain.v[j] = from_float<io_t>(y[j] * scale);
      r.v[j] = z ? gated(y[j] * scale, gate.v[j]) : plain.v[j];
    }
    if (ungated) ((Four<io_t> *)ungated)[i] = plain;
    ((Four<io_t> *)out)[i] = r;
  }
  for (long long i = at; !fours && i < size; i += step) {
    float y = 0.f;
    for (int k = 0; k < K; k++) y += partial[k * size + i];
    y *= scale;
    if (ungated) ungated[i] = from_float<io_t>(y);
    out[i] = z ? gated(y, z[i]) : from_float<io_t>(y);
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

// With out = y silu(z): dz. A block takes one row of E; rows of dout, y and dz follow each other, z has its own strides.
__device__ __forceinline__ io_t gate_slope(io_t dout, io_t z, io_t y) {
  const float g = to_float(z), s = sigmoid(g);
  return from_float<io_t>(to_float(dout) * to_float(y) * s * fmaf(g, 1.f - s, 1.f));
}
extern "C" __global__ void gate_backward(const io_t *dout, const io_t *z, const io_t *y, io_t *dz, int E, int rows_per_batch,
                                         long long z_batch, long long z_row, int fours) {
  const long long row = blockIdx.x, b = blockIdx.x / rows_per_batch, l = blockIdx.x % rows_per_batch;
  dout += row * E, y += row * E, dz += row * E, z += b * z_batch + l * z_row;
  if (fours) {
    for (int i = threadIdx.x; i < E / 4; i += blockDim.x) {
      const Four<io_t> d = ((const Four<io_t> *)dout)[i], g = ((const Four<io_t> *)z)[i], v = ((const Four<io_t> *)y)[i];
      Four<io_t> r;
#pragma unroll
      for (int j = 0; j < 4; j++) r.v[j] = gate_slope(d.v[j], g.v[j], v.v[j]);
      ((Four<io_t> *)dz)[i] = r;
    }
  } else {
    for (int i = threadIdx.x; i < E; i += blockDim.x) dz[i] = gate_slope(dout[i], z[i], y[i]);
  }
}
