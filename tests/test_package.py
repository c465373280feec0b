from __future__ import annotations

import subprocess
import sys

import pytest

import ssmvision


def test_public_names_load_on_demand() -> None:
    code = """
import sys, ssmvision
assert "torch" not in sys.modules
assert set(ssmvision.__all__) <= set(dir(ssmvision))
assert ssmvision.models.VisionMamba
assert ssmvision.ops.selective_scan is ssmvision.kernels.selective_scan.selective_scan
assert ssmvision.convert_state_dict is ssmvision.convert.convert_state_dict
assert all(hasattr(ssmvision, name) for name in ssmvision.__all__)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = ssmvision.no_such_name
