"""Files carry a digest: what was changed since they were written is refused."""

import random

import pytest
import safetensors.torch
import torch
from torch import nn

import engine
from engine import CheckpointError, ExportError
from engine.algorithms import LevelPruner, PTQQuantizer
from engine.files import load_tensors, save_tensors
from engine.files.read_back import require_same


def flipped(data, place):
    changed = bytearray(data)
    changed[place // 8] ^= 1 << (place % 8)
    return bytes(changed)


def test_every_flip_in_a_small_file_is_refused_or_changes_nothing(tmp_path):
    value = {"a": torch.arange(6.0), "b": [torch.tensor([True, False])], "c": "text"}
    path = save_tensors(tmp_path / "f.pth", value)
    data = path.read_bytes()
    refused = 0
    for place in range(0, 8 * len(data), 13):
        path.write_bytes(flipped(data, place))
        try:
            read = load_tensors(path)
        except CheckpointError:
            refused += 1
            continue
        require_same(value, read, path)
    assert refused > 0.9 * len(range(0, 8 * len(data), 13))


def test_a_file_of_torch_save_without_a_digest_is_read(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth")
    assert load_tensors(tmp_path / "old.pth")["a"].tolist() == [1, 1]


def test_pytorch_reads_a_file_with_a_digest(tmp_path):
    path = save_tensors(tmp_path / "f.pth", {"a": torch.ones(2)})
    assert torch.load(path, weights_only=True)["a"].tolist() == [1, 1]
    assert torch.load(path, weights_only=True, mmap=True)["a"].tolist() == [1, 1]


def test_bytes_added_or_cut_off_are_refused(tmp_path):
    path = save_tensors(tmp_path / "f.pth", {"a": torch.ones(50)})
    data = path.read_bytes()
    for damaged in (data[:-1], data[100:], data[: len(data) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_tensors(path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_flipped_bit_of_a_packed_model_is_named(suffix, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3))
    entry = {"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": 5}
    quantizer = PTQQuantizer(model, [entry])
    quantizer.compress()
    path = tmp_path / f"packed.{suffix}"
    quantizer.export_model(path)
    if suffix == "safetensors":
        assert "0.bias" in safetensors.torch.load_file(path)
    data, rng = path.read_bytes(), random.Random(1)
    said = 0
    for _ in range(80):
        path.write_bytes(flipped(data, rng.randrange(8 * len(data))))
        plain = nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3))
        try:
            engine.load_quantized(plain, path)
        except CheckpointError as error:
            said += "is damaged: its content is not what was written" in str(error)
            continue
        assert torch.equal(plain[0].weight, model[0].weight)
        assert torch.equal(plain[2].bias, model[2].bias)
    assert said > 60


def test_flipped_masks_are_refused(tmp_path):
    model = nn.Sequential(nn.Linear(40, 40))
    pruner = LevelPruner(model, [{"op_types": ["Linear"], "sparsity": 0.5}])
    pruner.compress()
    pruner.export_model(tmp_path / "m.pth", tmp_path / "mask.pth")
    data = (tmp_path / "mask.pth").read_bytes()
    (tmp_path / "mask.pth").write_bytes(flipped(data, 8 * (len(data) // 2)))
    with pytest.raises(CheckpointError, match="is damaged"):
        engine.load_masks(tmp_path / "mask.pth")


def test_a_file_that_reads_otherwise_is_not_left(tmp_path, monkeypatch):
    from engine.files import whole

    monkeypatch.setattr(whole, "load_tensors", lambda path: {"a": torch.zeros(2)})
    with pytest.raises(ExportError, match="at /a; no file was left"):
        save_tensors(tmp_path / "f.pth", {"a": torch.ones(2)}, read_back=True)
    assert not list(tmp_path.iterdir())
