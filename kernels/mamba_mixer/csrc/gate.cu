// Backward of out = y silu(z), which also makes out again. Defines: IO; VEC, neighbouring channels a thread handles.
#include "types.cuh"

typedef Dtype<IO>::type io_t;
struct alignas(VEC * sizeof(io_t)) Vector {
  io_t v[VEC];
};

// dout (rows, E) is overwritten with dy; z and dz have rows of their own length, y and out are (rows, E). With E in vectors.
extern "C" __global__ void __launch_bounds__(256)
    gate_backward(Vector *dout, const Vector *z, const Vector *y, Vector *dz, Vector *out, long long total, int E,
                  long long z_row, long long dz_row) {
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += (long long)gridDim.x * blockDim.x) {
    const long long row = i / E;
    const int at = (int)(i - row * E);
    Vector d = dout[i], g = z[row * z_row + at], u = y[i], dg, o;
#pragma unroll
    for (int j = 0; j < VEC; j++) {
      const float zj = to_float(g.v[j]), dj = to_float(d.v[j]), uj = to_float(u.v[j]);
      const float s = 1.f / (1.f + expf(-zj)), silu = zj * s;
      store(o.v + j, uj * silu);
      store(d.v + j, dj * silu);
      store(dg.v + j, dj * uj * s * fmaf(zj, 1.f - s, 1.f));
    }
    dout[i] = d;
    out[i] = o;
    dz[row * dz_row + at] = dg;
  }
}
