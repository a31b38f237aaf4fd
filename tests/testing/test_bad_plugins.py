"""Whatever a plugin does wrong, its user learns who it was, and training is not corrupted."""

import copy

import pytest
import torch
from made import CODE, made, schema_of
from models import mlp

import engine
from engine import PluginError, cli, hookimpl
from engine.algorithms import AGPPruner, LevelPruner, NaiveQuantizer
from engine.plugins import registry

HALF = [{"sparsity": 0.5, "op_types": ["Linear"]}]
EIGHT_BITS = [{"quant_types": ["weight"], "quant_bits": 8, "op_types": ["Linear"]}]

FAILS = """

class Fails(Sound):
    one_shot = False
    fails_in = ""

    def _fail(self, hook):
        if self.fails_in == hook:
            raise ValueError("not today")

    def sparsity(self, wrapper, epoch):
        self._fail("sparsity")
        return super().sparsity(wrapper, epoch)

    def calc_mask(self, wrapper, sparsity):
        if wrapper.name == "2":
            self._fail("calc_mask")
        return super().calc_mask(wrapper, sparsity)

    def before_step(self):
        self._fail("before_step")

    def step(self):
        self._fail("step")

    def update_epoch(self, epoch):
        self._fail("update_epoch")

    def masks_updated(self):
        self._fail("masks_updated")


class FailsToQuantize(SoundQuantizer):
    fails_in = ""

    def quantize_weight(self, weight, wrapper):
        if self.fails_in == "quantize_weight" and wrapper.name == "2":
            raise ValueError("not today")
        return super().quantize_weight(weight, wrapper)

    def quant_backward(self, tensor, grad_output):
        if self.fails_in == "quant_backward":
            raise ValueError("not today")
        return grad_output


class WatcherThatFails:
    fails_in = ""

    def _fail(self, hook):
        if self.fails_in == hook:
            raise ValueError("not today")

    @hookimpl
    def before_step(self):
        self._fail("before_step")

    @hookimpl
    def step(self):
        self._fail("step")

    @hookimpl
    def update_epoch(self, epoch):
        self._fail("update_epoch")

    @hookimpl(wrapper=True)
    def calc_mask(self, wrapper):
        masks = yield
        if wrapper.name == "2":
            self._fail("calc_mask")
        return masks
"""
LAYERED = {"sparsity": "0", "calc_mask": "2", "quantize_weight": "2"}


class Run:
    """A model, its optimizer, and a compressor with a plugin that can be told to fail."""

    def __init__(self, make):
        torch.manual_seed(0)
        self.model = mlp()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05, weight_decay=0.1)
        self.compressor = make(self.model, self.optimizer)
        self.compressor.compress()

    def epoch(self, number):
        self.compressor.update_epoch(number)
        for batch in range(2):
            torch.manual_seed(100 * number + batch)
            self.optimizer.zero_grad()
            self.model(torch.randn(4, 8)).square().sum().backward()
            self.optimizer.step()

    def weights(self):
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def assert_masks_hold(compressor):
    for wrapper in compressor.get_modules_wrapper():
        mask = wrapper.mask("weight")
        assert int((mask == 0).sum()) == mask.numel() // 2
        assert not wrapper.weight[mask == 0].any()


@pytest.mark.parametrize(
    "hook", ["sparsity", "calc_mask", "before_step", "step", "update_epoch", "masks_updated"]
)
def test_an_algorithm_that_fails_in_training_is_named_and_masks_hold(site, hook):
    cls = made(site, "Fails", "pruner", code=CODE + FAILS).load()
    run = Run(lambda model, optimizer: cls(model, HALF, optimizer))
    run.epoch(0)
    run.compressor.fails_in = hook
    with pytest.raises(PluginError) as caught:
        run.epoch(1)
    layer = LAYERED.get(hook)
    where = f' for layer "{layer}" (Linear)' if layer else ""
    lines = str(caught.value).splitlines()
    assert lines[0] == f"made (made-for-tests 1.0) failed in {hook}{where}: ValueError: not today"
    assert lines[1].startswith(f"  at {site.folder}/made_for_tests/__init__.py, line ")
    assert lines[2] == "  tell the authors of made-for-tests; engine check made"
    error = caught.value
    assert (error.plugin, error.distribution) == ("made", "made-for-tests 1.0")
    assert (error.hook, error.layer) == (hook, layer)
    assert isinstance(error.__cause__, ValueError)
    assert_masks_hold(run.compressor)
    assert all(wrapper.config["sparsity"] == 0.5 for wrapper in run.compressor.wrappers)


@pytest.mark.parametrize("hook", ["calc_mask", "before_step", "step", "update_epoch"])
def test_an_extension_that_fails_is_named_not_the_algorithm(site, hook):
    cls = made(site, "WatcherThatFails", "constraint", code=CODE + FAILS).load()
    extension = cls()

    class EveryStep(LevelPruner):
        one_shot = False

    run = Run(lambda model, optimizer: EveryStep(model, HALF, optimizer, extensions=[extension]))
    run.epoch(0)
    extension.fails_in = hook
    with pytest.raises(PluginError) as caught:
        run.epoch(1)
    assert str(caught.value).startswith(f"made (made-for-tests 1.0) failed in {hook}")
    assert (caught.value.plugin, caught.value.layer) == ("made", LAYERED.get(hook))
    assert_masks_hold(run.compressor)


@pytest.mark.parametrize("hook", ["quantize_weight", "quant_backward"])
def test_a_quantizer_that_fails_is_named_with_its_layer(site, hook):
    cls = made(site, "FailsToQuantize", "quantizer", code=CODE + FAILS).load()
    run = Run(lambda model, optimizer: cls(model, EIGHT_BITS, optimizer))
    run.epoch(0)
    before = run.weights()
    run.compressor.fails_in = hook
    with pytest.raises(PluginError) as caught:
        run.epoch(1)
    assert str(caught.value).startswith(
        f'made (made-for-tests 1.0) failed in {hook} for layer "2" (Linear): ValueError: not today'
    )
    assert all(map(torch.equal, before, run.weights()))


def test_after_a_failure_training_goes_on_as_if_the_step_had_not_been(site):
    """before_step fails before the optimizer: a step that is tried again is the same step."""
    cls = made(site, "Fails", "pruner", code=CODE + FAILS).load()
    plain, failing = (Run(lambda model, optimizer: cls(model, HALF, optimizer)) for _ in range(2))
    plain.epoch(0)
    failing.compressor.fails_in = "before_step"
    with pytest.raises(PluginError):
        failing.epoch(0)
    failing.compressor.fails_in = ""
    failing.epoch(0)
    assert all(map(torch.equal, plain.weights(), failing.weights()))


def test_a_failing_watcher_keeps_no_other_plugin_from_being_told(site):
    cls = made(site, "WatcherThatFails", "constraint", code=CODE + FAILS).load()
    heard = []

    class Hears:
        @hookimpl
        def step(self):
            heard.append("step")

        @hookimpl
        def restore_model(self):
            heard.append("restore_model")

    watcher = cls()
    watcher.fails_in = "step"
    extensions = [Hears(), watcher, Hears()]
    run = Run(lambda model, optimizer: LevelPruner(model, HALF, optimizer, extensions=extensions))
    with pytest.raises(PluginError, match="failed in step"):
        run.epoch(0)
    assert heard == ["step", "step"]
    run.compressor.unwrap()
    assert heard[2:] == ["restore_model"] * 2


def test_the_epoch_of_a_failed_update_still_gets_its_masks(site):
    cls = made(site, "WatcherThatFails", "constraint", code=CODE + FAILS).load()
    watcher = cls()
    entries = [{"final_sparsity": 0.5, "end_epoch": 1, "op_types": ["Linear"]}]
    run = Run(lambda model, optimizer: AGPPruner(model, entries, optimizer, extensions=[watcher]))
    run.epoch(0)
    watcher.fails_in = "update_epoch"
    with pytest.raises(PluginError):
        run.epoch(1)
    watcher.fails_in = ""
    run.optimizer.zero_grad()
    run.model(torch.randn(4, 8)).sum().backward()
    run.optimizer.step()
    assert_masks_hold(run.compressor)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("mask * float('nan')", "returned 'weight_mask' with values that are neither 0 nor 1"),
        ("mask.float() / 2", "returned 'weight_mask' with values that are neither 0 nor 1"),
        ("mask[:, :3]", "returned 'weight_mask' of shape"),
        ("[1, 0]", "returned 'weight_mask' as a list"),
    ],
)
def test_a_mask_that_an_extension_has_spoilt_is_the_extensions(site, spoil, message):
    code = (
        f"{CODE}\n\nclass Spoils:\n    @hookimpl(wrapper=True)\n    def calc_mask(self):\n"
        f"        masks = yield\n        mask = masks['weight_mask']\n"
        f"        return {{'weight_mask': {spoil}}}\n"
    )
    spoils = made(site, "Spoils", "constraint", code=code).load()()

    class Innocent:
        @hookimpl(wrapper=True)
        def calc_mask(self):
            return (yield)

    model = mlp()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    extensions = [Innocent(), spoils, Innocent()]
    with pytest.raises(PluginError) as caught:
        LevelPruner(model, HALF, extensions=extensions).compress()
    assert str(caught.value).startswith(
        'made.calc_mask (made-for-tests 1.0) for layer "0" (Linear) '
    )
    assert message in str(caught.value)
    assert (caught.value.plugin, caught.value.hook) == ("made", "calc_mask")
    assert caught.value.distribution == "made-for-tests 1.0"
    assert all(map(torch.equal, before, model.parameters()))


def test_a_sparsity_that_an_extension_has_spoilt_is_the_extensions(site):
    code = (
        f"{CODE}\n\nclass Asks:\n    @hookimpl(wrapper=True)\n    def sparsity(self):\n"
        "        return (yield) + 1\n"
    )
    asks = made(site, "Asks", "constraint", code=code).load()()
    with pytest.raises(PluginError) as caught:
        LevelPruner(mlp(), HALF, extensions=[asks]).compress()
    assert str(caught.value) == (
        'made (made-for-tests 1.0) asked for a sparsity of 1.5 in layer "0"; it must be in [0, 1]'
    )


def test_running_out_of_memory_stays_what_it_is():
    """Loops that try a smaller batch wait for this error."""

    class Greedy(NaiveQuantizer):
        def quantize_weight(self, weight, wrapper):
            raise torch.OutOfMemoryError("no memory")

    model = mlp()
    Greedy(model, EIGHT_BITS).compress()
    with pytest.raises(torch.OutOfMemoryError):
        model(torch.randn(2, 8))


def test_one_instance_given_twice_is_refused_and_the_model_left_alone():
    class Watches:
        @hookimpl
        def step(self):
            pass

    watcher, model = Watches(), mlp()
    keys = [set(vars(module)) for module in model.modules()]
    with pytest.raises(PluginError) as caught:
        LevelPruner(model, HALF, extensions=[watcher, Watches(), watcher]).compress()
    assert str(caught.value) == (
        "Watches is given twice\n"
        "  an extension stands in a stack once; make another instance for another use"
    )
    assert keys == [set(vars(module)) for module in model.modules()]


def test_a_plugin_that_registers_twice_in_one_distribution_is_broken(site, capsys):
    site.package("twin", code=CODE, schema=schema_of("pruner"))
    site.distribution("twin", algorithms=[("x", "twin:Sound"), ("x", "twin:RemovesTooMuch")])
    with pytest.raises(engine.ConfigError, match="twin offers it twice: twin:Sound, twin:Removes"):
        engine.create_compressor(mlp(), {"compressor": "x", "config_list": HALF})
    assert cli.main(["check", "x"]) == 1
    assert "twin offers it twice" in capsys.readouterr().out


def test_a_stranger_with_the_name_of_a_built_in_changes_nothing(site):
    site.package("other", code=CODE, schema=schema_of("pruner"))
    site.distribution("other-plugin", algorithms=[("level", "other:AlwaysRemovesHalf")])
    config = {"compressor": "level", "config_list": [{"sparsity": 0.25, "op_types": ["Linear"]}]}
    assert type(engine.create_compressor(mlp(), config)) is LevelPruner
    theirs = engine.create_compressor(mlp(), {**config, "compressor": "other-plugin:level"})
    assert type(theirs).__name__ == "AlwaysRemovesHalf"
    (row,) = [p for p in registry.algorithms() if p.distribution == "other-plugin"]
    assert row.status == "clash"


def test_a_schema_that_is_no_json_schema_is_the_plugins_fault(site, capsys):
    schema = copy.deepcopy(schema_of("pruner"))
    schema["$defs"]["entry"]["properties"]["sparsity"] = {"type": "nmber"}
    made(site, "Sound", "pruner", schema=schema)
    model = mlp()
    with pytest.raises(PluginError) as caught:
        engine.create_compressor(model, {"compressor": "made", "config_list": HALF})
    assert str(caught.value).startswith(
        "made (made-for-tests 1.0) is broken: schema.json cannot be used\n"
    )
    assert caught.value.distribution == "made-for-tests 1.0"
    assert cli.main(["check", "made"]) == 1
    report = " ".join(capsys.readouterr().out.split())
    assert "'nmber' is not valid under any of the given schemas" in report
    # What needs the schema is skipped.
    assert report.count(" failed ") < 5, report


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        (
            "import surely_not_installed",
            [
                "  ModuleNotFoundError: No module named 'surely_not_installed'",
                '  see the traceback with: python -c "import made_for_tests"',
                "  install what it needs: surely_not_installed, or made-for-tests again with its "
                "dependencies",
            ],
        ),
        (
            "raise ValueError('never')",
            [
                "  ValueError: never",
                '  see the traceback with: python -c "import made_for_tests"',
            ],
        ),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named_and_others_work(site, code, lines):
    made(site, "Sound", "pruner", code=code)
    model = mlp()
    config = {"compressor": "made", "config_list": HALF}
    with pytest.raises(PluginError) as caught:
        engine.create_compressor(model, config)
    assert str(caught.value).splitlines() == [
        "made (made-for-tests 1.0) cannot be imported",
        *lines,
    ]
    engine.create_compressor(model, {**config, "compressor": "level"}).compress()


def test_the_command_line_shows_no_traceback_for_any_of_them(site, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made(site, "Sound", "pruner", code="raise ValueError('never')")
    (tmp_path / "net.py").write_text("from torch import nn\ndef build(): return nn.Linear(2, 2)\n")
    (tmp_path / "c.yaml").write_text(
        "compressor: made\nconfig_list: [{sparsity: 0.5, op_types: [Linear]}]\n"
    )
    assert cli.main(["validate", "c.yaml"]) == 0  # without importing it
    capsys.readouterr()
    assert cli.main(["validate", "c.yaml", "--model", "net:build"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("made (made-for-tests 1.0) cannot be imported\n  ValueError: never\n")
    assert "Traceback" not in errors


def test_a_model_is_unpickled_although_some_other_plugin_is_broken(site):
    """What is pickled with a model must not lead to the registry, which holds every fault."""
    import pickle

    site.plugin("unusable", "broken-plugin", schema=None)
    assert any(plugin.status == "broken" for plugin in registry.algorithms())
    model = mlp(4, 3)
    NaiveQuantizer(model, EIGHT_BITS).compress()
    again = pickle.loads(pickle.dumps(model))
    x = torch.randn(2, 4)
    assert torch.equal(again(x), model(x))


MISTAKES = """
from engine import Pruner

class TakesWhatIsNotThere(Sound):
    def calc_mask(self, wrapper, sparsty):
        return super().calc_mask(wrapper, sparsty)


class HasNoMask(Pruner):
    def calc_masks(self, wrapper, sparsity):
        return {}


class ReturnsARow(SoundQuantizer):
    def quantize_weight(self, weight, wrapper):
        return super().quantize_weight(weight, wrapper)[0]
"""


@pytest.mark.parametrize(
    ("name", "role", "message", "hook"),
    [
        (
            "TakesWhatIsNotThere",
            "pruner",
            "made.calc_mask (made-for-tests 1.0) takes an argument 'sparsty' that the hook does "
            "not have\n",
            "calc_mask",
        ),
        (
            "HasNoMask",
            "pruner",
            "made (made-for-tests 1.0) has no calc_mask, which every pruner needs\n",
            "calc_mask",
        ),
        (
            "ReturnsARow",
            "quantizer",
            'made.quantize_weight (made-for-tests 1.0) for layer "0" (Linear) returned a tensor of '
            "shape (8,)\n",
            "quantize_weight",
        ),
    ],
)
def test_an_authors_mistake_names_the_distribution(site, name, role, message, hook):
    cls = made(site, name, role, code=CODE + MISTAKES).load()
    compressor = cls(mlp(), HALF if role == "pruner" else EIGHT_BITS)
    with pytest.raises(PluginError) as caught:
        compressor.compress()(torch.randn(2, 8))
    assert str(caught.value).startswith(message)
    assert (caught.value.plugin, caught.value.distribution) == ("made", "made-for-tests 1.0")
    assert caught.value.hook == hook
