"""Measures the largest main memory of a prediction on a generated volume, apart from a network's activations.

    python -m ssmvision.recipes.segmentation.prediction_memory --shape 512 512 600 --classes 20

The network is one convolution of a single voxel, since what is measured is all that surrounds a network: reading,
preparing, windows, sums, resampling back, labels and writing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch

from ssmvision.recipes.segmentation.config import PredictConfig
from ssmvision.recipes.segmentation.infer import Predictor
from ssmvision.recipes.segmentation.predict import Job, predict_case
from ssmvision.recipes.segmentation.preprocessing import ChannelScale, Preprocessing
from ssmvision.recipes.segmentation.weights import ModelCard

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes a volume, predicts it in a process of its own and prints that process's figures as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 600), help="voxels")
    parser.add_argument("--classes", type=int, default=20, help="with background")
    parser.add_argument("--patch", type=int, default=96, help="edge of the cubic window")
    parser.add_argument("--overlap", type=float, default=0.5, help="of the windows")
    parser.add_argument("--spacing_mm", type=float, help="resample voxels of 1 mm to this edge and the logits back")
    parser.add_argument("--rules", choices=("linear", "nnunet"), default="linear", help="of resampling")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.case is not None:
        print(json.dumps(predict(given)))
        return
    with tempfile.TemporaryDirectory() as folder:
        voxels = np.random.default_rng(0).integers(-1000, 1000, given.shape, np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), Path(folder) / "image.nii")
        del voxels
        command = [sys.executable, "-m", __spec__.name, *(sys.argv[1:] if arguments is None else arguments)]
        subprocess.run([*command, "--case", str(Path(folder) / "image.nii")], check=True)


def predict(given: argparse.Namespace) -> dict[str, object]:
    """Largest memory in GB (10^9 bytes) and seconds of predicting the given case."""
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    target = None if given.spacing_mm is None else (given.spacing_mm,) * 3
    labels = {"background": 0} | {f"class_{i}": i for i in range(1, given.classes)}
    how = Preprocessing("RAS", target, (ChannelScale("zscore"),), given.rules)
    card = ModelCard({}, ("CT",), labels, (given.patch,) * 3, how)
    predictor = Predictor(torch.nn.Conv3d(1, given.classes, 1), card, "cpu", given.overlap)
    output = given.case.with_name("labels.nii.gz")
    start = time.monotonic()
    config = PredictConfig(Path(), given.case, output)
    predict_case(predictor, Job((given.case,), output), config, lambda line: print(line, file=sys.stderr, flush=True))
    settings = {name: value for name, value in vars(given).items() if name != "case"}
    seconds = round(time.monotonic() - start)
    return settings | {"peak_gb": peak_gb(), "seconds": seconds}


def peak_gb() -> float:
    """Largest resident memory of this process so far."""
    import resource

    # Linux counts in kilobytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)


if __name__ == "__main__":
    main()
