"""Layouts: where the published hybrids have which mixer, and the blocks that they need."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssmvision.layers.layouts import layout_names, plan_blocks
from ssmvision.layers.mixer_block import MixerBlock, ParallelMixers
from ssmvision.models import HierarchicalSSM, IsotropicSSM


def small(**settings: Any) -> IsotropicSSM:
    torch.manual_seed(0)
    options = {"patch_size": 4, "embed_dim": 8, "depth": 6, "mixer": "s4nd", "mixer_args": {"d_state": 2}}
    return IsotropicSSM(16, 1, 3, **(options | settings))


def test_plans_of_the_papers() -> None:
    jamba = plan_blocks("jamba", (16,))[0]
    assert [i for i, block in enumerate(jamba) if block.mixer == "attention"] == [4, 12]
    assert [block.channel_mixer for block in jamba] == [None, "moe"] * 8
    assert [i for i, block in enumerate(plan_blocks("jamba", (6,))[0]) if block.mixer] == [3]
    assert [i for i, block in enumerate(plan_blocks("zamba", (18,))[0]) if block.shared] == [4, 10, 16]
    assert [[b.shared for b in stage] for stage in plan_blocks("zamba", (1, 1, 2, 1))] == [
        *([False], [False], [False, True], [True])
    ]
    assert [block.mixer for block in plan_blocks("samba", (4,))[0]] == [None, "window_attention"] * 2
    beside = [block.beside for block in plan_blocks("hymba", (5,))[0]]
    assert beside == ["attention", "window_attention", "attention", "window_attention", "attention"]
    late = [[block.mixer for block in stage] for stage in plan_blocks("mambavision", (2, 2, 4, 3))]
    assert late == [[None] * 2, [None] * 2, [None, None, "attention", "attention"], [None, None, "attention"]]
    assert not any(block.added() for stage in plan_blocks("uniform", (2, 3)) for block in stage)
    for name in layout_names():
        assert [len(stage) for stage in plan_blocks(name, (2, 1, 9, 2))] == [2, 1, 9, 2]


@pytest.mark.parametrize("name", layout_names())
def test_every_layout_trains_in_both_backbones(name: str) -> None:
    torch.manual_seed(0)
    stages: dict[str, Any] = {"depths": (1, 1, 2, 2), "dims": (8, 8, 8, 8), "mixer_args": {"d_state": 2}}
    for model, size in ((small(layout=name), 16), (HierarchicalSSM(32, 1, 3, layout=name, **stages), 40)):
        results = []
        for recompute in (False, True):
            model.set_grad_checkpointing(recompute)
            model.zero_grad()
            model(torch.ones(2, 1, size, size).cumsum(-1) / size).square().sum().backward()
            results.append([parameter.grad for parameter in model.parameters()])
        for plain, recomputed in zip(*results, strict=True):
            assert plain is not None
            torch.testing.assert_close(recomputed, plain)


def test_parallel_mixers_are_hymbas_sum() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    both = ParallelMixers(6, first, second).double()
    with torch.no_grad():
        both.norm1.weight.uniform_()
        both.norm2.weight.uniform_()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    wanted = [(F.layer_norm(part(x), (6,)) * norm.weight) for part, norm in ((first, both.norm1), (second, both.norm2))]
    torch.testing.assert_close(both(x), (wanted[0] + wanted[1]) @ both.proj.weight.T + both.proj.bias)


def test_zambas_attention_is_one_and_sees_where_the_stage_began() -> None:
    model = small(layout="zamba", depth=12, pos_embed="none")
    stage = model.stages[0]
    assert sum("shared.attention" in name for name in model.state_dict()) == 4
    takers = [i for i, block in enumerate(stage.blocks) if block.from_shared is not None]
    assert takers == [4, 10]
    seen: list[torch.Tensor] = []
    stage.shared.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    image = torch.randn(1, 1, 16, 16)
    model(image)
    torch.testing.assert_close(seen, [model.embed(image)] * 2)
    model.prune_intermediate_layers([3])
    assert not any("shared" in name for name in model.state_dict())


def test_what_contradicts_is_refused() -> None:
    for settings, words in (
        ({"layout": "jambo"}, "layout='jambo' is unknown; choose from uniform, jamba"),
        ({"layout_args": {"moe": {}}}, "options for 'moe', but layout 'uniform' adds no mixers"),
        ({"layout": "jamba", "layout_args": {"mlp": {}}}, "but layout 'jamba' adds attention, moe"),
        ({"layout": "hymba", "mixer": "none", "mixer_args": {}}, "nothing for this layout to add attention to"),
    ):
        with pytest.raises(ValueError, match=words):
            small(**settings)
    experts = small(layout="jamba", layout_args={"moe": {"experts": 3}})
    assert [p.shape[0] for name, p in experts.named_parameters() if name.endswith("channel_mixer.weight1")] == [3] * 3


def test_none_leaves_branches_out() -> None:
    block = MixerBlock(4, 2, "none", "none")
    x = torch.randn(2, 3, 3, 4)
    assert list(block.parameters()) == []
    torch.testing.assert_close(block(x), x)
