"""Free sizes, the opset, and outputs that are no tuples: what an ONNX file states."""

import dataclasses
from collections import OrderedDict

import onnx
import onnxruntime
import pytest
import torch
from integers import entry
from torch import nn

from engine import ExportError
from engine.algorithms import L1FilterPruner, PTQQuantizer


class Segments(nn.Module):
    """Reads pictures of any size, and a number for each of them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, stride=2)
        self.last = nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, image, level):
        return self.last(torch.relu(self.first(image))) * level[:, None, None, None]


def inputs(height=8, width=8, count=2):
    return torch.randn(count, 2, height, width), torch.rand(count)


def exported(kind, folder, **options):
    torch.manual_seed(0)
    model, example = Segments().eval(), inputs()
    if kind == "pruned":
        entries = [{"op_names": ["first"], "sparsity": 0.5}]
        compressor = L1FilterPruner(model, entries, dummy_input=example)
        compressor.compress()
    else:
        compressor = PTQQuantizer(model, [entry(op_types=["Conv2d"])], dummy_input=example)
        compressor.compress()
        compressor.calibrate([example], forward=lambda model, batch: model(*batch))
    compressor.export_model(folder / "m.pth", None, folder / "m.onnx", **options)
    return model, onnxruntime.InferenceSession(str(folder / "m.onnx"))


@pytest.mark.parametrize("kind", ["pruned", "quantized"])
def test_sizes_have_the_names_that_were_given_and_take_others(kind, tmp_path):
    axes = {"image": {0: "count", 2: "height", -1: "width"}, "level": {0: "count"}}
    model, session = exported(kind, tmp_path, dynamic_axes=axes)
    image, level = session.get_inputs()
    assert image.shape == ["count", 2, "height", "width"]
    assert level.shape == ["count"]
    x = inputs(14, 6, 3)
    found = session.run(None, {"image": x[0].numpy(), "level": x[1].numpy()})[0]
    with torch.no_grad():
        expected = model(*x)
    assert (torch.from_numpy(found) - expected).abs().max() <= 0.03 * expected.abs().max()


@pytest.mark.parametrize("kind", ["pruned", "quantized"])
def test_without_names_all_sizes_are_free_that_may_be(kind, tmp_path):
    _, session = exported(kind, tmp_path)
    x = inputs(10, 12, 5)
    found = session.run(None, dict(zip(("image", "level"), (t.numpy() for t in x), strict=True)))
    assert found[0].shape == (5, 3, 10, 12)


def test_a_size_that_the_model_fixes_is_said(tmp_path):
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(18, 4)).eval()
    quantizer = PTQQuantizer(model, [entry(op_types=["Linear"], kinds=["weight"])])
    quantizer.compress()
    with pytest.raises(ExportError, match=r'dimension 2 \("length"\) of the input "input" cannot'):
        quantizer.export_model(
            tmp_path / "m.pth",
            None,
            tmp_path / "m.onnx",
            [1, 2, 8],
            dynamic_axes={"input": {2: "length"}},
        )


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"imgae": {0: "n"}}, 'did you mean "image"'),
        ({"image": {4: "n"}}, "has 4 dimensions, 4 is none of them"),
        (["image"], "maps an input's name to its free dimensions"),
    ],
)
def test_mistakes_in_dynamic_axes_are_explained(axes, said, tmp_path):
    with pytest.raises(ExportError, match=said):
        exported("pruned", tmp_path, dynamic_axes=axes)


@pytest.mark.parametrize("kind", ["pruned", "quantized"])
@pytest.mark.parametrize("opset", [18, 21])
def test_the_opset_is_the_one_asked_for(kind, opset, tmp_path):
    exported(kind, tmp_path, opset_version=opset)
    held = onnx.load(tmp_path / "m.onnx")
    assert next(each.version for each in held.opset_import if each.domain == "") == opset


def test_an_opset_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(ExportError, match="needs a whole number from 13 to 23"):
        exported("pruned", tmp_path, opset_version=9)


@dataclasses.dataclass
class Found:
    scores: torch.Tensor
    boxes: torch.Tensor | None = None


class Odd:
    """Nothing that a file can hold."""


class Returns(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.layer, self.form = nn.Linear(3, 2), form

    def forward(self, x):
        return self.form(self.layer(x))


@pytest.mark.parametrize(
    "form",
    [Found, lambda y: Found(y, y * 2), lambda y: OrderedDict(a=y, b=None), lambda y: [y, Found(y)]],
)
@pytest.mark.parametrize("kind", ["pruned", "quantized"])
def test_dataclasses_and_mappings_are_flattened(form, kind, tmp_path):
    model = Returns(form).eval()
    if kind == "pruned":
        compressor = L1FilterPruner(model, [{"op_types": ["Linear"], "sparsity": 0.5}])
    else:
        compressor = PTQQuantizer(model, [entry(op_types=["Linear"], kinds=["weight"])])
    compressor.compress()
    compressor.export_model(tmp_path / "m.pth", None, tmp_path / "m.onnx", [2, 3])
    x = torch.randn(2, 3)
    found = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x": x.numpy()})
    torch.testing.assert_close(
        torch.from_numpy(found[0]), model.layer(x).detach(), atol=0.02, rtol=0.02
    )
    assert isinstance(model(x), type(form(x)))


@pytest.mark.parametrize("kind", ["pruned", "quantized"])
def test_another_object_is_named_in_one_sentence(kind, tmp_path):
    model = Returns(lambda y: Odd()).eval()
    if kind == "pruned":
        compressor = L1FilterPruner(model, [{"op_types": ["Linear"], "sparsity": 0.5}])
    else:
        compressor = PTQQuantizer(model, [entry(op_types=["Linear"], kinds=["weight"])])
    compressor.compress()
    with pytest.raises(ExportError, match="the model returns a Odd, which no exported file can"):
        compressor.export_model(tmp_path / "m.pth", None, tmp_path / "m.onnx", [2, 3])
