"""Files of a pruned model: what is in them, and that they are whole or absent."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import (
    ConvNet,
    TiedLanguageModel,
    images,
    pruner_plugins,
    settings_of,
    train_step,
    zeros,
)
from torch import nn

from engine import CheckpointError, ExportError, apply_masks, load_masks
from engine.algorithms import L1FilterPruner, LevelPruner
from engine.files import load_tensors, save_tensors, write_whole

HALF = [{"sparsity": 0.5, "op_types": ["default"]}]


def pruned(cls=LevelPruner, model=None):
    model = model or ConvNet()
    pruner = cls(model, HALF)
    pruner.compress()
    return model, pruner


@pytest.mark.parametrize("plugin", pruner_plugins(), ids=lambda plugin: plugin.name)
def test_the_exported_model_is_the_masked_model(plugin, tmp_path):
    model = ConvNet()
    pruner = plugin.load()(model, **settings_of(plugin))
    pruner.compress()
    pruner.update_epoch(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        train_step(model, optimizer, images())
    pruner.export_model(tmp_path / "model.pth", tmp_path / "mask.pth")
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    assert list(state) == list(ConvNet().state_dict())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    masks = torch.load(tmp_path / "mask.pth", weights_only=True)
    assert list(masks) == [w.name for w in pruner.get_modules_wrapper()]
    for wrapper in pruner.get_modules_wrapper():
        entry = masks[wrapper.name]
        assert entry["weight"].dtype == torch.bool
        assert torch.equal(entry["weight"], wrapper.weight_mask.bool())
        assert (entry["bias"] is None) == (wrapper.bias_mask is None)
        assert not state[f"{wrapper.name}.weight"][~entry["weight"]].any()
    plain = ConvNet()
    plain.load_state_dict(state)
    assert torch.equal(plain.eval()(images()), model.eval()(images()))
    assert model.training is False


def test_weights_beneath_a_soft_mask_are_exported_as_zeros_under_every_key(tmp_path):
    class Soft(LevelPruner):
        straight_through = True

    model, pruner = pruned(Soft, TiedLanguageModel())
    pruner.export_model(tmp_path / "model.pth")
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    assert zeros(state["embedding.weight"]) == 36
    assert torch.equal(state["embedding.weight"], state["decoder.weight"])
    assert zeros(pruner.get_modules_wrapper()[0].weight) == 0
    again = TiedLanguageModel()
    again.load_state_dict(state)
    tokens = torch.arange(12)
    assert torch.equal(again(tokens), model(tokens))


def test_the_file_holds_plain_tensors_only(tmp_path):
    _, pruner = pruned()
    pruner.export_model(str(tmp_path / "model.pth"))
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    assert {type(value) for value in state.values()} == {torch.Tensor}
    assert not any(value.requires_grad for value in state.values())


def test_a_path_is_needed():
    _, pruner = pruned()
    with pytest.raises(ExportError, match="needs model_path"):
        pruner.export_model(None)


def test_exported_from_half_precision_and_from_a_single_layer(tmp_path):
    _model, pruner = pruned(model=nn.Linear(4, 4).to(torch.bfloat16))
    pruner.export_model(tmp_path / "model.pth", tmp_path / "mask.pth")
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    assert list(state) == ["weight", "bias"]
    assert state["weight"].dtype == torch.bfloat16
    assert list(load_masks(tmp_path / "mask.pth")) == [""]
    plain = nn.Linear(4, 4).to(torch.bfloat16)
    apply_masks(plain, tmp_path / "mask.pth")
    assert zeros(plain.weight) == 8


# -- ONNX -----------------------------------------------------------------------------------------


def test_onnx_gives_what_the_model_gives(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, pruner = pruned()
    train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), images())
    target = tmp_path / "model.onnx"
    pruner.export_model(tmp_path / "m.pth", onnx_path=target, input_shape=[1, 1, 8, 8])
    assert model.training
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    (name,) = [each.name for each in session.get_inputs()]
    (output,) = session.run(None, {name: images(5).numpy()})
    expected = model.eval()(images(5)).detach()
    assert torch.allclose(torch.from_numpy(output), expected, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.pth", "model.onnx"]


@pytest.mark.parametrize(
    ("shape", "message"),
    [(None, "needs input_shape"), ([1, 3, 8, 8], r"for an input of shape \[1, 3, 8, 8\]")],
)
def test_onnx_needs_the_shape_of_an_input_that_fits(shape, message, tmp_path):
    pytest.importorskip("onnxscript")
    model, pruner = pruned()
    with pytest.raises(ExportError, match=message):
        pruner.export_model(tmp_path / "m.pth", onnx_path=tmp_path / "m.onnx", input_shape=shape)
    assert list(tmp_path.iterdir()) == []
    assert all(module.training for module in model.modules())


# -- mask files -----------------------------------------------------------------------------------


def test_masks_are_applied_to_a_plain_model(tmp_path):
    _model, pruner = pruned(L1FilterPruner)
    pruner.export_model(tmp_path / "model.pth", tmp_path / "mask.pth")
    plain = ConvNet()
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    apply_masks(plain, tmp_path / "mask.pth")
    for wrapper in pruner.get_modules_wrapper():
        for name in ("weight", "bias"):
            expected = before[f"{wrapper.name}.{name}"] * wrapper.mask(name)
            assert torch.equal(getattr(plain.get_submodule(wrapper.name), name), expected)
    assert torch.equal(plain.bn1.weight, before["bn1.weight"])
    twin = ConvNet()
    twin.load_state_dict(before)
    apply_masks(twin, load_masks(tmp_path / "mask.pth"))
    assert torch.equal(twin.fc.weight, plain.fc.weight)


def write(path: Path, value) -> Path:
    torch.save(value, path)
    return path


def truncated(path):
    write(path, {"fc": {"weight": torch.ones(4, 90), "bias": None}})
    path.write_bytes(path.read_bytes()[:-100])


ONES = torch.ones(4, 90, dtype=torch.bool)
FILES = {
    "missing": (lambda p: None, "there is no file"),
    "a folder": (lambda p: p.mkdir(), "cannot be loaded: Is a directory"),
    "empty": (lambda p: p.write_bytes(b""), "it is cut off, damaged, or of another kind"),
    "text": (lambda p: p.write_text("hello"), "it is cut off, damaged, or of another kind"),
    "truncated": (truncated, "it is cut off, damaged, or of another kind"),
    "holds code": (
        lambda p: write(p, {"fc": ConvNet()}),
        r"it holds models\.ConvNet, which is no tensor",
    ),
    "a tensor": (lambda p: write(p, ONES), "is not a mask file"),
    "a state_dict": (lambda p: write(p, ConvNet().state_dict()), "is not a mask file"),
    "no zeros and ones": (
        lambda p: write(p, {"fc": {"weight": ONES * 0.5, "bias": None}}),
        "is not a mask file",
    ),
    "NaN": (
        lambda p: write(p, {"fc": {"weight": ONES * float("nan")}}),
        "is not a mask file",
    ),
    "wrong shape": (
        lambda p: write(
            p, {"conv1": {"weight": torch.zeros(6, 1, 3, 3)}, "fc": {"weight": ONES.t()}}
        ),
        r'"fc" weight: mask \(90, 4\), parameter \(4, 90\)',
    ),
    "unknown layer": (
        lambda p: write(p, {"conv1": {"weight": torch.zeros(6, 1, 3, 3)}, "fcc": {"weight": ONES}}),
        'no layer "fcc", did you mean "fc"',
    ),
    "unknown parameter": (
        lambda p: write(p, {"relu1": {"weight": ONES}}),
        'layer "relu1" has no weight',
    ),
}


@pytest.mark.parametrize(("make", "message"), FILES.values(), ids=FILES.keys())
def test_a_bad_mask_file_changes_nothing(make, message, tmp_path):
    path = tmp_path / "mask.pth"
    make(path)
    model = ConvNet()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        apply_masks(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("masks", [{"fc": ONES}, {"fc": None}, {"fc": {"weight": [1]}}])
def test_bad_masks_in_memory_are_refused_too(masks):
    with pytest.raises(CheckpointError, match="these are no masks"):
        apply_masks(ConvNet(), masks)


# -- whole or not at all --------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    _, pruner = pruned()
    path = tmp_path / "model.pth"
    path.write_text("old")

    def full(value, target, *args, **kwargs):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ExportError, match=r"cannot write .*No space left on device"):
        pruner.export_model(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.parametrize("error", [RuntimeError("PytorchStreamWriter failed"), KeyboardInterrupt()])
def test_whatever_interrupts_a_write_no_part_stays(error, tmp_path):
    def write(temporary):
        temporary.write_bytes(b"half")
        raise error

    with pytest.raises((ExportError, KeyboardInterrupt)):
        write_whole(tmp_path / "file", write)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_for_real(tmp_path):
    def write(temporary):
        with open("/dev/full", "wb") as stream:
            stream.write(b"x" * 100_000)

    with pytest.raises(ExportError, match="No space left on device"):
        write_whole(tmp_path / "file", write)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["absent/model.pth", "folder"])
def test_a_place_that_cannot_be_written(path, tmp_path):
    (tmp_path / "folder").mkdir()
    _, pruner = pruned()
    with pytest.raises(ExportError, match="cannot write"):
        pruner.export_model(tmp_path / path)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_killed_process_leaves_nothing_under_the_final_name(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from engine.files import write_whole\n"
        "def write(temporary):\n"
        "    temporary.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_whole(sys.argv[1], write)\n"
    )
    target = tmp_path / "model.pth"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert all(p.name.startswith(".model.pth.") for p in tmp_path.iterdir())


def test_a_new_file_has_the_rights_that_any_new_file_has(tmp_path):
    (tmp_path / "usual").touch()
    save_tensors(tmp_path / "ours", torch.zeros(1))
    assert os.stat(tmp_path / "ours").st_mode == os.stat(tmp_path / "usual").st_mode
    assert torch.equal(load_tensors(tmp_path / "ours"), torch.zeros(1))
