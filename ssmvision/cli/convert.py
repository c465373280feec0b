"""`ssmvision convert`: a published checkpoint as a folder without pickles, in the layout of timm's models on a hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ssmvision.errors import UserError

if TYPE_CHECKING:
    from ssmvision.hub.conversion import Conversion

__all__ = ["ConvertConfig", "run"]


@dataclass(frozen=True)
class ConvertConfig:
    """Convert a published checkpoint of Vim, VMamba, U-Mamba or FusionMamba; nothing in it is executed.

    Attributes:
        file: the checkpoint, a file of torch.save or .safetensors.
        out: folder to write model.safetensors, config.json and README.md to.
        model: name that `ssmvision models` lists; by default found out from the tensors.
        weights: "model" or "ema" where the file holds averaged weights too; "published" takes those that the model's
            published accuracy is for.
        plans: plans.json of U-Mamba's training, if the checkpoint does not hold it.
        configuration: of these plans, such as 3d_fullres.
        licence: of the weights, for config.json and README.md, such as apache-2.0.
        overwrite: replace what is in an existing folder.
    """

    file: Path
    out: Path
    model: str = ""
    weights: Literal["published", "model", "ema"] = "published"
    plans: Path | None = None
    configuration: str = ""
    licence: str = ""
    overwrite: bool = False


def run(config: ConvertConfig) -> None:
    """Convert, compare, and print what became of the tensors.

    Raises:
        UserError: see `ssmvision.hub.conversion.convert_file`; or the folder is not empty.
    """
    if config.out.is_dir() and any(config.out.iterdir()) and not config.overwrite:
        raise UserError(f"{config.out}: is not empty; choose another folder or pass --overwrite")
    from ssmvision.hub.conversion import convert_file

    done = convert_file(
        config.file,
        config.out,
        name=config.model,
        plans=None if config.plans is None else _read_plans(config.plans),
        configuration=config.configuration,
        averaged=None if config.weights == "published" else config.weights == "ema",
        licence=config.licence,
    )
    _print(config, done)


def _read_plans(path: Path) -> Mapping[str, Any]:
    import json

    try:
        plans = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the plans.json of the training") from None
    except ValueError as error:
        raise UserError(f"{path}: not readable JSON ({error}); give the plans.json of the training") from None
    if not isinstance(plans, dict):
        raise UserError(f"{path}: holds no plans; give the plans.json of the training")
    return plans


def _print(config: ConvertConfig, done: Conversion) -> None:
    found, parity = done.account, done.parity
    taken = len(found.kept) + len(found.renamed) + len(found.reshaped) + len(found.computed)
    table = {
        "same name, same numbers": found.kept,
        "renamed": [f"{old} -> {new}" for new, old in found.renamed],
        "in another shape": found.reshaped,
        "computed": found.computed,
        "left out: equal to one of these": found.twins,
        "left out: nothing reads them": found.dropped,
    }
    print(f"{'tensors':<32}{'number':>6}  such as")
    for what, names in table.items():
        print(f"{what:<32}{len(names):>6}  {_some(names)}".rstrip())
    sizes = " and ".join("x".join(map(str, shape)) for shape in parity.inputs)
    work = f"{parity.macs / 1e9:.3g} GMACs"
    if parity.error is None:
        forward = f"not run, input {sizes} takes {work}; all tensors are equal bit for bit"
    else:
        forward = f"largest difference {parity.error:.1e} of outputs up to {parity.largest:.2e} (input {sizes}, {work})"
    print(f"model: {done.name}, {done.parameters:,} parameters in {taken} tensors, loaded strictly")
    print(f"forward, before saving and of the folder: {forward}")
    print(f"sha256 of {config.file.name}: {done.sha256[0]}")
    print(f"sha256 of model.safetensors: {done.sha256[1]}")
    print(f"written: {config.out}")


def _some(names: Sequence[str]) -> str:
    return names[0] + (" ..." if len(names) > 1 else "") if names else ""
