"""A small package with CUDA sources, for the tests of compiling, caching and launching."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_void_p
from pathlib import Path

from ssmvision.kernels.cuda.program import Program, ProgramSpec

HEADERS = {
    "types.cuh": '#pragma once\n#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n#include "detail/scale.cuh"\n',
    "detail/scale.cuh": "#pragma once\n__device__ inline float scaled(float x) { return FACTOR * x; }\n",
}
SOURCE = """#include "types.cuh"
struct Offset { float add; int n; };
extern "C" __global__ void scale(const __nv_bfloat16* in, const Offset offset, float* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < offset.n) out[i] = scaled(__bfloat162float(in[i])) + offset.add;
}
extern "C" __global__ void fill(float* out, int n, float value) {
  extern __shared__ float shared[];
  shared[threadIdx.x] = value;
  __syncthreads();
  if (threadIdx.x < n) out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}
"""


class Offset(Structure):
    _fields_ = (("add", c_float), ("n", c_int32))


KERNELS = {"scale": (c_void_p, Offset, c_void_p), "fill": (c_void_p, c_int32, c_float)}


def write_package(folder: Path, name: str, source: str = SOURCE) -> None:
    for file, text in {"kernel.cu": source, **HEADERS}.items():
        path = folder / name / "csrc" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / name / "__init__.py").touch()


def make_program(package: str, factors: tuple[int, ...] = (2, 3)) -> Program:
    variants = [{"FACTOR": factor} for factor in factors]
    return Program(ProgramSpec("scaling", package, "csrc/kernel.cu", KERNELS, variants))
