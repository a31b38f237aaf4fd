"""packed, onnx and torch_export: whole models, quantized or pruned."""

import pytest
import torch
from torch import nn

import engine
from engine.testing.networks import INPUT_SHAPE, residual_net


def quantizer(types=("weight",), model=None):
    entry = {"op_types": ["Conv2d", "Linear"], "quant_types": list(types), "quant_bits": 8}
    made = engine.create_compressor(
        residual_net().eval() if model is None else model,
        {"compressor": "ptq", "config_list": [entry]},
    )
    made.compress()
    made.calibrate([torch.randn(INPUT_SHAPE)])
    return made


def pruner():
    entry = {"op_types": ["Conv2d"], "sparsity": 0.5}
    config = {"compressor": "l1_filter", "config_list": [entry]}
    made = engine.create_compressor(residual_net().eval(), config)
    made.compress()
    return made


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
def test_packed_integers_are_loaded_bit_by_bit(tmp_path, name):
    if name.endswith(".safetensors"):
        pytest.importorskip("safetensors", reason="needs engine[safetensors]")
    made, x = quantizer(("weight", "input")), torch.randn(INPUT_SHAPE)
    path = made.export("packed", tmp_path / name, dummy_input=x).path
    fresh = engine.load_quantized(residual_net(), path)
    assert torch.equal(fresh.body.weight, made.bound_model.body.weight)


def test_a_pruned_model_is_a_state_dict_or_smaller(tmp_path):
    made, x = pruner(), torch.randn(INPUT_SHAPE)
    path = made.export("packed", tmp_path / "m.pth", dummy_input=x).path
    state = torch.load(path, weights_only=True)
    assert torch.equal(state["body.weight"], made.bound_model.body.weight)
    assert (state["body.weight"].flatten(1) == 0).all(1).sum() == 4
    model = made.apply_speedup(x)
    path = made.export("packed", tmp_path / "small.pth", dummy_input=x).path
    fresh = engine.load_compressed(residual_net(), path)
    assert torch.equal(fresh.eval()(x), model(x))
    with pytest.raises(
        engine.ExportError, match="safetensors has no place for how a smaller model"
    ):
        made.export("packed", tmp_path / "small.safetensors")


def test_a_pruned_safetensors_file_is_one(tmp_path):
    load_file = pytest.importorskip("safetensors.torch", reason="needs it").load_file
    made, x = pruner(), torch.randn(INPUT_SHAPE)
    path = made.export("packed", tmp_path / "m.safetensors", dummy_input=x).path
    assert torch.equal(load_file(path)["body.weight"], made.bound_model.body.weight)


def test_onnx_says_what_computes_with_integers(tmp_path):
    pytest.importorskip("onnxscript", reason="needs engine[onnx]")
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    entry = {"op_types": ["Linear"], "quant_types": ["weight", "input", "output"], "quant_bits": 8}
    made = engine.create_compressor(model, {"compressor": "ptq", "config_list": [entry]})
    made.compress()
    x = torch.randn(16, 8)
    made.calibrate([x])
    axes = {"input": {"0": "items"}}  # as JSON has it
    written = made.export("onnx", tmp_path / "m.onnx", dummy_input=x, dynamic_axes=axes)
    assert [(p.layer, p.integer) for p in written.placements] == [("0", True), ("2", True)]
    import onnx

    shape = onnx.load(written.path).graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_param == "items"


def test_a_program_of_torch_is_loaded_and_computes_the_same(tmp_path):
    import torch.ao.quantization.fx._decomposed

    x = torch.randn(8, 4)
    made = engine.create_compressor(
        nn.Sequential(nn.Linear(4, 2)).eval(),
        {
            "compressor": "ptq",
            "config_list": [{"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": 8}],
        },
    )
    made.compress()
    written = made.export("torch_export", tmp_path / "q.pt2", dummy_input=x)
    assert [p.layer for p in written.placements] == ["0"]
    program = torch.export.load(written.path)
    assert program.state_dict["0.weight"].dtype == torch.int8
    torch.testing.assert_close(program.module()(x), made.bound_model(x))
    made = engine.create_compressor(
        nn.Sequential(nn.Linear(4, 2)).eval(),
        {"compressor": "level", "config_list": [{"op_types": ["Linear"], "sparsity": 0.5}]},
    )
    made.compress()
    path = made.export("torch_export", tmp_path / "p.pt2", dummy_input=x).path
    loaded = torch.export.load(path).module()
    torch.testing.assert_close(loaded(x), made.bound_model(x))
    assert loaded(x[:3]).shape == (3, 2)


def test_the_compressors_own_example_is_used(tmp_path):
    pytest.importorskip("onnxscript", reason="needs engine[onnx]")
    entry = {"op_types": ["Linear"], "sparsity": 0.5}
    model = nn.Sequential(nn.Linear(4, 2))
    made = engine.create_compressor(
        model, {"compressor": "level", "config_list": [entry]}, dummy_input=torch.randn(1, 4)
    )
    made.compress()
    assert made.export("onnx", tmp_path / "m.onnx").path.exists()
