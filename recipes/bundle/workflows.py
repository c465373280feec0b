"""configs/inference.json and configs/evaluate.json of a bundle, which MONAI's ConfigParser reads."""

from __future__ import annotations

from typing import Any

__all__ = ["EVALUATE", "INFERENCE"]

_CALLS = "ssmvision.recipes.bundle.calls"

# Whole cases go through `evaluator`, which does what `ssmvision predict` does; programs that drive the parts themselves
# put preprocessing, inferer and postprocessing one after the other.
INFERENCE: dict[str, Any] = {
    "imports": ["$import torch"],
    "bundle_root": ".",
    "dataset_dir": "$@bundle_root + '/images'",
    "output_dir": "$@bundle_root + '/predictions'",
    "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    "overlap": 0.5,
    "tta": "none",
    "overwrite": False,
    "model_dir": "$@bundle_root + '/models'",
    "predictor": {
        "_target_": f"{_CALLS}.open_predictor",
        "model": "@model_dir",
        "device": "@device",
        "overlap": "@overlap",
        "tta": "@tta",
    },
    "network_def": "$@predictor.network",
    "inferer": {"_target_": f"{_CALLS}.VolumeInferer", "predictor": "@predictor"},
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
        ],
    },
    "dataset": {
        "_target_": "Dataset",
        "data": {"_target_": f"{_CALLS}.list_cases", "folder": "@dataset_dir", "predictor": "@predictor"},
        "transform": "@preprocessing",
    },
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "AsDiscreted", "keys": "pred", "argmax": True}],
    },
    "evaluator": {
        "_target_": f"{_CALLS}.Evaluator",
        "model": "@model_dir",
        "dataset_dir": "@dataset_dir",
        "output_dir": "@output_dir",
        "device": "@device",
        "overlap": "@overlap",
        "tta": "@tta",
        "overwrite": "@overwrite",
    },
    "run": ["$@evaluator.run()"],
}

# Given after inference.json, so that the label maps are scored once they are written.
EVALUATE: dict[str, Any] = {
    "label_dir": "$@bundle_root + '/labels'",
    "scores": "$@output_dir + '/scores.json'",
    "run": ["$@evaluator.run()", "$@evaluator.score(@label_dir, @scores)"],
}
