"""A published checkpoint as a saved model, and an account of what became of every tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ssmvision.convert import convert_state_dict, load_official, unwrap_checkpoint
from ssmvision.errors import UserError
from ssmvision.flops import count
from ssmvision.hub.arguments import CLASSES
from ssmvision.hub.card import Card
from ssmvision.hub.folder import WEIGHTS, load_pretrained, save_pretrained
from ssmvision.hub.identify import Target, identify
from ssmvision.models.umamba import UMambaBot, UMambaEnc

__all__ = ["Account", "Conversion", "Parity", "convert_file"]

# A forward beyond this takes a CPU longer than a minute.
MOST_MACS = 3e11


@dataclass(frozen=True)
class Account:
    """What became of the tensors, by name.

    Attributes:
        kept: under the same name, bit for bit.
        renamed: new name and old, bit for bit.
        reshaped: the same numbers in another shape.
        computed: made from the file's: position embeddings of another grid, rows cut out.
        twins: left out, since they equal one that is kept.
        dropped: left out, since nothing reads them.
    """

    kept: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    reshaped: tuple[str, ...]
    computed: tuple[str, ...]
    twins: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class Parity:
    """One forward of random inputs (seed 0), before saving and of the saved folder.

    Attributes:
        inputs: their shapes.
        macs: multiply-accumulates of it.
        error: largest absolute difference of the outputs; None: not run, since it would take minutes.
        largest: largest absolute output.
    """

    inputs: tuple[tuple[int, ...], ...]
    macs: int
    error: float | None
    largest: float


@dataclass(frozen=True)
class Conversion:
    """The result.

    Attributes:
        name: of the model.
        account: what became of the tensors.
        parameters: number of weights.
        sha256: of the file that was read, and of model.safetensors.
        parity: how the saved folder compares.
    """

    name: str
    account: Account
    parameters: int
    sha256: tuple[str, str]
    parity: Parity


def convert_file(
    file: Path,
    out: Path,
    *,
    name: str = "",
    plans: Mapping[str, Any] | None = None,
    configuration: str = "",
    averaged: bool | None = None,
    licence: str = "",
) -> Conversion:
    """Read a published checkpoint without running anything in it, write a folder, and compare the two.

    Args:
        file: see `load_official`.
        out: see `save_pretrained`.
        name, plans, configuration: see `identify`.
        averaged: take the averaged weights where there are both; None: as the published numbers of the model.
        licence: of the weights, for the card.

    Raises:
        UserError: a file that cannot be read or holds code, weights that fit no or another model, or a folder that
            does not give back what was written.
    """
    checkpoint = load_official(file)
    try:
        target = identify(checkpoint, name, plans, configuration)
        prefer_ema = target.prefer_ema if averaged is None else averaged
        state = unwrap_checkpoint(checkpoint, prefer_ema)
        model = target.build().eval()
        converted = convert_state_dict(model, checkpoint, prefer_ema=prefer_ema)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error
    bad = [key for key, value in converted.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise UserError(f"{file}: non-finite values in {', '.join(bad[:3])}; get the file again")
    model.load_state_dict(converted)
    digest = _digest(file)
    account = _account(state, converted)
    save_pretrained(model, out, _card(target, file, digest, licence, account))
    return Conversion(
        target.name,
        account,
        sum(parameter.numel() for parameter in model.parameters()),
        (digest, _digest(out / WEIGHTS)),
        _parity(target, model, out),
    )


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        found = hashlib.sha256()
        while block := stream.read(2**20):
            found.update(block)
    return found.hexdigest()


def _card(target: Target, file: Path, digest: str, licence: str, account: Account) -> Card:
    facts = {"converted from": f"`{file.name}`, sha256 `{digest}`"}
    notes: tuple[str, ...] = ()
    config = None if target.name in CLASSES else timm.get_pretrained_cfg(target.name)
    if config is not None:
        origin = config.hf_hub_id or config.origin_url or "nowhere"
        facts["published weights of this architecture"] = f"{origin}, {config.license or 'no licence stated'}"
        notes = tuple(f"Published weights: {note}." for note in config.notes or ())
    changed = (
        f"{len(account.computed)} tensors computed from the file's" if account.computed else "the numbers unchanged"
    )
    description = f"Weights of {target.name} converted by ssmvision, with {changed}."
    return Card(description=description, licence=licence, notes=notes, facts=facts)


def _place(value: Tensor) -> tuple[int, int]:
    """Where a tensor's numbers are in memory: views of it and of its copies by reference share that."""
    return value.untyped_storage().data_ptr(), int(value.storage_offset())


def _account(state: Mapping[str, Tensor], converted: Mapping[str, Tensor]) -> Account:
    names: dict[tuple[int, int], str] = {}
    for key, value in state.items():
        names.setdefault(_place(value), key)
    kept: list[str] = []
    renamed: list[tuple[str, str]] = []
    reshaped: list[str] = []
    computed: list[str] = []
    used: set[str] = set()
    for key, value in converted.items():
        same_name = key in state and _place(state[key]) == _place(value)
        old = key if same_name else names.get(_place(value))
        if old is None or state[old].numel() != value.numel():
            computed.append(key)
            used.add(old or key)
            continue
        used.add(old)
        if state[old].shape != value.shape:
            reshaped.append(key)
        elif old == key:
            kept.append(key)
        else:
            renamed.append((key, old))
    left = [key for key in state if key not in used]
    twins = _twins(left, state, converted)
    dropped = [key for key in left if key not in twins]
    return Account(tuple(kept), tuple(renamed), tuple(reshaped), tuple(computed), tuple(twins), tuple(dropped))


def _twins(left: Sequence[str], state: Mapping[str, Tensor], converted: Mapping[str, Tensor]) -> list[str]:
    alike: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
    for value in converted.values():
        alike.setdefault((value.shape, value.dtype), []).append(value)

    def has_twin(value: Tensor) -> bool:
        return any(torch.equal(value, other) for other in alike.get((value.shape, value.dtype), ()))

    return [key for key in left if has_twin(state[key])]


def _parity(target: Target, model: nn.Module, out: Path) -> Parity:
    loaded = load_pretrained(out)
    for key, value in model.state_dict().items():
        if not torch.equal(loaded.state_dict()[key], value):
            raise UserError(f"{out}: {key} does not read back as it was written; check the disk and convert again")
    shapes = _input_shapes(model)
    with torch.device("meta"):
        macs = count(target.build().eval(), *(torch.empty(shape) for shape in shapes)).macs
    if macs > MOST_MACS:
        return Parity(shapes, macs, None, 0.0)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.rand(shape, generator=generator) for shape in shapes]
    before, after = _output(model, inputs), _output(loaded, inputs)
    error, largest = float((before - after).abs().max()), float(before.abs().max())
    if error > 1e-5 * max(largest, 1.0):
        raise UserError(f"{out}: gives other results than the file (by {error:.1e}); please report this")
    return Parity(shapes, macs, error, largest)


def _input_shapes(model: nn.Module) -> tuple[tuple[int, ...], ...]:
    if isinstance(model, UMambaBot | UMambaEnc):
        first = next(module for module in model.encoder.stem.modules() if isinstance(module, nn.Conv2d | nn.Conv3d))
        size = model.fixed_input_size or tuple(2 * step for step in model.shape.divisor)
        return ((1, first.in_channels, *size),)
    config = getattr(model, "pretrained_cfg", None)
    if not config:
        return ((1, 1, 64, 64),) * 2
    patches = getattr(model, "patch_embed", None)
    size = getattr(patches, "img_size", None) or config["input_size"][1:]
    channels = next(module for module in model.modules() if isinstance(module, nn.Conv2d)).in_channels
    return ((1, int(channels), *(int(n) for n in size)),)


def _output(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    with torch.inference_mode():
        out = model(*inputs)
    return out[0] if isinstance(out, list) else out  # type: ignore[no-any-return]
