"""``compressor.export``: formats by name, refusals before anything is written, files whole."""

import warnings

import pytest
import torch
from torch import nn

import engine
from engine.export import Exporter, Refused, Source
from engine.plugins import registry
from engine.testing.networks import linear_net, residual_net

ENTRY = {"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": 8}


def quantized(model=None, **entry):
    config = {"compressor": "ptq", "config_list": [{**ENTRY, **entry}]}
    quantizer = engine.create_compressor(linear_net() if model is None else model, config)
    quantizer.compress()
    return quantizer


def pruned(model, **entry):
    entry = {"op_types": ["Linear"], "sparsity": 0.5, **entry}
    pruner = engine.create_compressor(model, {"compressor": "level", "config_list": [entry]})
    pruner.compress()
    return pruner


SCHEMA = {
    "title": "Made for a test",
    "x-engine": {
        "kind": "exporter",
        "api": "1.0",
        "summary": "Made for a test",
        "endings": [".made"],
        "expresses": {"kinds": ["quantization"]},
    },
    "type": "object",
    "properties": {"mistake": {"type": "string", "default": ""}},
    "additionalProperties": False,
}
CODE = """
import torch
from engine.export import Exporter, Refused

class Made(Exporter):
    def refusals(self, source):
        return [Refused("0", "for a reason")] if self.mistake == "refuses" else []

    def write(self, source, path):
        if self.mistake == "has a fault":
            return {}["nothing"]
        if self.mistake == "fails":
            path.write_text("half")
            raise OSError("the disk is full")
        torch.save({key: value for key, value in source.tensors()}, path)

    def read(self, path, source):
        if self.mistake == "unreadable":
            raise KeyError("nothing there")
        model = source.plain_copy()
        model.load_state_dict(torch.load(path))
        if self.mistake == "wrong":
            model[0].weight.data[0] += 1
        return model
"""


@pytest.fixture
def made(site):
    """Install the exporter ``made``; called with facts, its schema states them."""
    site.distribution("made-for-tests", exporters=[("made", "made_for_tests:Made")])

    def state(**facts):
        schema = {**SCHEMA, "x-engine": {**SCHEMA["x-engine"], **facts}}
        site.package("made_for_tests", code=CODE, schema=schema)
        registry.refresh()

    state()
    return state


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


def refusal(compressor, to, path, **options):
    with pytest.raises(engine.EngineError) as raised:
        compressor.export(to, path, **options)
    return str(raised.value)


def test_a_strangers_exporter_is_found_by_name(made, place):
    written = quantized().export("made", place / "m.made", dummy_input=torch.randn(2, 64))
    assert written.path == place / "m.made"
    assert written.files == {written.path: written.path.stat().st_size}
    assert written.placements == []


def test_unknown_names_options_and_endings_are_said_with_the_nearest(made, place):
    quantizer = quantized()
    assert refusal(quantizer, "mede", "m.made").splitlines()[::2] == [
        'unknown exporter "mede"',
        '  did you mean "made"?',
    ]
    assert refusal(quantizer, "made", "m.made", mistakes=1) == (
        "made: 1 problem\n\n/mistakes\n"
        '  unknown argument "mistakes"\n  made allows: mistake\n  did you mean "mistake"?'
    )
    assert refusal(quantizer, "made", "m.pth") == (
        'm.pth: made writes files that end in .made\n  did you mean "m.made"?'
    )
    assert refusal(quantizer, "made", None) == "a file's path is needed, got None"
    assert "may be 'error', 'warn', 'no'" in refusal(quantizer, "made", "m.made", compare="maybe")


def test_what_is_refused_is_named_with_its_reason_and_nothing_is_written(made, place):
    assert refusal(quantized(), "made", place / "m.made", mistake="refuses") == (
        'made cannot hold this model; nothing was written\n  layer "0": for a reason'
    )
    assert refusal(pruned(linear_net()), "made", place / "m.made") == (
        "made cannot hold this model; nothing was written\n"
        "  the model: is pruned; it holds models that are quantized"
    )
    assert not list(place.iterdir())


def test_layers_with_one_reason_are_named_together(made, place):
    made(expresses={"weights": ["per_tensor_affine"], "layers": ["Linear"], "bits": [8]})
    model = residual_net()
    quantizer = quantized(
        model, op_types=["Conv2d", "Linear"], quant_scheme="per_channel_symmetric"
    )
    assert refusal(quantizer, "made", place / "m.made").splitlines()[1:] == [
        '  layers "stem", "body": is of the class Conv2d; integers are held of Linear',
        '  layers "hidden", "head": its weight is per_channel_symmetric; per_tensor_affine can '
        "be held",
    ]


@pytest.mark.parametrize(
    ("entry", "expresses", "reason"),
    [
        ({"quant_bits": 3}, {"bits": [4, 8]}, "its weight has 3 bits; 4 or 8 can be held"),
        (
            {"quant_scheme": "per_group_affine", "quant_group_size": 24},
            {"group_sizes": [16, 32]},
            "its groups are of 24 weights; 16 or 32 can be held",
        ),
        ({}, {"example": True}, "is traced, which needs example inputs: give dummy_input"),
    ],
)
def test_what_the_schema_leaves_out_is_refused(made, place, entry, expresses, reason):
    made(expresses=expresses)
    message = refusal(quantized(**entry), "made", place / "m.made")
    assert message.splitlines()[1].endswith(f": {reason}")


def test_quantized_activations_are_refused_where_weights_alone_are_held(made, place):
    made(expresses={"activations": False})
    quantizer = quantized(quant_types=["weight", "input", "output"])
    quantizer.calibrate([torch.randn(4, 64)])
    assert refusal(quantizer, "made", place / "m.made").splitlines()[1] == (
        '  layers "0", "2": its input and output is quantized, the format holds weights only: give '
        'it "quant_types": ["weight"]'
    )


def test_a_file_that_computes_something_else_is_not_left(made, place):
    x = torch.randn(2, 64)
    message = refusal(quantized(), "made", place / "m.made", dummy_input=x, mistake="wrong")
    assert message.startswith("what was written computes something else than the model: output 0")
    assert not list(place.iterdir())
    with pytest.warns(UserWarning, match="computes something else"):
        quantized().export("made", place / "m.made", dummy_input=x, mistake="wrong", compare="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantized().export("made", place / "n.made", dummy_input=x, mistake="wrong", compare="no")
    assert sorted(p.name for p in place.iterdir()) == ["m.made", "n.made"]


def test_a_file_that_cannot_be_read_back_says_so(made, place):
    x = torch.randn(2, 64)
    message = refusal(quantized(), "made", place / "m.made", dummy_input=x, mistake="unreadable")
    assert message == "what was written cannot be read back: 'nothing there'"


def test_a_fault_of_the_plugin_is_said_with_its_origin(made, place):
    assert refusal(quantized(), "made", place / "m.made", mistake="has a fault") == (
        "made (made-for-tests 1.0) failed while it was writing\n  KeyError: 'nothing'"
    )
    assert not list(place.iterdir())


def test_a_failure_leaves_what_was_there(made, place):
    (place / "m.made").write_text("before")
    assert "the disk is full" in refusal(quantized(), "made", place / "m.made", mistake="fails")
    assert [p.read_text() for p in place.iterdir()] == ["before"]


def test_modules_that_are_missing_are_said_with_how_to_install_them(made, place):
    made(needs={"not_there_at_all": "engine[nothing]"})
    assert refusal(quantized(), "made", place / "m.made") == (
        "made needs not_there_at_all\n  pip install 'engine[nothing]'"
    )
    made(reader={"not_there_at_all": "engine[nothing]"})
    with pytest.warns(
        UserWarning, match=r"m\.made was not compared .* not_there_at_all is not inst"
    ):
        quantized().export("made", place / "m.made", dummy_input=torch.randn(2, 64))


def test_before_compress_and_after_unwrap_nothing_is_exported(made, place):
    quantizer = quantized()
    quantizer.unwrap()
    assert "call compress() before" in refusal(quantizer, "made", place / "m.made")


# -- the source --------------------------------------------------------------------------------


def test_a_weight_that_is_not_on_the_stated_grid_is_refused_by_layer():
    class Off(engine.Quantizer):
        def quantize_weight(self, weight, wrapper):
            wrapper.set_attribute("weight_scale", torch.tensor(1.0))
            wrapper.set_attribute("weight_zero_point", torch.tensor(0.0))
            wrapper.weight_qmin, wrapper.weight_qmax = -8, 7
            return weight * 0 + 0.4

    quantizer = Off(nn.Linear(4, 2), [{**ENTRY, "quant_bits": 4}])
    quantizer.compress()
    with pytest.raises(engine.ExportError, match="not on the grid that affine_form"):
        Source(quantizer).layers[""].integers()


def test_integers_and_scales_are_the_weight_again():
    for scheme in ("per_tensor_affine", "per_channel_symmetric", "per_group_affine"):
        for bits in (2, 4, 8):
            (layer, _) = Source(quantized(quant_scheme=scheme, quant_bits=bits)).layers.values()
            integers, form = layer.integers()
            torch.testing.assert_close(form.values(integers), layer.weight(), rtol=1e-6, atol=0)
            assert integers.min() >= form.qmin
            assert integers.max() <= form.qmax


def test_nan_is_said_with_the_layer():
    quantizer = quantized()
    with torch.no_grad():
        quantizer.wrappers[0].weight[0, 0] = float("nan")
    with pytest.raises(engine.ExportError, match='layer "0": the weight holds NaN'):
        Source(quantizer).layers["0"].integers()


def test_tensors_are_what_the_model_computes_with_and_shared_ones_come_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    source = Source(pruned(model))
    found = dict(source.tensors())
    assert list(found) == ["0.weight", "0.bias", "2.bias"]
    assert source.aliases == {"2.weight": "0.weight"}
    assert (found["0.weight"] == 0).float().mean() == 0.5


def test_masks_that_the_model_only_computes_are_in_the_tensors():
    class Soft(engine.Pruner):
        straight_through, one_shot = True, True

        def calc_mask(self, wrapper):
            return {"weight_mask": torch.eye(4)}

    pruner = Soft(nn.Linear(4, 4), [{"op_types": ["Linear"], "sparsity": 0.5}])
    model = pruner.compress()
    model(torch.randn(1, 4))
    found = Source(pruner).tensor("weight")
    assert torch.equal(found, model.weight.detach())
    assert torch.equal(found != 0, torch.eye(4) != 0)


def test_the_protocol_has_defaults_that_say_what_is_missing():
    exporter = Exporter(option=3)
    assert exporter.option == 3
    assert list(exporter.refusals(None)) == []
    assert Refused("a", "b")._fields == ("layer", "reason")
    with pytest.raises(NotImplementedError):
        exporter.write(None, None)


# -- a folder ----------------------------------------------------------------------------------


def test_a_folder_replaces_an_earlier_export_and_nothing_else(tmp_path):
    from engine.files.folder import write_folder

    def write(text):
        return lambda folder: (folder / "a").write_text(text)

    target = tmp_path / "folder"
    write_folder(target, write("one"))
    write_folder(target, write("two"))
    assert (target / "a").read_text() == "two"
    (target / "mine").write_text("precious")
    with pytest.raises(engine.ExportError, match="other files in it, mine among them"):
        write_folder(target, write("three"))
    assert (target / "a").read_text() == "two"
    (tmp_path / "file").write_text("")
    with pytest.raises(engine.ExportError, match="it is a file, a folder is to be written"):
        write_folder(tmp_path / "file", write("four"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_that_fails_leaves_the_former_one(tmp_path):
    from engine.files.folder import write_folder

    write_folder(tmp_path / "folder", lambda folder: (folder / "a").write_text("one"))

    def fails(folder):
        (folder / "a").write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(engine.ExportError, match="the disk is full; nothing was left there"):
        write_folder(tmp_path / "folder", fails)
    assert (tmp_path / "folder" / "a").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
