"""Models for other runtimes: ONNX of standard operators, and `torch.export` programs."""

from __future__ import annotations

from ssmvision.export.comparison import ExportReport
from ssmvision.export.onnx import to_onnx
from ssmvision.export.program import load_program, to_program

__all__ = ["ExportReport", "load_program", "to_onnx", "to_program"]
