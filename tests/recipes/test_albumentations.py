from __future__ import annotations

from importlib import metadata

import numpy as np
import pytest
import torch

from ssmvision.recipes.data import albumentations as adapter


def pipeline(**kwargs: object) -> adapter.Pipeline:
    return adapter.Pipeline(adapter.flip_rotate((0, 1), 30.0, 0.8), **kwargs)


def test_masks_and_pairs_change_with_the_image() -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (24, 20))
    image = np.repeat(mask[..., None], 2, -1).astype(np.float32)
    flips = adapter.Pipeline(adapter.flip_rotate((0, 1), 0.0, 0.0), pairs=["other"])
    moved = 0
    for seed in range(6):
        result = flips(image, [mask], {"other": image * 2}, seed=seed)
        assert result["image"].shape == (2, 24, 20)
        assert torch.equal(result["image"][0].long(), result["masks"][0])
        assert torch.equal(result["other"], result["image"] * 2)
        moved += not torch.equal(result["image"][0].long(), torch.from_numpy(mask))
    assert moved >= 2


def test_seed_repeats_a_draw() -> None:
    image = np.random.default_rng(0).random((16, 16, 1), np.float32)
    assert torch.equal(pipeline()(image, seed=3)["image"], pipeline()(image, seed=3)["image"])
    assert any(
        not torch.equal(pipeline()(image, seed=3)["image"], pipeline()(image, seed=s)["image"]) for s in range(4, 8)
    )


def test_wrong_shapes_and_pairs() -> None:
    image = np.zeros((8, 8, 1), np.float32)
    with pytest.raises(ValueError, match=r"masks have shapes \[\(7, 8\)\], expected \(8, 8\)"):
        pipeline()(image, [np.zeros((7, 8), int)])
    with pytest.raises(ValueError, match=r"pairs are \[\], the pipeline was built for \['ir'\]"):
        pipeline(pairs=["ir"])(image)
    with pytest.raises(ValueError, match=r"image has shape \(8, 8\), expected \(H, W, C\)"):
        pipeline()(image[..., 0])


def test_the_agpl_successor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.5.1" if name == "albumentationsx" else real(name))
    with pytest.raises(ImportError, match=r"albumentationsx 2\.5\.1 \(AGPL-3\.0\).*pip uninstall albumentationsx"):
        adapter.refuse_successor()
