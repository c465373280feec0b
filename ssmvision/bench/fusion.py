"""`ssmvision bench fusion`: FusionMamba's inference and training, eagerly and, on a GPU, as one CUDA graph."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ssmvision.bench.fusion_config import BenchFusionConfig
from ssmvision.bench.scan import cpu_name
from ssmvision.bench.table import markdown, publish
from ssmvision.bench.timing import capture, in_rounds_us, in_turns_us, peak_mib, side_stream
from ssmvision.bench.vim import parse_sizes
from ssmvision.errors import UserError
from ssmvision.models.fusion_mamba import FusionMamba

__all__ = ["FORMS", "TRAINED", "FusionRow", "measure", "run", "table", "training_step"]

LEARNING_RATE = 1e-4
NETWORKS: dict[str, Callable[[], FusionMamba]] = {"default": FusionMamba, "tiny": FusionMamba.tiny}
Work = Callable[[], object]


@dataclass(frozen=True)
class Form:
    """How the network runs: autocast's dtype, or the dtype of its inference copy, or neither."""

    autocast: torch.dtype | None = None
    copy: torch.dtype | None = None


FORMS = {
    "float32": Form(),
    "autocast bfloat16": Form(autocast=torch.bfloat16),
    "for_inference(float32)": Form(copy=torch.float32),
    "for_inference(bfloat16)": Form(copy=torch.bfloat16),
}
TRAINED = ("float32", "autocast bfloat16")


@dataclass(frozen=True)
class FusionRow:
    """One size, pass and form.

    Attributes:
        model: "default" or "tiny".
        pixels: side of the square images.
        batch: pairs.
        step: "infer" or "train".
        form: which of `FORMS`.
        eager_ms: milliseconds a call, launched by Python; on a CPU the fastest.
        graph_ms: milliseconds on the GPU of the same as one CUDA graph, from a cold L2 cache; None on a CPU.
        launches: kernels, copies and fills on the GPU of an eager call; None on a CPU.
        peak_mib: most memory allocated at once, weights included; None on a CPU.
        error: |found - plain| / |plain| of what inference adds to the images, beside the plain float32 network on the
            same device; None for training.
    """

    model: str
    pixels: int
    batch: int
    step: str
    form: str
    eager_ms: float
    graph_ms: float | None = None
    launches: int | None = None
    peak_mib: float | None = None
    error: float | None = None


def run(config: BenchFusionConfig) -> list[FusionRow]:
    """Time every size, print the table and write it where `config.out` says.

    Raises:
        UserError: CUDA is asked for and there is none, or a size is not PIXELS/BATCH.
    """
    sizes = parse_sizes(config.sizes)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device here; run `ssmvision doctor` or use --device cpu")
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    rows: list[FusionRow] = []
    for pixels, batch in sizes:
        for step in ("infer", "train") if config.train else ("infer",):
            for form in FORMS if step == "infer" else TRAINED:
                print(f"{pixels} px, batch {batch}, {step}, {form} ...", file=sys.stderr, flush=True)
                rows.append(measure(config, pixels, batch, step, form))
    publish(config, _machine(config.device), rows, f"{_machine(config.device)}\n\n{table(rows)}")
    return rows


def _machine(device: str) -> str:
    versions = f"torch {torch.__version__}; Python {platform.python_version()}"
    if device == "cpu":
        return f"{cpu_name()}, {torch.get_num_threads()} threads; {versions}"
    tf32 = {True: "TF32", False: "float32"}
    kinds = f"convolutions {tf32[torch.backends.cudnn.allow_tf32]}"
    kinds += f", matrix products {tf32[torch.backends.cuda.matmul.allow_tf32]}"
    return f"{torch.cuda.get_device_name()}; float32 layers: {kinds}; {versions}"


def measure(config: BenchFusionConfig, pixels: int, batch: int, step: str, form: str) -> FusionRow:
    """One row, on a network of its own."""
    torch.manual_seed(0)
    with torch.device(config.device):
        net = NETWORKS[config.model]()
    x1, x2 = torch.rand(2, batch, 1, pixels, pixels, device=config.device).unbind(0)
    row = FusionRow(config.model, pixels, batch, step, form, 0.0)
    if step == "train":
        work = _training(net.train(), x1, x2, FORMS[form])
    else:
        net.eval()
        inference = _inference(net, x1, x2, FORMS[form])
        row = replace(row, error=_error(inference(), _inference(net, x1, x2, FORMS["float32"])(), x1 + x2))
        work = inference
    del net  # an inference copy stands alone
    if config.device == "cpu":
        return replace(row, eager_ms=min(_cpu_ms(work) for _ in range(config.repeats)))
    with side_stream():
        row = replace(row, peak_mib=peak_mib(work, 0), launches=_launches(work), eager_ms=in_rounds_us([work])[0] / 1e3)
        return replace(row, graph_ms=in_turns_us([capture(work).replay])[0] / 1e3)


def _inference(net: FusionMamba, x1: Tensor, x2: Tensor, form: Form) -> Callable[[], Tensor]:
    chosen = net if form.copy is None else net.for_inference(form.copy)

    def fuse() -> Tensor:
        with torch.no_grad(), torch.autocast(x1.device.type, form.autocast, enabled=form.autocast is not None):
            out: Tensor = chosen(x1, x2)
        return out

    return fuse


def _training(net: FusionMamba, x1: Tensor, x2: Tensor, form: Form) -> Work:
    weights = [parameter for parameter in net.parameters() if parameter.requires_grad]
    on_gpu = x1.is_cuda
    optimizer = torch.optim.Adam(weights, lr=LEARNING_RATE, fused=on_gpu, capturable=on_gpu)
    return lambda: training_step(net, optimizer, x1, x2, form.autocast)


def training_step(
    net: FusionMamba, optimizer: torch.optim.Optimizer, x1: Tensor, x2: Tensor, autocast: torch.dtype | None
) -> Tensor:
    """Forward, mean absolute error to the brighter image, backward and update; returns the loss before the update."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(x1.device.type, autocast, enabled=autocast is not None):
        fused = net(x1, x2)
    loss = F.l1_loss(fused.float(), torch.maximum(x1, x2))
    loss.backward()
    optimizer.step()
    return loss.detach()


def _error(found: Tensor, plain: Tensor, images: Tensor) -> float:
    added = plain.double() - 2 * images.double()
    return float((found.double() - plain.double()).norm() / added.norm())


def _cpu_ms(work: Work) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def _launches(work: Work) -> int:
    work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize()
    return sum(event.device_type == torch._C._autograd.DeviceType.CUDA for event in profiled.events())


def table(rows: Sequence[FusionRow]) -> str:
    """Markdown; milliseconds and MiB."""
    return markdown([_cells(row) for row in rows])


def _cells(row: FusionRow) -> dict[str, str]:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return {
        "model": row.model,
        "px / batch": f"{row.pixels} / {row.batch}",
        "step": row.step,
        "form": row.form,
        "eager ms": f"{row.eager_ms:.2f}",
        "graph ms": shown(row.graph_ms, ".2f"),
        "launches": shown(row.launches, "d"),
        "peak MiB": shown(row.peak_mib, ".0f"),
        "error": shown(row.error, ".0e"),
    }
