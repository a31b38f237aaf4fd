"""Masks that disagree are reported, and reconciled to what all layers remove."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Grouped, Residual
from torch import Tensor, nn

from engine import CheckpointError, EngineError, apply_masks
from engine.algorithms import L1FilterPruner
from engine.analysis import GroupDependency, fix_mask_conflict, mask_conflicts
from engine.speedup import speedup

X = torch.randn(1, 3, 9, 9)


def filters(module: nn.Module, *removed: int) -> dict[str, Tensor | None]:
    """Return the masks of a layer that removes these filters."""
    weight, bias = torch.ones_like(module.weight).bool(), torch.ones(len(module.weight)).bool()
    weight[list(removed)] = False
    bias[list(removed)] = False
    return {"weight": weight, "bias": bias if module.bias is not None else None}


def removed(masks: dict, layer: str) -> list[int]:
    gone = (~masks[layer]["weight"].flatten(1).any(dim=1)).nonzero().flatten().tolist()
    if masks[layer]["bias"] is not None:
        assert (~masks[layer]["bias"]).nonzero().flatten().tolist() == gone
    return gone


def test_what_one_of_two_added_layers_keeps_is_in_conflict() -> None:
    model = Residual()
    masks = {
        "stem": filters(model.stem, 0, 1, 2),
        "a": filters(model.a, 0),
        "b": filters(model.b, 1, 2, 5, 6),
    }
    found = mask_conflicts(model, masks, X)
    (conflict,) = found.sets
    assert [layer.name for layer in conflict.layers] == ["stem", "b"]
    assert conflict.layers[0].removed == (0, 1, 2)
    assert conflict.layers[1].removed == (1, 2, 5, 6)
    assert conflict.layers[0].agreed == conflict.layers[1].agreed == (1, 2)
    assert (conflict.channels, conflict.disputed, conflict.removed_by_all) == (8, 3, 2)
    fixed = fix_mask_conflict(masks, model, X)
    assert removed(fixed, "stem") == removed(fixed, "b") == [1, 2]
    assert removed(fixed, "a") == [0]
    assert removed(masks, "stem") == [0, 1, 2]
    assert "sets that disagree: 1, about 3 channels" in str(found)


def test_a_layer_without_a_mask_keeps_everything() -> None:
    model = Residual()
    masks = {"stem": filters(model.stem, 3)}
    assert mask_conflicts(model, masks, X).sets[0].layers[1].removed == ()
    assert removed(fix_mask_conflict(masks, model, X), "stem") == []


def test_masks_that_agree_are_no_conflict_and_stay() -> None:
    model = Residual()
    masks = {name: filters(getattr(model, name), 2, 4) for name in ("stem", "a", "b")}
    found = mask_conflicts(model, masks, X)
    assert not found
    assert str(found).startswith("no conflicts")
    fixed = fix_mask_conflict(masks, model, X)
    assert all(torch.equal(fixed[k]["weight"], masks[k]["weight"]) for k in masks)


def test_grouped_convolutions_lose_as_many_filters_in_each_group() -> None:
    model = Grouped()
    # Two inputs and three outputs in each of four groups. The second filter goes in all of them,
    # others in some groups only.
    masks = {
        "first": filters(model.first, 1, 3, 5, 7, 0),
        "grouped": filters(model.grouped, 1, 4, 7, 10, 0, 5),
    }
    fixed = fix_mask_conflict(masks, model, X)
    assert removed(fixed, "first") == [1, 3, 5, 7]
    assert removed(fixed, "grouped") == [1, 4, 7, 10]
    assert {c.layers[0].name: c.disputed for c in mask_conflicts(model, masks, X).sets} == {
        "first": 1,
        "grouped": 2,
    }


def test_a_depthwise_convolution_follows_unless_it_is_masked_itself() -> None:
    model = Grouped()
    masks = {"grouped": filters(model.grouped, 1, 4, 7, 10)}
    assert removed(fix_mask_conflict(masks, model, X), "grouped") == [1, 4, 7, 10]
    masks["depthwise"] = filters(model.depthwise, 0, 3, 6, 9)
    fixed = fix_mask_conflict(masks, model, X)
    assert removed(fixed, "grouped") == removed(fixed, "depthwise") == []


def test_a_mask_of_the_norm_behind_a_layer_is_one_of_the_layer() -> None:
    model = Residual()
    norm = {"weight": torch.ones(8).bool(), "bias": torch.ones(8).bool()}
    for mask in norm.values():
        mask[[1, 2]] = False
    masks = {"norm": norm, "b": filters(model.b, 2, 3)}
    (conflict,) = mask_conflicts(model, masks, X).sets
    assert [layer.removed for layer in conflict.layers] == [(1, 2), (2, 3)]
    fixed = fix_mask_conflict(masks, model, X)
    assert fixed["norm"]["weight"].tolist() == fixed["norm"]["bias"].tolist()
    assert (~fixed["norm"]["weight"]).nonzero().flatten().tolist() == [2]
    assert removed(fixed, "b") == [2]


def test_fine_grained_masks_stay_and_float_masks_stay_float() -> None:
    model = Residual()
    speckled = torch.ones_like(model.b.weight)
    speckled[0] = 0
    speckled[1, 0] = 0
    masks = {
        "stem": {"weight": filters(model.stem, 4)["weight"].double(), "bias": None},
        "b": {"weight": speckled, "bias": None},
    }
    fixed = fix_mask_conflict(masks, model, X)
    assert torch.equal(fixed["b"]["weight"], speckled)
    assert fixed["stem"]["weight"].dtype == torch.float64
    assert fixed["stem"]["bias"] is None
    assert bool((fixed["stem"]["weight"] == 1).all())


def test_layers_that_share_a_weight_are_masked_together() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(3, 8, 1, bias=False)
            self.b.weight = self.a.weight
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.a(x) + self.b(x * 2))

    model = Shared()
    masks = {"a": filters(model.a, 1, 6)}
    assert not mask_conflicts(model, masks, X)
    assert removed(fix_mask_conflict(masks, model, X), "a") == [1, 6]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_after_the_fix_nothing_is_disputed_and_nothing_new_is_removed(data: st.DataObject) -> None:
    model = data.draw(st.sampled_from([Residual, Grouped]))()
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and data.draw(st.booleans()):
            chosen = data.draw(st.sets(st.integers(0, module.out_channels - 1)))
            masks[name] = filters(module, *chosen)
    fixed = fix_mask_conflict(masks, model, X)
    assert not mask_conflicts(model, fixed, X)
    groups = GroupDependency(model, X).dependency_sets
    for name in masks:
        assert set(removed(fixed, name)) <= set(removed(masks, name))
        if name != "last":  # its filters are the model's outputs, which nothing binds
            assert len(removed(fixed, name)) % groups[name] == 0


CHOSEN = [
    (Residual, {"stem": (0, 1, 2, 7), "a": (0, 1, 5), "b": (1, 2, 6)}),
    (
        Grouped,
        {"first": (0, 2, 4, 6, 7), "grouped": (1, 4, 7, 10, 0), "depthwise": (1, 4, 7, 10, 3)},
    ),
]


@pytest.mark.parametrize(("make", "chosen"), CHOSEN)
def test_speedup_removes_exactly_what_the_fixed_masks_do(make, chosen) -> None:
    model = make().eval()
    masks = {name: filters(getattr(model, name), *numbers) for name, numbers in chosen.items()}
    fixed = fix_mask_conflict(masks, model, X)
    apply_masks(model, fixed)
    speedup(model, X)
    modules = dict(model.named_modules())
    for name in masks:
        before = len(fixed[name]["weight"])
        assert modules[name].out_channels == before - len(removed(fixed, name)) < before


def test_a_mask_file_is_read_and_others_are_refused(tmp_path) -> None:
    model = Residual()
    pruner = L1FilterPruner(model, [{"sparsity": 0.5, "op_types": ["Conv2d"]}])
    pruner.compress()
    pruner.export_model(tmp_path / "m.pth", tmp_path / "masks.pth")
    fixed = fix_mask_conflict(tmp_path / "masks.pth", model, X)
    assert removed(fixed, "stem") == removed(fixed, "b")
    with pytest.raises(CheckpointError, match="there is no file"):
        mask_conflicts(model, tmp_path / "none.pth", X)
    with pytest.raises(CheckpointError, match="mask \\(4, 3, 3, 3\\)"):
        mask_conflicts(model, {"stem": {"weight": torch.ones(4, 3, 3, 3)}}, X)
    with pytest.raises(EngineError, match="needs model and dummy_input"):
        fix_mask_conflict(tmp_path / "masks.pth")
