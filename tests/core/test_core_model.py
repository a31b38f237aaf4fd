"""The model stays the user's while it is compressed."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from models import (
    ConvNet,
    TiedLanguageModel,
    images,
    mlp,
    pruner_plugins,
    settings_of,
    train_step,
    zeros,
)
from torch import nn

from engine import ConfigError, PluginError
from engine.algorithms import ActivationAPoZRankFilterPruner, L1FilterPruner, LevelPruner
from engine.pruning import ActivationFilterPruner

HALF = [{"sparsity": 0.5, "op_types": ["default"]}]
PLUGINS = pruner_plugins()
every_pruner = pytest.mark.parametrize("plugin", PLUGINS, ids=[p.name for p in PLUGINS])


def attach(plugin, model, **selection):
    pruner = plugin.load()(model, **settings_of(plugin, 0.5, **selection))
    pruner.compress()
    return pruner


def train(model, batches=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for batch in range(batches):
        train_step(model, optimizer, images(seed=batch))


@every_pruner
def test_names_classes_and_keys_are_unchanged(plugin):
    model = ConvNet()

    def face():
        return (
            [(name, type(module)) for name, module in model.named_modules()],
            [(name, id(parameter)) for name, parameter in model.named_parameters()],
            list(model.state_dict()),
            [name for name, _ in model.named_buffers()],
            [type(module).__name__ for module in model.modules()],
            repr(model),
        )

    before = face()
    pruner = plugin.load()(model, **settings_of(plugin))
    assert pruner.compress() is model
    train(model)
    assert face() == before
    assert isinstance(model.conv1, nn.Conv2d)
    assert model.fc.in_features == 90
    assert model.conv1.weight is dict(model.named_parameters())["conv1.weight"]


@every_pruner
def test_a_deep_copy_is_a_plain_model_of_its_own(plugin):
    model = ConvNet()
    pruner = attach(plugin, model)
    seen = []
    pruner.add_activation_collector(lambda wrapper, inputs, output: seen.append(wrapper.name))
    train(model, 1)
    twin = copy.deepcopy(model).eval()
    model.eval()
    assert torch.equal(twin(images()), model(images()))
    before = len(seen)
    statistic = [copy.deepcopy(w.attributes()) for w in pruner.get_modules_wrapper()]
    train(twin.train(), 2)
    assert len(seen) == before
    assert statistic == [w.attributes() for w in pruner.get_modules_wrapper()]
    # The copy can be pruned by itself.
    attach(plugin, twin)
    train(twin, 1)
    assert_trainable(model)


def assert_trainable(model):
    before = [p.clone() for p in model.parameters()]
    train(model, 1)
    assert not all(map(torch.equal, before, model.parameters()))


@every_pruner
def test_pickled_and_loaded_again(plugin):
    model = ConvNet()
    pruner = attach(plugin, model)
    pruner.add_activation_collector(lambda *args: None)
    train(model)
    model.eval()
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(images()), model(images()))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    assert list(torch.load(stream, weights_only=False).state_dict()) == list(model.state_dict())
    assert_trainable(again)


@every_pruner
def test_compiled_without_a_graph_break(plugin):
    model = ConvNet()
    attach(plugin, model)
    train(model)
    model.eval()
    expected = model(images())
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(images()), expected)


@every_pruner
def test_trained_while_compiled(plugin):
    model = ConvNet()
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for net, trained in ((model, compiled), (twin, twin)):
        attach(plugin, net).update_epoch(1)
        if issubclass(plugin.load(), ActivationFilterPruner):
            train(net, 2)  # which activations there are can be seen in eager forwards only
        train(trained)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@every_pruner
def test_exported_by_torch(plugin):
    model = ConvNet()
    attach(plugin, model)
    train(model)
    model.eval()
    program = torch.export.export(model, (images(),))
    assert torch.allclose(program.module()(images()), model(images()), atol=1e-6)


@every_pruner
def test_data_parallel(plugin):
    model = ConvNet()
    twin = copy.deepcopy(model)
    for net, trained in ((model, nn.DataParallel(model)), (twin, twin)):
        attach(plugin, net).update_epoch(1)
        train(trained)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_functional_call_sees_the_tensors_that_it_is_given():
    model = ConvNet().eval()
    LevelPruner(model, HALF).compress()
    given = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    assert not torch.func.functional_call(model, given, (images(),)).any()
    assert model(images()).any()


def test_tied_weights_are_one_weight_with_one_mask():
    model = TiedLanguageModel()
    pruner = LevelPruner(model, HALF)
    pruner.compress()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        train_step(model, optimizer, torch.randint(12, (3, 5)))
        assert model.decoder.weight is model.embedding.weight
        assert zeros(model.embedding.weight) == 36
    wrappers = {w.name: w for w in pruner.get_modules_wrapper()}
    assert torch.equal(wrappers["embedding"].weight_mask, wrappers["decoder"].weight_mask)


def test_a_tied_weight_of_which_one_layer_is_chosen():
    model = TiedLanguageModel()
    L1FilterPruner(model, [{"sparsity": 0.5, "op_names": ["decoder"]}]).compress()
    assert zeros(model.embedding.weight) == 36


def test_tied_weights_with_contradictory_settings_are_refused():
    entries = [*HALF, {"sparsity": 0.1, "op_names": ["decoder"]}]
    with pytest.raises(ConfigError, match="share one weight but are configured differently"):
        LevelPruner(TiedLanguageModel(), entries)


def test_a_module_under_two_names_is_pruned_once():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    pruner = LevelPruner(model, [{"sparsity": 0.5, "op_names": ["2"]}])
    pruner.compress()
    assert [w.name for w in pruner.get_modules_wrapper()] == ["0"]
    assert zeros(layer.weight) == 8
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_multihead_attention():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = nn.ModuleDict({"attention": attention, "fc": nn.Linear(8, 8)})
    pruner = LevelPruner(model, HALF)
    pruner.compress()
    assert [w.name for w in pruner.get_modules_wrapper()] == ["attention.out_proj", "fc"]
    assert zeros(attention.out_proj.weight) == 32
    x = torch.randn(2, 3, 8)
    output, _ = attention(x, x, x)
    projected = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    projected.load_state_dict(attention.state_dict())
    assert torch.equal(output, projected(x, x, x)[0])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    output.sum().backward()
    optimizer.step()
    assert zeros(attention.out_proj.weight) == 32


@pytest.mark.parametrize("cls", [LevelPruner, L1FilterPruner, ActivationAPoZRankFilterPruner])
def test_a_transformer_layer_in_training_and_on_its_fast_path(cls):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    pruner = cls(layer, [{"sparsity": 0.5, "op_names": ["linear1", "linear2"]}])
    pruner.compress()
    x = torch.randn(3, 5, 8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(2):
        train_step(layer, optimizer, x)
    plain = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    plain.load_state_dict(layer.state_dict())
    assert torch.allclose(layer(x), plain(x), atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(layer.eval()(x), plain.eval()(x), atol=1e-6)
    assert [zeros(w.weight_mask) for w in pruner.get_modules_wrapper()] == [64, 64]


@every_pruner
def test_layers_called_with_keyword_arguments(plugin):
    class ByKeyword(ConvNet):
        def forward(self, x):
            x = self.relu1(input=self.bn1(input=self.conv1(input=x)))
            x = torch.relu(input=self.bn2(input=self.conv2(input=x)))
            return self.fc(input=x.flatten(1))

    model, twin = ByKeyword(), ConvNet()
    twin.load_state_dict(model.state_dict())
    for net in (model, twin):
        attach(plugin, net).update_epoch(1)
        train(net)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


@every_pruner
def test_the_model_may_be_a_single_layer(plugin):
    norm = "BatchNorm2d" in plugin.load().default_op_types
    model = nn.BatchNorm1d(6) if norm else nn.Linear(6, 6)
    pruner = attach(plugin, model, op_types=[type(model).__name__])
    assert [w.name for w in pruner.get_modules_wrapper()] == [""]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(4):
        pruner.update_epoch(epoch)
        for _ in range(2):
            train_step(model, optimizer, torch.randn(5, 6))
    if plugin.role == "provider":
        assert zeros(model.weight) == model.weight.numel() // 2


# -- leaving --------------------------------------------------------------------------------------


def traces(model):
    """Everything that could be left on a model."""
    return [
        {
            key: list(value) if key.endswith("hooks") else None
            for key, value in vars(module).items()
            if not key.startswith("_") or key.startswith("_engine") or key.endswith("hooks")
        }
        for module in model.modules()
    ]


def process_hooks():
    from torch.optim import optimizer

    return len(optimizer._global_optimizer_pre_hooks) + len(optimizer._global_optimizer_post_hooks)


@every_pruner
def test_unwrap_leaves_an_untrained_model_as_it_was_found(plugin):
    gc.collect()
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state, before, hooks = copy.deepcopy(model.state_dict()), traces(model), process_hooks()
    pruner = plugin.load()(model, optimizer=optimizer, **settings_of(plugin))
    pruner.compress()
    pruner.add_activation_collector(lambda *args: None)
    assert pruner.unwrap() is model
    assert traces(model) == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert process_hooks() <= hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
    pruner.unwrap()


@every_pruner
def test_after_training_masked_weights_stay_zero(plugin):
    model = ConvNet()
    before = traces(model)
    pruner = attach(plugin, model)
    pruner.update_epoch(1)
    train(model)
    state = copy.deepcopy(model.state_dict())
    pruner.unwrap()
    assert traces(model) == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    train(model, 1)


def test_unwrap_gives_dense_weights_back_only_where_they_were_not_replaced():
    model = nn.Linear(4, 4)
    pruner = LevelPruner(model, HALF)
    pruner.compress()
    new = {"weight": torch.randn(4, 4), "bias": torch.randn(4)}
    model.load_state_dict(new)
    pruner.unwrap()
    assert torch.equal(model.weight, new["weight"])


def test_unwrap_gives_back_loaded_weights_whole():
    model = nn.Linear(4, 4)
    pruner = LevelPruner(model, HALF)
    pruner.compress()
    new = {"weight": torch.randn(4, 4), "bias": torch.randn(4)}
    pruner.load_model_state_dict(new)
    assert zeros(model.weight) == 8
    pruner.unwrap()
    assert torch.equal(model.weight, new["weight"])


def test_bake_keeps_the_zeros():
    model = nn.Linear(4, 4)
    pruner = LevelPruner(model, HALF)
    pruner.compress()
    pruner.unwrap(bake=True)
    assert zeros(model.weight) == 8


def test_attached_again_after_unwrap():
    model = ConvNet()
    pruner = LevelPruner(model, HALF)
    pruner.compress()
    pruner.unwrap()
    pruner.compress()
    assert zeros(model.fc.weight) == 180
    train(model)
    assert zeros(model.fc.weight) == 180


def test_compress_twice_changes_nothing():
    model = ConvNet()
    pruner = LevelPruner(model, HALF)
    pruner.compress()
    masks = [w.weight_mask for w in pruner.get_modules_wrapper()]
    state, before = copy.deepcopy(model.state_dict()), traces(model)
    assert pruner.compress() is model
    assert all(m is w.weight_mask for m, w in zip(masks, pruner.get_modules_wrapper(), strict=True))
    assert traces(model) == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_layer_has_one_pruner_at_a_time():
    model = ConvNet()
    first = LevelPruner(model, HALF)
    first.compress()
    with pytest.raises(PluginError, match='layer "conv1" is already masked') as caught:
        L1FilterPruner(model, HALF).compress()
    assert caught.value.layer == "conv1"
    train(model)
    assert zeros(model.fc.weight) == 180
    first.unwrap()
    L1FilterPruner(model, HALF).compress()


@every_pruner
@pytest.mark.parametrize("trained", [True, False])
def test_a_model_that_is_dropped_is_collected(plugin, trained):
    gc.collect()
    hooks = process_hooks()
    model = ConvNet()
    pruner = attach(plugin, model)
    if trained:
        train(model)
    dead = [weakref.ref(model), weakref.ref(pruner), weakref.ref(pruner.get_modules_wrapper()[0])]
    del model, pruner
    gc.collect()
    assert [reference() for reference in dead] == [None] * 3
    # What stays is one pair for the process, not one for each model.
    assert process_hooks() <= max(hooks, 2)


def test_collected_in_the_middle_of_another_optimizer_step():
    model, doomed = mlp(), mlp()
    LevelPruner(model, HALF).compress()
    LevelPruner(doomed, HALF).compress()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    holder = [doomed]
    del doomed

    def drop(*args):
        holder.clear()
        gc.collect()

    optimizer.register_step_post_hook(drop)
    train_step(model, optimizer, torch.randn(3, 8))
    assert zeros(model[0].weight) == 40


def test_detached_in_the_middle_of_a_step():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    class Leaving(LevelPruner):
        def step(self):
            self.unwrap()

    pruner = Leaving(model, HALF, optimizer)
    pruner.compress()
    train_step(model, optimizer, torch.randn(3, 8))
    train_step(model, optimizer, torch.randn(3, 8))


@every_pruner
def test_masks_hold_while_only_the_model_is_kept(plugin):
    model = ConvNet()
    pruner = attach(plugin, model)
    pruner.update_epoch(1)
    train(model)
    masks = {w.name: w.weight_mask.clone() for w in pruner.get_modules_wrapper()}
    del pruner
    gc.collect()
    train(model)
    for name, mask in masks.items():
        assert not model.get_submodule(name).weight[mask == 0].any()
