"""Bits for each layer within a budget."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ConvNet, TiedLanguageModel, images, mlp
from torch import nn

from engine import ConfigError, EngineError, create_compressor, layer_table
from engine.quantization.mixed_precision import (
    LayerSensitivity,
    assign_bits,
    propose_bits,
    scan_bits,
)


def layer(weights: int, harm: dict[int, float]) -> LayerSensitivity:
    return LayerSensitivity(("x",), weights, 1, harm)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 200),
            st.lists(st.floats(-0.1, 5) | st.just(math.inf), min_size=3, max_size=3),
        ),
        min_size=1,
        max_size=5,
    ),
    st.floats(0, 1),
)
def test_the_choice_is_the_best_of_all(layers, room):
    layers = [layer(n, dict(zip((8, 4, 2), harm, strict=True))) for n, harm in layers]
    least = sum(each.size(2) for each in layers)
    most = int(least + room * (sum(each.size(8) for each in layers) - least))
    chosen = assign_bits(layers, most)

    def total(choice):
        return sum(max(each.harm[b], 0.0) for each, b in zip(layers, choice, strict=True))

    def size(choice):
        return sum(each.size(b) for each, b in zip(layers, choice, strict=True))

    assert size(chosen) <= most
    possible = [c for c in itertools.product((8, 4, 2), repeat=len(layers)) if size(c) <= most]
    assert total(chosen) == pytest.approx(min(map(total, possible)), rel=1e-9)


def test_what_fits_nothing_is_refused():
    with pytest.raises(ValueError, match="10 bits are too few"):
        assign_bits([layer(100, {2: 0.0})], 10)


def test_many_layers_are_assigned_within_the_budget_and_near_the_bound():
    generator = torch.Generator().manual_seed(0)
    layers = []
    for _ in range(60):
        size = int(torch.randint(100, 10000, (), generator=generator))
        base = float(torch.rand((), generator=generator))
        layers.append(layer(size, {8: base * 1e-4, 4: base * 1e-2, 2: base}))
    most = sum(each.size(4) for each in layers)
    chosen = assign_bits(layers, most)
    assert sum(each.size(b) for each, b in zip(layers, chosen, strict=True)) <= most
    got = sum(each.harm[b] for each, b in zip(layers, chosen, strict=True))
    # Lagrange's bound: no choice within the budget has less harm than this.
    bound = max(
        sum(min(each.harm[b] + price * each.size(b) for b in (8, 4, 2)) for each in layers)
        - price * most
        for price in torch.logspace(-9, -2, 400).tolist()
    )
    assert bound <= got <= 1.05 * bound + 1e-9


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 4))


def by_hand(model, name, bits, x):
    """The relative change of the output when one layer alone is rounded, written out."""
    other = copy.deepcopy(model)
    weight = other.get_submodule(name).weight
    with torch.no_grad():
        top = 2 ** (bits - 1) - 1
        scale = weight.abs().amax(1, keepdim=True) / top
        weight.copy_((weight / scale).round() * scale)
        return ((other(x) - model(x)).square().sum() / model(x).square().sum()).item()


def test_the_scan_is_each_layer_alone():
    model, x = small(), torch.randn(30, 16)
    scan = scan_bits(model, batches=[x[:10], x[10:]], bits=(2, 4))
    assert [each.names for each in scan] == [("0",), ("2",)]
    assert [(each.weights, each.channels) for each in scan] == [(640, 40), (160, 4)]
    for each in scan:
        for bits in (2, 4):
            assert each.harm[bits] == pytest.approx(by_hand(model, each.names[0], bits, x), 1e-3)


def test_a_score_harms_by_how_far_it_falls_and_the_model_is_left_as_it_was():
    model = ConvNet()
    model.bn1.eval()
    before = copy.deepcopy(model.state_dict())
    seen = []

    def evaluate(model):
        seen.append(model.training)
        return -float(model.conv1.weight.std())

    scan = scan_bits(model, evaluate, bits=(8, 2))
    assert [each.names[0] for each in scan] == ["conv1", "conv2", "fc"]
    assert scan[1].harm == scan[2].harm == {8: 0, 2: 0}
    assert scan[0].harm[2] != 0
    assert not any(seen[1:])
    assert model.training
    assert not model.bn1.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_score_that_is_not_a_number_is_infinite_harm_and_weights_come_back_after_an_error():
    model = small()
    before = copy.deepcopy(model.state_dict())
    scores = iter([1.0, math.nan, 0.5])

    def evaluate(model):
        return next(scores)

    with pytest.raises((StopIteration, RuntimeError)):
        scan_bits(model, evaluate, bits=(8, 2))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    scores = iter([1.0, math.nan, 0.5, 1.0, 1.0])
    scan = scan_bits(model, evaluate, bits=(8, 2))
    assert scan[0].harm == {8: math.inf, 2: 0.5}


def test_the_proposal_fits_its_budget():
    model, x = small(), torch.randn(30, 16)
    for budget in (0.25, 0.2, 0.15):
        entries = propose_bits(model, batches=[x], budget=budget)
        bits = {name: e["quant_bits"] for e in entries for name in e["op_names"]}
        assert set(bits) == {"0", "2"}
        size = 640 * bits["0"] + 160 * bits["2"] + 32 * 44
        assert size <= budget * 32 * 800
    everything = propose_bits(model, batches=[x], budget=1.0)
    assert everything == [{"op_names": ["0", "2"], "quant_types": ["weight"], "quant_bits": 8}]


def test_a_proposal_is_a_configuration():
    model = ConvNet()
    entries = propose_bits(model, batches=[images()], budget=0.2, activation_bits=8)
    quantizer = create_compressor(model, {"compressor": "ptq", "config_list": entries})
    quantizer.compress()
    quantizer.calibrate([images()])
    table = layer_table(model, quantizer)
    rows = [row for row in table.rows if row.type != "BatchNorm2d"]
    assert {row.activation_bits for row in rows} == {8}
    channels = 6 + 10 + 4
    # What a file takes beside the budget is a zero point for each scale, and full bytes.
    assert sum(r.bytes_after for r in rows) <= 0.2 * sum(r.bytes_before for r in rows) + (
        4 * channels + len(rows)
    )


def test_a_shared_weight_is_one_choice_for_all_its_layers():
    model = TiedLanguageModel()
    entries = propose_bits(model, batches=[torch.tensor([[1, 2, 3]])], budget=0.3)
    names = [name for entry in entries for name in entry["op_names"]]
    assert sorted(names) == ["decoder", "embedding", "hidden"]
    (of_both,) = [e for e in entries if "decoder" in e["op_names"]]
    assert "embedding" in of_both["op_names"]


def test_layers_may_be_left_out():
    entries = propose_bits(
        small(),
        batches=[torch.randn(3, 16)],
        budget=1.0,
        config_list=[{"op_types": ["Linear"]}, {"op_names": ["2"], "exclude": True}],
    )
    assert [entry["op_names"] for entry in entries] == [["0"]]


X = [torch.randn(3, 16)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": X, "budget": 0.01}, r"0.01 of the float32 size cannot be met: with 2 bits"),
        ({"batches": X, "budget": math.nan}, "cannot be met"),
        ({"budget": 0.2}, "give either evaluate, a function of the model, or batches"),
        ({"evaluate": len, "batches": X, "budget": 0.2}, "give either evaluate"),
        ({"batches": [], "budget": 0.2}, "a comparison of outputs got no batches"),
        ({"batches": X, "budget": 0.2, "bits": (8, 1)}, r"bits are \[8, 1\]; needed: whole"),
        ({"batches": X, "budget": 0.2, "bits": ()}, r"bits are \[\]"),
        ({"batches": X, "budget": 0.2, "bits": (4.0,)}, r"bits are \[4.0\]"),
        ({"evaluate": lambda m: math.nan, "budget": 0.2}, "evaluate returned nan"),
        ({"batches": [X[0] * math.inf], "budget": 0.2}, "output of the model as it is is NaN"),
    ],
)
def test_what_cannot_be_proposed_says_why(arguments, message):
    with pytest.raises(EngineError, match=message):
        propose_bits(small(), **arguments)


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match='the model has no layer "fc9"'):
        propose_bits(mlp(), batches=X, budget=0.2, config_list=[{"op_names": ["fc9"]}])
