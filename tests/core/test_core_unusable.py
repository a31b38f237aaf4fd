"""Parameters that cannot be worked on are refused in one sentence, before anything is done."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import engine
from engine.plugins import registry

ENTRY = {
    "sparsity": 0.5,
    "final_sparsity": 0.5,
    "end_epoch": 2,
    "prune_iterations": 2,
    "quant_types": ["weight"],
    "quant_bits": 8,
}
#: All but searches, which are refused for want of an evaluator before.
NAMES = [
    plugin.name
    for plugin in registry.algorithms()
    if plugin.comes_from(registry.OWN_DISTRIBUTION) and plugin.role not in ("search", "blocks")
]
SHARDED = r'the weight of layer "[01]" \(\w+\) is a DTensor \(.+\): fully_shard .+\n  what works: '


def network():
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    return nn.Sequential(*layers)


def compressor(name, model, optimizer=None):
    properties = registry.find(name).schema["$defs"]["entry"]["properties"]
    entry = {"op_types": ["default"], **{k: v for k, v in ENTRY.items() if k in properties}}
    if name == "bnn":
        entry["quant_bits"] = 1
    batches = [torch.randn(2, 1, 6, 6)] if registry.find(name).calibration else None
    config = {"compressor": name, "config_list": [entry]}
    return engine.create_compressor(model, config, optimizer, batches=batches)


def train(model, optimizer):
    for _ in range(2):
        model(torch.randn(2, 1, 6, 6)).square().sum().backward()
        optimizer.step()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    file = tmp_path_factory.mktemp("process-group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("name", NAMES)
def test_a_model_sharded_before_is_refused_when_the_compressor_is_made(name, mesh):
    model = fully_shard(network(), mesh=mesh)
    with pytest.raises(engine.EngineError, match=SHARDED):
        compressor(name, model).compress()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", NAMES)
def test_a_model_sharded_afterwards_is_refused_at_the_first_step(name, mesh):
    model = compressor(name, network()).compress()
    fully_shard(model, mesh=mesh)
    with pytest.raises(engine.EngineError, match=SHARDED) as caught:
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert not isinstance(caught.value, engine.PluginError), "no plugin is to blame"


def test_tensor_parallel_layers_are_refused(mesh):
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    model = parallelize_module(nn.Sequential(nn.Linear(4, 4)), mesh, {"0": ColwiseParallel()})
    with pytest.raises(engine.EngineError, match=SHARDED):
        compressor("level", model).compress()


@pytest.mark.parametrize("original", [False, True])
def test_flat_parameters_are_refused(original, mesh):
    inner = network()
    whole = FullyShardedDataParallel(inner, use_orig_params=original, device_id=torch.device("cpu"))
    with pytest.raises(engine.EngineError, match="wrapped in FullyShardedDataParallel"):
        compressor("level", whole).compress()


def partitioned(model):
    for parameter in model.parameters():  # what DeepSpeed does to them
        parameter.ds_id = 0
    return model


def on_meta():
    with torch.device("meta"):
        return network()


def under_inference_mode():
    with torch.inference_mode():
        return network()


def sparse():
    model = network()
    model[4].weight = nn.Parameter(model[4].weight.detach().to_sparse())
    return model


@pytest.mark.parametrize("name", ["level", "qat", "ptq"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: partitioned(network()), r"is partitioned by DeepSpeed ZeRO-3, .+\n  what works"),
        (on_meta, r"is on the meta device and has no values\n  load the model's weights first"),
        (under_inference_mode, r"was made under torch.inference_mode\(\) .+\n  make the model"),
        (sparse, r'layer "4" \(Linear\) is sparse \(torch.sparse_coo\)\n  make it dense first'),
    ],
)
def test_other_parameters_that_cannot_be_changed_are_refused(name, make, message):
    with pytest.raises(engine.EngineError, match=message):
        compressor(name, make()).compress()


@pytest.mark.parametrize("name", ["level", "qat"])
def test_what_the_message_says_of_inference_mode_helps(name):
    model = copy.deepcopy(under_inference_mode())
    made = compressor(name, model, torch.optim.SGD(model.parameters(), lr=0.1))
    train(made.compress(), made.optimizer)
