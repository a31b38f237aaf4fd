"""Which layers get what, and every mistake at once with the nearest right name."""

import re

import pytest
import torch
from models import ConvNet, TiedLanguageModel, mlp, pruner_plugins, settings_of
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from engine import ConfigError
from engine.algorithms import AGPPruner, LevelPruner, SlimPruner
from engine.attach.selection import select_layers
from engine.pruning import FilterPruner


def chosen(model, *entries, **options):
    return [(s.name, s.config.get("sparsity")) for s in select_layers(model, entries, **options)]


def messages(model, *entries, **options):
    with pytest.raises(ConfigError) as caught:
        select_layers(model, entries, **options)
    return caught.value


DEFAULT = {"sparsity": 0.5, "op_types": ["default"]}


def test_layers_come_in_the_order_of_the_model():
    assert chosen(ConvNet(), {"sparsity": 0.1, "op_types": ["Linear", "Conv2d"]}) == [
        ("conv1", 0.1),
        ("conv2", 0.1),
        ("fc", 0.1),
    ]


def test_a_later_entry_replaces_an_earlier_one_whole():
    entries = [
        {"sparsity": 0.5, "end_epoch": 3, "op_types": ["Conv2d"]},
        {"sparsity": 0.2, "op_names": ["conv2"]},
    ]
    first, second = select_layers(ConvNet(), entries)
    assert first.config == entries[0]
    assert second.config == entries[1]
    assert "end_epoch" not in second.config
    assert (first.place, second.place) == (0, 1)


def test_the_order_of_entries_decides():
    by_name = {"sparsity": 0.2, "op_names": ["conv2"]}
    assert chosen(ConvNet(), by_name, DEFAULT)[1] == ("conv2", 0.5)
    assert chosen(ConvNet(), DEFAULT, by_name)[1] == ("conv2", 0.2)


def test_exclude_takes_a_layer_out_and_a_later_entry_takes_it_in_again():
    out = {"exclude": True, "op_names": ["conv1", "fc"]}
    assert chosen(ConvNet(), DEFAULT, out) == [("conv2", 0.5)]
    back = {"sparsity": 0.1, "op_names": ["fc"]}
    assert chosen(ConvNet(), DEFAULT, out, back) == [("conv2", 0.5), ("fc", 0.1)]
    assert chosen(ConvNet(), out, DEFAULT) == [("conv1", 0.5), ("conv2", 0.5), ("fc", 0.5)]


def test_exclude_false_is_no_exclusion():
    entry = {"sparsity": 0.3, "exclude": False, "op_names": ["fc"]}
    assert chosen(ConvNet(), entry) == [("fc", 0.3)]


def test_default_is_what_the_algorithm_says():
    assert chosen(ConvNet(), DEFAULT, default_types=["BatchNorm2d"]) == [("bn1", 0.5), ("bn2", 0.5)]


def test_default_of_level_is_every_weighted_layer_of_nni():
    layers = [
        nn.Conv1d(1, 1, 1),
        nn.Conv2d(1, 1, 1),
        nn.Conv3d(1, 1, 1),
        nn.ConvTranspose1d(1, 1, 1),
        nn.ConvTranspose2d(1, 1, 1),
        nn.ConvTranspose3d(1, 1, 1),
        nn.Linear(1, 1),
        nn.Bilinear(1, 1, 1),
        nn.PReLU(),
        nn.Embedding(1, 1),
        nn.EmbeddingBag(1, 1),
    ]
    others = [nn.BatchNorm2d(1), nn.ReLU(), nn.LayerNorm(1)]
    pruner = LevelPruner(nn.Sequential(*layers, *others), [DEFAULT])
    assert [w.module for w in pruner.get_modules_wrapper()] == layers


def test_types_and_names_must_both_match():
    entry = {"sparsity": 0.5, "op_types": ["Conv2d"], "op_names": ["conv1", "fc"]}
    assert chosen(ConvNet(), entry) == [("conv1", 0.5)]


def test_no_types_means_any_type():
    assert chosen(ConvNet(), {"sparsity": 0.5, "op_names": ["bn1", "fc"]}) == [
        ("bn1", 0.5),
        ("fc", 0.5),
    ]


def test_a_type_selects_its_subclasses():
    class Mine(nn.Linear):
        pass

    model = nn.Sequential(Mine(2, 2), nn.Linear(2, 2), nn.MultiheadAttention(2, 1))
    assert [name for name, _ in chosen(model, {"op_types": ["Linear"]})] == ["0", "1", "2.out_proj"]
    assert [name for name, _ in chosen(model, {"op_types": ["Mine"]})] == ["0"]


def test_any_name_of_a_shared_module_selects_it_under_its_first():
    layer = nn.Linear(2, 2)
    model = nn.ModuleDict({"first": layer, "second": layer, "third": nn.Linear(2, 2)})
    assert chosen(model, {"sparsity": 0.5, "op_names": ["second"]}) == [("first", 0.5)]
    both = [{"sparsity": 0.5, "op_names": ["first"]}, {"sparsity": 0.1, "op_names": ["second"]}]
    assert chosen(model, *both) == [("first", 0.1)]


def test_the_root_is_a_layer_like_any_other():
    assert chosen(nn.Linear(2, 2), DEFAULT) == [("", 0.5)]


def test_an_unknown_name_with_the_nearest_ones():
    error = messages(ConvNet(), {"sparsity": 0.5, "op_names": ["con1", "fc"]})
    (problem,) = error.problems
    assert problem.pointer == "/config_list/0/op_names/0"
    assert problem.message == 'the model has no layer "con1"'
    assert problem.suggestion == "conv1"
    assert "conv1" in problem.allowed
    assert "conv2" in problem.allowed


def test_an_unknown_type_with_the_nearest_one():
    error = messages(ConvNet(), {"sparsity": 0.5, "op_types": ["conv2d"]})
    assert str(error) == (
        "config_list: 1 problem\n"
        "\n"
        "/config_list/0/op_types/0\n"
        '  the model has no layer of type "conv2d"\n'
        "  it has: BatchNorm2d, Conv2d, ConvNet, Linear, ReLU\n"
        '  did you mean "Conv2d"?'
    )


def test_an_entry_that_matches_nothing():
    error = messages(ConvNet(), {"sparsity": 0.5, "op_types": ["Linear"], "op_names": ["conv1"]})
    (problem,) = error.problems
    assert problem.pointer == "/config_list/0"
    assert problem.message == "this entry matches no layer of the model"
    assert "2 Conv2d" in problem.allowed


def test_default_may_name_types_that_the_model_lacks_but_not_all():
    assert chosen(mlp(), DEFAULT) == [("0", 0.5), ("2", 0.5)]
    error = messages(nn.Sequential(nn.ReLU()), DEFAULT)
    assert error.problems[0].message == "this entry matches no layer of the model"


def test_a_layer_without_weight_names_those_inside_it():
    error = messages(
        nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU()), {"op_names": ["0", "1"]}
    )
    (problem,) = error.problems
    assert problem.message == (
        'layer "0" (Sequential) has no weight of its own; inside it are: 0.0 (and 1 more layers)'
    )


def test_a_layer_whose_weight_is_not_needed():
    assert chosen(ConvNet(), {"op_types": ["ReLU"]}, needs_weight=lambda entry: False) == [
        ("relu1", None)
    ]


def test_a_recurrent_layer_has_no_single_weight():
    error = messages(nn.Sequential(nn.LSTM(2, 2)), {"op_types": ["LSTM"]})
    assert error.problems[0].message == 'layer "0" (LSTM) has no weight of its own'


def test_a_lazy_layer_asks_for_one_batch():
    model = nn.Sequential(nn.LazyLinear(3))
    error = messages(model, DEFAULT)
    assert "has no shape yet; run one batch through the model first" in error.problems[0].message
    model(torch.randn(2, 5))
    assert chosen(model, DEFAULT) == [("0", 0.5)]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("computed", "plain"),
    [
        (parametrizations.weight_norm, "remove_parametrizations"),
        (parametrizations.spectral_norm, "remove_parametrizations"),
        (parametrizations.orthogonal, "remove_parametrizations"),
        (torch.nn.utils.weight_norm, "remove_weight_norm"),
        (torch.nn.utils.spectral_norm, "remove_spectral_norm"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "prune.remove"),
    ],
)
def test_a_layer_whose_weight_is_computed_says_how_to_go_on(computed, plain):
    layer = computed(nn.Linear(4, 4))
    (problem,) = messages(nn.Sequential(layer), DEFAULT).problems
    call = re.search(r"; (?:torch\.nn\.utils\.)?(\S+)\((layer[^)]*)\) first", problem.message)
    assert call is not None
    assert call[1] == plain
    names = {"layer": layer, "prune": prune, **vars(torch.nn.utils), **vars(parametrize)}
    eval(f"{call[1]}({call[2]})", names)  # what it says can be done, and helps
    assert chosen(nn.Sequential(layer), DEFAULT) == [("0", 0.5)]


def test_a_weight_that_is_no_floating_point_number():
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    error = messages(nn.Sequential(layer), DEFAULT)
    assert "is torch.int8, not floating point" in error.problems[0].message


def test_an_excluded_layer_needs_no_weight():
    entries = [DEFAULT, {"exclude": True, "op_types": ["ReLU"]}]
    assert [name for name, _ in chosen(ConvNet(), *entries)] == ["conv1", "conv2", "fc"]


def test_all_problems_at_once_in_order():
    error = messages(
        ConvNet(),
        {"op_names": ["fcc", "relu1"]},
        {"op_types": ["Lineer"]},
        {"op_types": ["Linear"], "op_names": ["conv1"]},
    )
    assert [problem.pointer for problem in error.problems] == [
        "/config_list/0/op_names/0",
        "/config_list/1/op_types/0",
        "/config_list/2",
        "/config_list/0",
    ]


def test_a_constructor_reports_the_same_and_leaves_the_model_alone():
    model = ConvNet()
    before = dict(vars(model))
    with pytest.raises(ConfigError) as caught:
        LevelPruner(model, [{"sparsity": 0.5, "op_names": ["con1"]}])
    assert caught.value.source == "level"
    assert vars(model) == before


def test_a_problem_can_carry_the_line_of_a_file():
    with pytest.raises(ConfigError, match=r"/compression/config_list/0   \(line 7\)"):
        select_layers(
            ConvNet(),
            [{"op_types": ["Linear"], "op_names": ["conv1"]}],
            pointer="/compression/config_list",
            line=lambda pointer: 7,
        )


def test_tied_layers_are_both_there():
    assert [name for name, _ in chosen(TiedLanguageModel(), DEFAULT)] == [
        "embedding",
        "hidden",
        "decoder",
    ]


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    "plugin",
    [p for p in pruner_plugins("provider") if issubclass(p.load(), FilterPruner)],
    ids=lambda plugin: plugin.name,
)
def test_a_layer_that_the_algorithm_cannot_work_on_is_refused_when_it_is_made(plugin):
    with pytest.raises(ConfigError) as caught:
        plugin.load()(nn.Sequential(Odd()), **settings_of(plugin, op_types=["Odd"]))
    (problem,) = caught.value.problems
    assert problem.pointer == "/config_list/0"
    assert problem.message.startswith('layer "0": Odd has no filters that can be ranked')


def test_slim_refuses_layers_without_a_scale_per_channel():
    with pytest.raises(ConfigError, match='layer "fc": Linear has no scale per channel'):
        SlimPruner(ConvNet(), [{"sparsity": 0.5, "op_names": ["fc"]}])


def test_a_schedule_refuses_what_its_pruner_refuses():
    entries = [{"final_sparsity": 0.5, "end_epoch": 1, "op_types": ["Odd"]}]
    with pytest.raises(ConfigError, match="Odd has no filters"):
        AGPPruner(nn.Sequential(Odd()), entries, pruning_algorithm="fpgm")


@pytest.mark.parametrize("given", [nn.Linear, dict])
def test_a_schedule_drives_pruners_only(given):
    entries = [{"final_sparsity": 0.5, "end_epoch": 1, "op_types": ["default"]}]
    with pytest.raises(ConfigError, match="is no pruner") as caught:
        AGPPruner(mlp(), entries, pruning_algorithm=given)
    assert caught.value.problems[0].pointer == "/pruning_algorithm"


class Decoder(nn.Module):
    """Two blocks with containers, activations and norms in them, as language models have."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {"q_proj": nn.Linear(4, 4), "act": nn.ReLU(), "norm": nn.LayerNorm(4)}
                | {"down_proj": nn.Linear(4, 4)}
            )
            for _ in range(12)
        )
        self.head = nn.Linear(4, 10)


def numbers(model, *entries):
    return [name for name, _ in chosen(model, *entries)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layers.*.q_proj", [f"layers.{n}.q_proj" for n in range(12)]),
        ("layers.1?.down_proj", ["layers.10.down_proj", "layers.11.down_proj"]),
        ("layers.[02].*", [f"layers.{n}.{k}_proj" for n in (0, 2) for k in ("q", "down")]),
        ("re:layers\\.(3|11)\\.q_.*", ["layers.3.q_proj", "layers.11.q_proj"]),
        ("re:head|embed", ["embed", "head"]),
        ("h*", ["head"]),
    ],
)
def test_a_pattern_selects_whole_names_of_layers_with_weights(pattern, expected):
    assert numbers(Decoder(), {"op_names": [pattern], "sparsity": 0.5}) == expected


def test_a_pattern_with_types_looks_among_these():
    entry = {"op_names": ["layers.0.*"], "op_types": ["LayerNorm"], "sparsity": 0.5}
    assert numbers(Decoder(), entry) == ["layers.0.norm"]


def test_an_excluding_pattern_leaves_all_that_it_matches_alone():
    entries = [DEFAULT, {"op_names": ["layers.*", "embed"], "exclude": True}]
    assert numbers(Decoder(), *entries) == ["head"]


def test_a_layer_that_is_called_like_a_pattern_comes_first():
    model = nn.Sequential()
    model.add_module("a*", nn.Linear(2, 2))
    model.add_module("ab", nn.Linear(2, 2))
    assert numbers(model, {"op_names": ["a*"], "sparsity": 0.5}) == ["a*"]


def test_a_pattern_that_matches_nothing_is_reported_with_the_nearest_names():
    error = messages(Decoder(), {"op_names": ["layers.*.q_porj"], "sparsity": 0.5})
    (problem,) = error.problems
    assert problem.pointer == "/config_list/0/op_names/0"
    assert problem.message == 'no layer of the model matches "layers.*.q_porj"'
    assert problem.allowed.startswith("layers are: layers.9.q_proj, layers.8.q_proj, ")
    assert "q_proj" in problem.suggestion


def test_a_pattern_that_matches_other_types_only_says_which():
    error = messages(Decoder(), {"op_names": ["*.act"], "op_types": ["Linear"], "sparsity": 0.5})
    assert error.problems[0].message == '12 modules match "*.act", none is of a type looked for'
    assert error.problems[0].allowed == "looked for: Linear; they are: 12 ReLU"


def test_a_regular_expression_that_is_none_is_a_mistake_of_the_file():
    with pytest.raises(ConfigError, match=r'"re:\(a" is no regular expression: .+') as caught:
        LevelPruner(mlp(), [{"op_names": ["re:(a"], "sparsity": 0.5}])
    assert caught.value.problems[0].pointer == "/config_list/0/op_names/0"
