"""A quantized model as safetensors: the same parts, bit for bit, and no code in the file."""

import json
import os

import pytest
import torch
from models import ConvNet, TiedLanguageModel, mlp
from torch import nn

from engine import CheckpointError, ExportError, load_quantized
from engine.algorithms import BNNQuantizer, DoReFaQuantizer, LevelPruner, QAT_Quantizer

safetensors = pytest.importorskip("safetensors.torch")


def attach(model, bits, cls=QAT_Quantizer, **settings):
    present = {type(layer).__name__ for layer in model.modules()}
    types = sorted(present & {"Conv2d", "Linear", "Embedding"})
    entry = {"quant_types": ["weight"], "quant_bits": bits, "op_types": types, **settings}
    quantizer = cls(model, [entry])
    quantizer.compress()
    return quantizer


@pytest.mark.parametrize(
    ("cls", "bits"),
    [(QAT_Quantizer, 8), (QAT_Quantizer, 4), (DoReFaQuantizer, 2), (BNNQuantizer, 1),
     (QAT_Quantizer, 3), (QAT_Quantizer, 5), (QAT_Quantizer, 6), (QAT_Quantizer, 7)],
)  # fmt: skip
@pytest.mark.parametrize("sparsity", [0.0, 0.8])
def test_every_width_comes_back_bit_by_bit(cls, bits, sparsity, tmp_path):
    model = ConvNet()
    quantizer = attach(model, bits, cls)
    if sparsity:
        LevelPruner(model, [{"sparsity": sparsity, "op_types": ["default"]}]).compress()
    quantizer.export_model(tmp_path / "m.safetensors")
    fresh = load_quantized(ConvNet(), tmp_path / "m.safetensors")
    for name in ("conv1", "conv2", "fc"):
        own, loaded = model.get_submodule(name), fresh.get_submodule(name)
        assert torch.equal(loaded.weight, own.weight)
        assert torch.equal(loaded.bias, own.bias)
    assert torch.equal(fresh.bn1.running_var, model.bn1.running_var)


@pytest.mark.parametrize(
    "scheme", ["per_channel_symmetric", "per_group_affine", "per_group_symmetric"]
)
def test_scales_of_channels_and_groups_come_back(scheme, tmp_path):
    model = mlp(70, 16, 4)
    attach(model, 4, quant_scheme=scheme).export_model(tmp_path / "m.safetensors")
    fresh = load_quantized(mlp(70, 16, 4), tmp_path / "m.safetensors")
    assert torch.equal(fresh[0].weight, model[0].weight)


@pytest.mark.parametrize(
    ("bits", "scheme", "most"),
    [(8, "per_channel_symmetric", 0.26), (4, "per_channel_symmetric", 0.135),
     (4, "per_group_symmetric", 0.16), (2, "per_channel_affine", 0.07)],
)  # fmt: skip
def test_the_file_is_as_small_as_its_bits(bits, scheme, most, tmp_path):
    model = nn.Linear(512, 512, bias=False)
    attach(model, bits, quant_scheme=scheme).export_model(tmp_path / "m.safetensors")
    assert os.path.getsize(tmp_path / "m.safetensors") / (512 * 512 * 4) < most


def test_a_shared_weight_is_written_once(tmp_path):
    model = TiedLanguageModel()
    entry = {"quant_types": ["weight"], "quant_bits": 8, "op_names": ["hidden"]}
    quantizer = QAT_Quantizer(model, [entry])
    quantizer.compress()
    quantizer.export_model(tmp_path / "m.safetensors")
    stored = safetensors.load_file(tmp_path / "m.safetensors")
    assert "embedding.weight" in stored
    assert "decoder.weight" not in stored
    fresh = load_quantized(TiedLanguageModel(), tmp_path / "m.safetensors")
    assert fresh.decoder.weight is fresh.embedding.weight
    assert torch.equal(fresh.decoder.weight, model.decoder.weight)


def test_what_is_no_tensor_is_refused_by_name(tmp_path):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def get_extra_state(self):
            return {"count": 3}

        def set_extra_state(self, state):
            pass

    quantizer = attach(Counting(), 8)
    with pytest.raises(ExportError, match='tensors only, "_extra_state" is a dict'):
        quantizer.export_model(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
    quantizer.export_model(tmp_path / "m.pth")


@pytest.fixture
def exported(tmp_path):
    attach(mlp(), 4).export_model(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def rewritten(path, change):
    """Write the file again with other tensors or metadata."""
    with safetensors.safe_open(str(path), "pt") as stream:
        facts = stream.metadata()
    tensors = safetensors.load_file(path)
    change(tensors, facts)
    safetensors.save_file(tensors, path, metadata=facts)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, facts: tensors.pop("0.weight:codes"),
        lambda tensors, facts: tensors.update({"0.weight:codes": torch.zeros(2)}),
        lambda tensors, facts: tensors.pop("0.bias"),
        lambda tensors, facts: facts.update(quantized="["),
        lambda tensors, facts: facts.update(quantized="[1]"),
        lambda tensors, facts: facts.update(quantized=json.dumps({"0.weight": {}})),
        lambda tensors, facts: facts.update(aliases=json.dumps({"a": "b"})),
        lambda tensors, facts: facts.update(version="x"),
        lambda tensors, facts: facts.update(version="9"),
        lambda tensors, facts: facts.clear(),
    ],
)
def test_a_damaged_file_is_refused_and_the_model_unchanged(exported, change):
    rewritten(exported, change)
    model = mlp()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_quantized(model, exported)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("part", [0, 5, 200, -1])
def test_a_file_cut_off_is_refused(exported, part):
    exported.write_bytes(exported.read_bytes()[:part])
    with pytest.raises(CheckpointError, match=r"m\.safetensors"):
        load_quantized(mlp(), exported)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no file"):
        load_quantized(mlp(), tmp_path / "none.safetensors")


def test_without_the_extra_it_is_named(exported, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "safetensors" else find(name)
    )
    with pytest.raises(ExportError, match=r"pip install 'engine\[safetensors\]'"):
        attach(mlp(), 8).export_model(exported)
    with pytest.raises(CheckpointError, match=r"pip install 'engine\[safetensors\]'"):
        load_quantized(mlp(), exported)
