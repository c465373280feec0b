"""Models for other runtimes: ONNX of standard operators, and `torch.export` programs."""

from __future__ import annotations

from ssmvision.export.onnx import OnnxReport, to_onnx

__all__ = ["OnnxReport", "to_onnx"]
