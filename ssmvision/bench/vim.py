"""`ssmvision bench vim`: throughput, memory and latency of an image model beside a vision transformer, on one GPU."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ssmvision.models  # noqa: F401  (registers them with timm)
from ssmvision.bench.config import BenchVimConfig
from ssmvision.bench.table import markdown, publish
from ssmvision.bench.timing import capture, in_rounds_us, in_turns_us, peak_mib, side_stream
from ssmvision.errors import UserError

__all__ = [
    "CLASSES",
    "ModelRow",
    "check_models",
    "create_model",
    "measure",
    "parse_sizes",
    "run",
    "table",
    "training_step",
]

CLASSES = 1000
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class ModelRow:
    """One model, image size, batch and pass.

    Attributes:
        model: its name in timm.
        pixels: side of the square image.
        batch: images.
        step: "infer", or "train" (forward, loss, backward, fused AdamW).
        eager_ms: milliseconds a step in a loop of steps launched by Python.
        graph_ms: milliseconds on the GPU of the same step as one CUDA graph, from a cold L2 cache.
        peak_mib: most memory allocated at once by an eager step, weights and optimiser included.
        missing: why there are no figures, or "".
    """

    model: str
    pixels: int
    batch: int
    step: str
    eager_ms: float = 0.0
    graph_ms: float = 0.0
    peak_mib: float = 0.0
    missing: str = ""


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """Pixels and batch of every "PIXELS/BATCH" in a comma-separated list.

    Raises:
        UserError: one of them is something else.
    """
    sizes = []
    for word in text.split(","):
        pixels, _, batch = word.strip().partition("/")
        if not (pixels.isdigit() and batch.isdigit() and int(pixels) and int(batch)):
            raise UserError(f"--sizes {text}: {word.strip()!r} is not PIXELS/BATCH, such as 224/64")
        sizes.append((int(pixels), int(batch)))
    return sizes


def run(config: BenchVimConfig) -> list[ModelRow]:
    """Time every size, print the table and write it where `config.out` says.

    Raises:
        UserError: there is no CUDA device, a model or size does not exist.
    """
    sizes = parse_sizes(config.sizes)
    names = [name for name in (config.model, config.peer) if name]
    check_models(*names)
    if not torch.cuda.is_available():
        raise UserError("bench vim needs a CUDA device and PyTorch sees none here; run `ssmvision doctor`")
    rows: list[ModelRow] = []
    for pixels, batch in sizes:
        for step in ("infer", "train") if config.train and batch > 1 else ("infer",):
            print(f"{pixels} px, batch {batch}, {step} ...", file=sys.stderr, flush=True)
            rows += measure(names, pixels, batch, step, getattr(torch, config.dtype))
    about = f"{torch.cuda.get_device_name()}; {config.dtype}; torch {torch.__version__}; timm {timm.__version__}"
    publish(config, about, rows, f"{about}\n\n{table(rows)}")
    return rows


def check_models(*names: str) -> None:
    """Refuses names that timm does not know.

    Raises:
        UserError: names the first one.
    """
    for name in names:
        if not timm.is_model(name):
            raise UserError(f"timm has no model {name!r}; `ssmvision models` lists ours, timm.list_models() all")


def measure(names: Sequence[str], pixels: int, batch: int, step: str, dtype: torch.dtype) -> list[ModelRow]:
    """One row a model; the models take turns."""
    rows: dict[str, ModelRow] = {}
    eager: dict[str, Callable[[], object]] = {}
    graphs: dict[str, Callable[[], object]] = {}
    with side_stream():
        for name in names:
            base = torch.cuda.memory_allocated()
            try:
                work = _work(name, pixels, batch, step, dtype)
                peak = peak_mib(work, base)
                graphs[name] = capture(work).replay
            except torch.OutOfMemoryError:
                rows[name] = ModelRow(name, pixels, batch, step, missing="out of memory")
                continue
            eager[name], rows[name] = work, ModelRow(name, pixels, batch, step, peak_mib=peak)
        ran = list(graphs)
        eager_us = in_rounds_us([eager[name] for name in ran])
        graph_us = in_turns_us([graphs[name] for name in ran]) if ran else []
    del eager, graphs
    gc.collect()
    torch.cuda.empty_cache()
    for name, slow, fast in zip(ran, eager_us, graph_us, strict=True):
        rows[name] = ModelRow(name, pixels, batch, step, slow / 1e3, fast / 1e3, rows[name].peak_mib)
    return list(rows.values())


def _work(name: str, pixels: int, batch: int, step: str, dtype: torch.dtype) -> Callable[[], object]:
    torch.manual_seed(0)
    model = create_model(name, pixels).cuda()
    images = torch.randn(batch, 3, pixels, pixels, device="cuda")
    if step == "train":
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True, capturable=True)
        labels = torch.randint(CLASSES, (batch,), device="cuda")
        return lambda: training_step(model.train(), optimizer, images, labels, dtype)

    def infer() -> Tensor:
        with torch.inference_mode(), _autocast(images, dtype):
            out: Tensor = model(images)
        return out

    model.eval()
    return infer


def create_model(name: str, pixels: int) -> nn.Module:
    """A model of timm for square images of a size, where it has one; convolutional networks take any."""
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        return timm.create_model(name, img_size=pixels, num_classes=CLASSES)
    model = timm.create_model(name, num_classes=CLASSES)
    resize = getattr(model, "set_input_size", None)
    if callable(resize):
        resize((pixels, pixels))
    return model


def _autocast(images: Tensor, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32)


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, dtype: torch.dtype
) -> Tensor:
    """Forward, cross entropy, backward and update; returns the loss before the update."""
    optimizer.zero_grad(set_to_none=True)
    with _autocast(images, dtype):
        loss = F.cross_entropy(model(images).float(), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


def table(rows: Sequence[ModelRow]) -> str:
    """Markdown; images per second, milliseconds and MiB."""
    return markdown([_cells(row) for row in rows])


def _cells(row: ModelRow) -> dict[str, str]:
    cells = {"model": row.model, "px / batch": f"{row.pixels} / {row.batch}", "step": row.step}
    if row.missing:
        return cells | {"eager ms (img/s)": row.missing, "graph ms (img/s)": "", "peak MiB": ""}
    return cells | {
        "eager ms (img/s)": f"{row.eager_ms:.2f} ({row.batch / row.eager_ms * 1e3:.0f})",
        "graph ms (img/s)": f"{row.graph_ms:.2f} ({row.batch / row.graph_ms * 1e3:.0f})",
        "peak MiB": f"{row.peak_mib:.0f}",
    }
