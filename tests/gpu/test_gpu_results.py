"""What leaves the device: smaller models, fitted weights, files. The same as on the CPU."""

import copy
from pathlib import Path

import pytest
import torch
from runs import CPU, PRUNERS, QUANTIZERS, assert_masked, at_rest, moving, subject
from torch import Tensor, nn

import engine
from engine import Compressor
from engine.algorithms import L1FilterPruner, PTQQuantizer, QAT_Quantizer
from engine.plugins import registry
from engine.pruning import Reconstruction
from engine.quantization.observers import OBSERVERS
from engine.testing.settings import extension_arguments
from engine.testing.subject import Subject

EXTENSIONS = ["dependency_aware", "global_ranking", "channel_rounding"]


def on_both(name: str, device: torch.device) -> tuple[Subject, Compressor, Compressor]:
    """The algorithm at rest on the device, and on the CPU with the same values."""
    of = subject(name)
    model, compressor, _ = at_rest(of, device)
    other = of.model()
    there = of.attach(other, moving(other))
    there.load_model_state_dict({k: v.to(CPU) for k, v in model.state_dict().items()})
    state = copy.deepcopy(compressor.state_dict())
    for kept in state["wrappers"].values():
        kept["buffers"] = {k: None if v is None else v.to(CPU) for k, v in kept["buffers"].items()}
    there.load_state_dict(state)
    return of, compressor, there


@pytest.mark.parametrize("name", PRUNERS)
def test_a_smaller_model_has_the_sizes_and_outputs_of_the_masked_one(
    name: str, device: torch.device
) -> None:
    of, pruner, other = on_both(name, device)
    x = of.inputs(7, pruner.bound_model)
    with torch.no_grad():
        wanted = pruner.bound_model.eval()(*x)
    smaller = quietly(pruner, x)
    assert [p.shape for p in smaller.parameters()] == [
        p.shape for p in quietly(other, of.inputs(7)).parameters()
    ]
    with torch.no_grad():
        torch.testing.assert_close(smaller(*x), wanted, rtol=1e-3, atol=1e-4)
    assert {p.device.type for p in smaller.parameters()} == {device.type}


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_constraint_chooses_the_filters_that_it_chooses_on_the_cpu(
    extension: str, device: torch.device
) -> None:
    masks = []
    for place in (CPU, device):
        of = subject("l1_filter")
        model = of.model().to(place)
        plugin = registry.find(extension, registry.EXTENSIONS)
        constraint = plugin.load()(**{**extension_arguments(plugin), "round_to": 2})
        pruner = of.attach(model, extensions=[constraint])
        assert assert_masked(pruner) > 0
        masks.append([wrapper.weight_mask.to(CPU) for wrapper in pruner.get_modules_wrapper()])
    for ours, theirs in zip(*masks, strict=True):
        assert torch.equal(ours, theirs)


def test_layers_are_fitted_as_on_the_cpu(device: torch.device) -> None:
    fitted = []
    for place in (CPU, device):
        of = subject("l1_filter")
        model = of.model().to(place)
        batches = [x for seed in range(4) for x in of.inputs(seed, model)]
        reconstruction = Reconstruction(model, batches)
        pruner = of.attach(model)
        report = reconstruction.apply()
        assert all(after <= before for _, before, after in report)
        assert_masked(pruner)
        fitted.append([p.detach().to(CPU) for p in model.parameters()])
    for ours, theirs in zip(*fitted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", PRUNERS)
def test_files_of_a_pruner_are_those_of_the_cpu(
    name: str, device: torch.device, tmp_path: Path
) -> None:
    _, pruner, other = on_both(name, device)
    for place, each in (("here", pruner), ("there", other)):
        each.export_model(tmp_path / f"{place}.pth", tmp_path / f"{place}.masks")  # type: ignore[attr-defined]
    assert alike(tmp_path / "here.masks", tmp_path / "there.masks")
    plain = subject(name).model()
    saved = torch.load(tmp_path / "here.pth", weights_only=True)
    assert {value.device for value in saved.values()} == {CPU}
    plain.load_state_dict(saved)
    engine.apply_masks(plain, tmp_path / "here.masks")


def test_a_file_holds_a_shared_tensor_once(device: torch.device, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    model.to(device)
    model[1].weight = model[0].weight
    pruner = L1FilterPruner(model, [{"op_types": ["Linear"], "sparsity": 0.5}])
    pruner.compress()
    pruner.export_model(tmp_path / "tied.pth")
    saved = torch.load(tmp_path / "tied.pth", weights_only=True)
    assert saved["0.weight"].data_ptr() == saved["1.weight"].data_ptr()
    assert (tmp_path / "tied.pth").stat().st_size < 1.5 * 4 * 64 * 64


@pytest.mark.parametrize("name", QUANTIZERS)
def test_packed_files_of_a_quantizer_are_those_of_the_cpu(
    name: str, device: torch.device, tmp_path: Path
) -> None:
    of, quantizer, other = on_both(name, device)
    quantizer.export_model(tmp_path / "here.pth")  # type: ignore[attr-defined]
    other.export_model(tmp_path / "there.pth")  # type: ignore[attr-defined]
    ours, theirs = of.model(), of.model()
    engine.load_quantized(ours, tmp_path / "here.pth")
    engine.load_quantized(theirs, tmp_path / "there.pth")
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)


@pytest.mark.parametrize("moved", [False, True], ids=["made there", "moved there"])
def test_an_onnx_file_computes_what_the_model_does(
    moved: bool, real_device: torch.device, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    of = subject("ptq")
    model = of.model().to(CPU if moved else real_device)
    entry = {"op_types": ["Conv2d", "Linear"], "quant_types": ["weight", "input"], "quant_bits": 8}
    quantizer = PTQQuantizer(model, [entry])
    quantizer.compress()
    of.calibrate(quantizer)
    model.to(real_device)
    quantizer.export_model(
        tmp_path / "m.pth", onnx_path=tmp_path / "m.onnx", input_shape=list(of.inputs()[0].shape)
    )
    x = of.inputs(7, model)[0]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.cpu().numpy()})
    with torch.no_grad():
        wanted = model.eval()(x).cpu()
    # One step of a grid more or less in between, where a product rounds differently.
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_observers_find_the_ranges_that_they_find_on_the_cpu(
    observer: str, device: torch.device
) -> None:
    ranges = []
    for place in (CPU, device):
        of = subject("ptq")
        model = of.model().to(place)
        entry = {"op_types": ["default"], "quant_types": ["input", "weight"], "quant_bits": 4}
        quantizer = PTQQuantizer(
            model, [entry], observer=observer, bias_correction=True, cross_layer_equalization=True
        )
        quantizer.compress()
        of.calibrate(quantizer)
        wrappers = quantizer.get_modules_wrapper()
        ranges.append([wrapper.input_range.to(CPU) for wrapper in wrappers])
    for ours, theirs in zip(*ranges, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fold", ["fused", "unfused"])
def test_folded_norms_train_as_on_the_cpu(fold: str, device: torch.device) -> None:
    kept = []
    for place in (CPU, device):
        of = subject("qat")
        model = of.model().to(place)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        entry = {"op_types": ["default"], "quant_types": ["weight", "output"], "quant_bits": 8}
        quantizer = QAT_Quantizer(model, [entry], optimizer, fold_batch_norm=fold)
        quantizer.compress()
        of.train(quantizer, optimizer, range(2))
        kept.append([wrapper.weight_scale.to(CPU) for wrapper in quantizer.get_modules_wrapper()])
    for ours, theirs in zip(*kept, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_tables_and_counts_are_those_of_the_cpu(device: torch.device) -> None:
    tables = []
    for place in (CPU, device):
        of = subject("l1_filter")
        model = of.model().to(place)
        pruner = L1FilterPruner(model, [{"op_types": ["default"], "sparsity": 0.5}])
        pruner.compress()
        tables.append(str(engine.layer_table(model, pruner)))
    assert tables[0] == tables[1]


def quietly(pruner: Compressor, x: tuple[Tensor, ...]) -> nn.Module:
    """Speed up; that single weights leave every channel in place is no news here."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pruner.apply_speedup(x)  # type: ignore[attr-defined, no-any-return]


def alike(ours: Path, theirs: Path) -> bool:
    first, second = (torch.load(path, weights_only=True) for path in (ours, theirs))
    return first.keys() == second.keys() and all(
        (a is None and b is None) or torch.equal(a, b)
        for layer in first
        for a, b in [(first[layer][name], second[layer][name]) for name in first[layer]]
    )
