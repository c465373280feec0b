"""What a bundle's configuration calls: the network with its weights, whole volumes in one call, and whole folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from ssmvision.recipes.segmentation import evaluate, predict
from ssmvision.recipes.segmentation.config import EvaluateConfig, PredictConfig
from ssmvision.recipes.segmentation.infer import Predictor, load_model
from ssmvision.recipes.segmentation.weights import open_model

__all__ = ["Evaluator", "VolumeInferer", "list_cases", "open_predictor"]

Tta = Literal["none", "mirror"]


def open_predictor(
    model: Path | str, device: torch.device | str = "auto", overlap: float = 0.5, tta: Tta = "none"
) -> Predictor:
    """The network of a bundle's model folder, ready for use; weights are read from safetensors, never from a pickle.

    Raises:
        UserError: missing, damaged or refused files.
        ValueError: overlap or device cannot be used.
    """
    return load_model(model, str(device), overlap, None if tta == "mirror" else ())


def list_cases(folder: Path | str, predictor: Predictor) -> list[dict[str, list[str]]]:
    """The cases of a folder: {"image": its files, one for each channel or one with all}.

    Raises:
        UserError: no case, or a channel is missing.
    """
    # The output only names files, of which none is written here.
    jobs = predict.plan_jobs(Path(folder), Path(folder) / "predictions", predictor.channels)
    return [{"image": [str(path) for path in job.images]} for job in jobs]


class VolumeInferer(Inferer):
    """Logits of volumes as they were read: turned, resampled and scaled, seen window by window, and put back.

    Args:
        predictor: says how images are prepared and windows placed.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor

    def __call__(self, inputs: Tensor, network: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """Logits (B, K, X, Y, Z) float32 on the grid and the device of `inputs`.

        Args:
            inputs: (B, C, X, Y, Z) raw intensities; the affines of a MetaTensor place them (voxel index to mm, RAS+),
                a plain tensor counts as having the model's orientation and spacing.
            network: a torch module that takes the place of the predictor's.
            args, kwargs: none; MONAI's base class allows them.

        Raises:
            TypeError: further arguments, or a network that is no module.
            ValueError: the channels do not fit, or voxels are not finite.
        """
        if args or kwargs:
            raise TypeError(f"VolumeInferer passes nothing on to the network, got {args} {kwargs}")
        p = self.predictor
        if network is not None and not isinstance(network, nn.Module):
            raise TypeError(f"network is a {type(network).__name__}, expected a torch module")
        if network is not None and network is not p.network:
            p = Predictor(network, p.card, p.device, p.overlap, p.mirror_axes, window_batch=p.window_batch)
        affines = [None] * len(inputs) if not isinstance(inputs, MetaTensor) else _affines(inputs)
        volumes = torch.as_tensor(inputs.detach().cpu())
        found = [p.logits(volume.numpy(), affine) for volume, affine in zip(volumes, affines, strict=True)]
        return torch.stack(found).to(inputs.device)


def _affines(inputs: MetaTensor) -> list[Any]:
    affine = torch.as_tensor(inputs.affine).double().cpu().numpy()
    return list(affine) if affine.ndim == 3 else [affine] * len(inputs)


class Evaluator:
    """Label maps for a folder of images, as `ssmvision predict` writes them, and their scores.

    Args:
        model: folder with model.safetensors, model.json and, where one was decided, postprocessing.json.
        dataset_dir: images, see `PredictConfig.input`.
        output_dir: receives CASE.nii.gz on each input's exact grid.
        device, overlap, tta: as `PredictConfig`.
        overwrite: replace existing files.
    """

    def __init__(
        self,
        model: Path | str,
        dataset_dir: Path | str,
        output_dir: Path | str,
        device: torch.device | str = "auto",
        overlap: float = 0.5,
        tta: Tta = "none",
        overwrite: bool = False,
    ) -> None:
        self.config = PredictConfig(
            Path(model),
            Path(dataset_dir),
            Path(output_dir),
            overwrite=overwrite,
            overlap=overlap,
            tta=tta,
            device=str(device),
        )

    def run(self) -> list[Path]:
        """Writes the label maps and returns their paths.

        Raises:
            UserError: see `predict.run`.
        """
        return predict.run(self.config)

    def score(self, reference: Path | str, output: Path | str) -> evaluate.Evaluation:
        """Scores the label maps against a folder of references with the same names, and writes the scores as JSON.

        Raises:
            UserError: see `evaluate.run`.
        """
        _, card = open_model(self.config.model)
        labels = {name: i for name, i in card.labels.items() if i != 0}
        c = self.config
        return evaluate.run(
            EvaluateConfig(c.output, Path(reference), labels, output_json=Path(output), overwrite=c.overwrite)
        )
