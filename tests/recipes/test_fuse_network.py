"""The network as a method: weights from files, large slices in tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ssmvision.errors import UserError
from ssmvision.models.fusion_mamba import FusionMamba
from ssmvision.recipes.fusion.config import ModelConfig
from ssmvision.recipes.fusion.fuse_network import NetworkFusion, load_checkpoint, open_network
from ssmvision.recipes.fusion.network import build_network
from ssmvision.recipes.fusion.tiling import fused_in_tiles
from ssmvision.recipes.fusion.weights import FusionCard, save_model

SMALL = {"depths": (1, 2), "depths_decoder": (2, 1), "dims": (8, 16)}
CPU = torch.device("cpu")


def small(**settings):
    torch.manual_seed(0)
    network = FusionMamba(**{**SMALL, **settings})
    # The smallest change that makes every tensor matter.
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    if network.faithful:
        for name, mask in network.named_parameters():
            if name.endswith("base_mask"):
                mask.data.fill_(1)
    return network.eval()


def slices(count, height, width, seed=0):
    a, b = np.random.default_rng(seed).random((2, count, height, width), dtype=np.float32)
    return a, b


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gate": "official"},
        {"d_state": 4, "fusion_d_state": 8},
        {"depths": (1, 1, 3), "depths_decoder": (3, 1, 1), "dims": (8, 16, 32)},
    ],
)
def test_architecture_is_read_off_the_tensors(tmp_path, settings):
    network = small(**settings)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    loaded = load_checkpoint(tmp_path / "w.safetensors")
    assert loaded.gate == network.gate
    a, b = (torch.from_numpy(x)[:, None] for x in slices(1, 19, 33))
    with torch.no_grad():
        torch.testing.assert_close(loaded(a, b), network(a, b))


def test_weights_stored_in_16_bits_run_in_32(tmp_path):
    save_file({key: value.half() for key, value in small().state_dict().items()}, tmp_path / "w.safetensors")
    assert {value.dtype for value in load_checkpoint(tmp_path / "w.safetensors").parameters()} == {torch.float32}


@pytest.mark.parametrize("wrapped", [False, True])
def test_published_checkpoints_take_any_size_and_give_the_published_result(tmp_path, wrapped):
    network = small(faithful=True)
    state = {f"module.{key}": value for key, value in network.state_dict().items()} if wrapped else network.state_dict()
    torch.save({"model": state, "epoch": 2} if wrapped else state, tmp_path / "fusion.pth")
    loaded = open_network(tmp_path / "fusion.pth")
    a, b = (torch.from_numpy(x)[:, None] for x in slices(1, 16, 32))
    with torch.no_grad():
        torch.testing.assert_close(loaded(a, b), network(a, b))
        assert loaded(a[..., :15, :31], b[..., :15, :31]).shape == (1, 1, 15, 31)


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("by_file", [False, True])
def test_models_of_a_training_open_with_their_card(tmp_path, faithful, by_file):
    config = ModelConfig(depths=(1, 1), depths_decoder=(1, 1), dims=(8, 16), d_state=16, faithful=faithful)
    network = build_network(config).eval()
    path = save_model(tmp_path, network, FusionCard(config))
    loaded = open_network(path if by_file else tmp_path)
    a, b = (torch.from_numpy(x)[:, None] for x in slices(1, 19, 33))
    with torch.no_grad():
        torch.testing.assert_close(loaded(a, b), network(a, b))
    fused = NetworkFusion(loaded, CPU, tile=64)(*slices(1, 90, 33))
    assert fused.shape == (1, 90, 33)


def test_without_shipped_weights_the_way_out_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("ssmvision.recipes.fusion.fuse_network.files", lambda package: tmp_path)
    with pytest.raises(UserError, match=r"no weights ship .* pass --weights FILE, or --method average"):
        open_network(None)


def nonfinite(path):
    state = small().state_dict()
    state["final_conv.bias"][:] = float("nan")
    save_file(state, path)


def incomplete(path):
    state = small().state_dict()
    del state["final_conv.bias"]
    save_file(state, path)


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("w.safetensors", lambda path: None, "no such file"),
        ("w.safetensors", lambda path: path.write_bytes(b"junk"), "w.safetensors"),
        ("w.safetensors", lambda path: save_file({"x": torch.zeros(3)}, path), "patch_embed1.proj.weight' is missing"),
        ("w.safetensors", incomplete, "no weights of FusionMamba .*final_conv.bias"),
        ("w.safetensors", nonfinite, "non-finite values in final_conv.bias"),
        ("w.pth", lambda path: torch.save({"a": Evil()}, path), "w.pth"),
    ],
)
def test_other_files_are_refused(tmp_path, capsys, name, make, message):
    make(tmp_path / name)
    with pytest.raises(UserError, match=message):
        open_network(tmp_path / name)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 40), (33, 70)])
def test_slices_go_together_or_alone_with_one_result(height, width, monkeypatch):
    method = NetworkFusion(small(), CPU)
    a, b = slices(3, height, width)
    together = method(a, b)
    assert together.shape == a.shape
    assert together.dtype == np.float32
    monkeypatch.setattr("ssmvision.recipes.fusion.fuse_network._PIXELS_AT_ONCE", 1)
    np.testing.assert_allclose(method(a, b), together, atol=1e-5)


class Local(nn.Module):
    """Looks one pixel far."""

    stride = 8

    def forward(self, x1, x2):
        return nn.functional.avg_pool2d(x1 + 2 * x2, 3, 1, 1)


@pytest.mark.parametrize("size", [(100, 170), (64, 65), (7, 200)])
def test_large_slices_in_tiles_are_as_untiled(size):
    a, b = slices(2, *size)
    whole = NetworkFusion(Local(), CPU, tile=0)(a, b)
    np.testing.assert_allclose(NetworkFusion(Local(), CPU, tile=64)(a, b), whole, atol=1e-6)


def test_tiles_of_the_network_have_no_seams():
    # It also knows a whole image by its pooled gates, which differ from tile to tile.
    network = small(dims=(16, 32), depths=(2, 2), depths_decoder=(2, 2))
    y, x = np.mgrid[:128, :192].astype(np.float32)
    a, b = (0.5 + 0.4 * np.sin(x / 15) * np.cos(y / 11))[None], (x / 192)[None]
    whole = NetworkFusion(network, CPU, tile=0)(a, b)
    off = np.abs(NetworkFusion(network, CPU, tile=96)(a, b) - whole)
    assert 0 < off.mean() < 2e-4 * np.ptp(whole)
    assert off.max() < 0.01 * np.ptp(whole)
    with torch.no_grad():
        images = [torch.from_numpy(image)[None] for image in (a, b)]
        plain = fused_in_tiles(network, *images, 96, 0, 1, 8)[0].numpy()
    assert off.max() < 0.5 * np.abs(plain - whole).max()


def test_a_tile_too_small_and_memory_too_small_are_told():
    with pytest.raises(UserError, match="--tile is 16; this network needs at least 32 pixels, or 0"):
        NetworkFusion(Local(), CPU, tile=16)

    class Hungry(Local):
        def forward(self, x1, x2):
            raise torch.OutOfMemoryError("no")

    a, b = slices(1, 100, 100)
    with pytest.raises(UserError, match=r"too little memory for 100x100 pixels in tiles of 1024; pass --tile 50"):
        NetworkFusion(Hungry(), CPU)(a, b)
