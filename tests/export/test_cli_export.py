"""``engine export``: files from a configuration, a model and a checkpoint."""

import json

import pytest
import torch
from models import images

import engine
from engine import cli

QUANTIZED = """\
compressor: qat
config_list:
  - op_types: [Conv2d, Linear]
    quant_types: [weight, input]
    quant_bits: 8
"""
PRUNED = "compressor: l1_filter\nconfig_list:\n  - {op_types: [Conv2d], sparsity: 0.5}\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quantized.yaml").write_text(QUANTIZED)
    (tmp_path / "pruned.yaml").write_text(PRUNED)
    from models import ConvNet

    torch.manual_seed(5)
    model = ConvNet()
    quantizer = engine.create_compressor(model, "quantized.yaml")
    quantizer.compress()(images(8))
    torch.save({"model": model.state_dict(), "quantizer": quantizer.state_dict()}, "checkpoint.pt")
    torch.save(images(16), "batches.pt")
    return model.eval()


@pytest.fixture
def export(place, capsys):
    def call(file, *arguments):
        code = cli.main(["export", file, "--model", "models:ConvNet", *arguments])
        output, errors = capsys.readouterr()
        return code, output, errors

    return call


def test_weights_ranges_and_onnx_of_a_trained_model(place, export, tmp_path):
    pytest.importorskip("onnxscript")
    code, output, errors = export(
        "quantized.yaml", "--checkpoint", "checkpoint.pt", "--output", "m.safetensors",
        "--ranges", "r.json", "--onnx", "m.onnx", "--input-shape", "1,1,8,8",
        "--batches", "batches.pt",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == ["m.safetensors", "r.json", "m.onnx"]
    assert lines[4:] == [
        "3 of 3 operators compute with integers:",
        "LAYER  OPERATOR     COMPUTES IN  REASON",
        "conv1  convolution  integers",
        "conv2  convolution  integers",
        "fc     linear       integers",
    ]
    from models import ConvNet

    fresh = engine.load_quantized(ConvNet(), "m.safetensors")
    assert torch.equal(fresh.conv1.weight, place.conv1.weight)
    assert json.loads((tmp_path / "r.json").read_text())["fc"]["input"]["range"] is not None


def test_what_lacks_grids_is_said_to_get_them_from_batches(export, tmp_path):
    pytest.importorskip("onnxscript")
    (tmp_path / "weights.yaml").write_text(QUANTIZED.replace("[weight, input]", "[weight]"))
    base = ("weights.yaml", "--output", "m.pth", "--onnx", "m.onnx", "--input-shape", "1,1,8,8")
    code, output, _ = export(*base)
    assert code == 0
    assert "\n0 of 3 operators compute with integers:" in output
    assert output.splitlines()[-1] == (
        "3 lack grids, which --batches FILE, a few sample inputs, can give them"
    )
    _, output, _ = export(*base, "--batches", "batches.pt")
    assert "\n3 of 3 operators compute with integers:" in output
    assert "--batches" not in output


def test_ranges_of_a_file_stand_in_for_a_checkpoint(place, export, tmp_path):
    base = ("quantized.yaml", "--checkpoint", "checkpoint.pt", "--output", "m.pth")
    assert export(*base, "--ranges", "first.json")[0] == 0
    torch.save(place.state_dict(), "plain.pt")
    code, output, _ = export(
        "quantized.yaml", "--checkpoint", "plain.pt", "--output", "m.pth", "--load-ranges",
        "first.json", "--ranges", "second.json", "--json",
    )  # fmt: skip
    assert code == 0
    assert set(json.loads(output)["files"]) == {"m.pth", "second.json"}
    assert (tmp_path / "first.json").read_text() == (tmp_path / "second.json").read_text()


def test_sizes_and_opset_of_the_file_are_chosen(export):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    base = ("pruned.yaml", "--output", "m.pth", "--onnx", "m.onnx", "--input-shape", "1,1,8,8")
    chosen = ("--dynamic", "0=pictures", "--opset", "19", "--compare", "warn")
    code, _, errors = export(*base, *chosen)
    assert (code, errors) == (0, "")
    held = onnx.load("m.onnx")
    assert held.opset_import[0].version == 19
    assert held.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "pictures"
    code, _, errors = export(*base, "--dynamic", "height")
    assert code == 2
    assert errors.startswith("--dynamic needs DIM=NAME or INPUT:DIM=NAME, such as 2=height, got")


def test_a_pruned_model_is_written_small(export):
    code, output, errors = export(
        "pruned.yaml", "--output", "m.pth", "--masks", "k.pth", "--speedup", "--input-shape",
        "1,1,8,8",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    assert [line.partition(":")[0] for line in output.splitlines()] == ["m.pth", "k.pth"]
    assert engine.load_masks("k.pth")["conv1"]["weight"].float().mean() == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("quantized.yaml", "--onnx", "m.onnx"), "--onnx needs --input-shape, such as 1,3,224,224"),
        (
            ("quantized.yaml", "--onnx", "m.onnx", "--input-shape", "1,x"),
            '--input-shape needs sizes of at least 1, such as 1,3,224,224, got "1,x"',
        ),
        (
            ("quantized.yaml", "--masks", "k.pth", "--speedup"),
            "--masks and --speedup: qat is a quantizer, which has none\n"
            "  engine export --help says which option is for which kind",
        ),
        (
            ("pruned.yaml", "--load-ranges", "r.json"),
            "--load-ranges: l1_filter is a pruner, which has none\n"
            "  engine export --help says which option is for which kind",
        ),
        (("quantized.yaml", "--checkpoint", "none.pt"), "there is no file none.pt"),
        (
            ("quantized.yaml", "--checkpoint", "batches.pt"),
            "batches.pt holds a Tensor, no checkpoint",
        ),
        (
            ("quantized.yaml", "--batches", "checkpoint.pt"),
            "--batches: checkpoint.pt holds no tensor of inputs and no list of them",
        ),
        (
            ("quantized.yaml", "--load-ranges", "none.json"),
            "none.json cannot be read: No such file or directory",
        ),
        (
            ("quantized.yaml", "--onnx", "m.onnx", "--input-shape", "1,1,8,8"),
            "no activation has a range yet: the model was quantized and never calibrated\n"
            "  run batches through the model in training mode after compress(), with data that is "
            "finite",
        ),
    ],
)
def test_a_mistake_is_a_sentence_and_nothing_is_written(arguments, message, export, tmp_path):
    before = sorted(tmp_path.iterdir())
    code, output, errors = export(*arguments, "--output", "m.pth")
    assert (code, output, errors) == (2, "", f"{message}\n")
    assert sorted(tmp_path.iterdir()) == before


def test_a_checkpoint_of_another_algorithm_is_refused(place, export):
    saved = torch.load("checkpoint.pt", weights_only=True)
    saved["quantizer"]["algorithms"] = ["lsq"]
    torch.save(saved, "other.pt")
    code, _, errors = export("quantized.yaml", "--checkpoint", "other.pt", "--output", "m.pth")
    assert code == 2
    assert errors == "the state is of lsq, the compressor is qat\n"
