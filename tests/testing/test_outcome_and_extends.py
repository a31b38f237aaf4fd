"""What a schema may say: that sparsity is found, and that it builds upon another."""

import copy

import pytest
import torch
from made import CODE, made, schema_of
from torch import nn

import engine
from engine import ConfigError, PluginError, cli
from engine.plugins import registry
from engine.testing import check_plugin
from engine.testing.outcome import FAILED, OK, SKIPPED, run
from engine.testing.subject import Subject
from engine.testing.suite import CHECKS, find

OUTCOME = (
    CODE
    + '''

class BelowThreshold(Pruner):
    """Removes what is small beside the mean; how much that is follows from the weights."""

    def calc_mask(self, wrapper):
        magnitude = wrapper.weight.detach().abs()
        return {"weight_mask": magnitude > wrapper.config["threshold"] * magnitude.mean()}


class FoundInWalk(Pruner):
    one_shot = True

    def calibrate_layer(self, wrapper, inputs, sparsity):
        from engine.calibration import LayerResult

        assert sparsity == 1.0
        return LayerResult(mask=wrapper.weight.abs() > wrapper.config["threshold"])


class SaysNothing(BelowThreshold):
    def _note_sparsity(self):
        pass
'''
)


def outcome_schema(**facts):
    schema = schema_of("pruner")
    schema["x-engine"] |= {"sparsity": "outcome", "api": "1.1", **facts}
    schema["$defs"]["entry"]["properties"].pop("sparsity")
    schema["$defs"]["entry"]["properties"]["threshold"] = {
        "description": "What is removed is below so many times the mean",
        "type": "number",
        "minimum": 0,
        "default": 0.7,
    }
    schema["$defs"]["entry"]["required"] = []
    schema["examples"] = [{"config_list": [{"op_types": ["default"]}]}]
    return schema


def outcome(site, cls="BelowThreshold", **facts):
    return made(site, cls, "pruner", schema=outcome_schema(**facts), code=OUTCOME)


def check_named(name):
    return next(each for each in CHECKS if each.name == name)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


# -- sparsity that is found --------------------------------------------------------------------


def test_it_needs_no_sparsity_and_says_what_it_found(site):
    outcome(site)
    model = net()
    config = {"compressor": "made", "config_list": [{"op_types": ["Linear"], "threshold": 0.5}]}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = engine.create_compressor(model, config, optimizer)
    before = [float((layer.weight.abs() <= 0.5 * layer.weight.abs().mean()).float().mean())
              for layer in (model[0], model[2])]  # fmt: skip
    pruner.compress()
    assert [w.sparsity for w in pruner.wrappers] == pytest.approx(before)
    assert min(before) > 0.1
    model(torch.randn(3, 16)).square().mean().backward()
    optimizer.step()
    for wrapper in pruner.wrappers:
        share = float((wrapper.weight_mask == 0).float().mean())
        assert wrapper.sparsity == pytest.approx(share)
    (state,) = (s for s in engine.layer_states(pruner) if s.name == "0")
    assert state.sparsity == pytest.approx(pruner.wrappers[0].sparsity)


def test_a_one_shot_algorithm_may_find_it_too(site):
    outcome(site, "FoundInWalk", calibration="required")
    config = {"compressor": "made", "config_list": [{"op_types": ["Linear"], "threshold": 0.1}]}
    pruner = engine.create_compressor(net(), config, batches=[torch.randn(4, 16)])
    dense = copy.deepcopy(pruner.bound_model)
    model = pruner.compress()
    assert torch.equal(model[0].weight != 0, dense[0].weight.abs() > 0.1)
    assert pruner.wrappers[0].sparsity == pytest.approx(
        float((model[0].weight == 0).float().mean())
    )


@pytest.mark.slow
def test_it_passes_what_says_something_of_it(site):
    results = {r.name: r for r in check_plugin(outcome(site))}
    assert not [r for r in results.values() if r.outcome == FAILED]
    assert results["removes_what_was_asked"].outcome == OK
    assert results["every_schedule_drives_it"].outcome == OK
    for name in ("zero_sparsity_removes_nothing", "full_sparsity_is_survived"):
        assert results[name].outcome == SKIPPED
        assert "its sparsity is an outcome" in results[name].reason


def test_schedules_and_searches_refuse_it_by_name(site):
    outcome(site)
    entry = {"op_types": ["Linear"], "final_sparsity": 0.5, "end_epoch": 2}
    config = {"compressor": "agp", "pruning_algorithm": "made", "config_list": [entry]}
    expected = (
        r"/pruning_algorithm\n  made finds its sparsity itself\n  agp needs: a pruner that can be "
        r"asked for one; use made alone"
    )
    with pytest.raises(ConfigError, match=expected):
        engine.create_compressor(net(), config)
    with pytest.raises(ConfigError, match="made finds its sparsity itself"):
        engine.algorithms.AGPPruner(net(), [entry], pruning_algorithm=registry.find("made").load())
    entry = {"op_types": ["Linear"], "sparsity": 0.5}
    config = {"compressor": "sensitivity", "base_algo": "made", "config_list": [entry]}
    with pytest.raises(ConfigError, match="made finds its sparsity itself"):
        engine.create_compressor(net(), config, evaluator=lambda model: 1.0)


def test_what_counts_channels_refuses_it(site):
    outcome(site)
    config = {
        "compressor": "made",
        "config_list": [{"op_types": ["Linear"]}],
        "extensions": ["dependency_aware"],
    }
    pruner = engine.create_compressor(net(), config, dummy_input=torch.randn(2, 16))
    with pytest.raises(PluginError, match="made finds its sparsity itself"):
        pruner.compress()


def test_one_that_says_nothing_is_found(site):
    result = run(check_named("removes_what_was_asked"), Subject(outcome(site, "SaysNothing")))
    assert result.outcome == FAILED
    assert 'layer "stem" says 1.0, its mask removes' in result.reason


def test_a_setting_called_sparsity_contradicts(site):
    schema = schema_of("pruner")
    schema["x-engine"]["sparsity"] = "outcome"
    result = run(
        check_named("the_schema_is_complete"), Subject(made(site, "Sound", "pruner", schema))
    )
    assert result.outcome == FAILED
    assert result.reason == 'x-engine.sparsity is "outcome", and an entry has a setting "sparsity"'


@pytest.mark.parametrize(
    ("role", "value", "reason"),
    [
        ("pruner", "found", 'x-engine.sparsity is "found"; it is one of asked, outcome'),
        ("quantizer", "outcome", "x-engine.sparsity is said of what is no pruner"),
        ("schedule", "outcome", "x-engine.sparsity is said of what is no pruner"),
    ],
)
def test_who_may_say_it(site, role, value, reason):
    schema = schema_of(role)
    schema["x-engine"]["sparsity"] = value
    plugin = made(site, "Sound", role, schema)
    assert (plugin.status, plugin.reason) == ("broken", reason)


# -- a schema that builds upon another's -------------------------------------------------------

CHILD = '''
from engine.algorithms import LevelPruner


class Child(LevelPruner):
    """Level, and a bonus."""

    bonus: float
'''
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Level with a bonus",
    "x-engine": {"extends": "level", "api": "1.1", "summary": "Made for a test"},
    "properties": {"bonus": {"description": "What is added", "type": "number", "default": 2.5}},
}


def child(site, **facts):
    schema = copy.deepcopy(SCHEMA)
    schema["x-engine"] |= facts
    return made(site, "Child", "pruner", schema, code=CHILD)


def test_it_has_what_the_other_has_and_its_own(site, capsys):
    plugin = child(site)
    level = registry.find("level")
    assert (plugin.status, plugin.kind, plugin.label) == ("ok", "pruning", "pruner")
    assert plugin.summary == "Made for a test"
    assert not plugin.paper
    assert not plugin.aliases
    assert plugin.schema["$defs"] == level.schema["$defs"]
    assert plugin.schema["examples"] == level.schema["examples"]
    assert "bonus" not in level.schema["properties"]
    config = {"compressor": "made", "config_list": [{"op_types": ["Linear"], "sparsity": 0.5}]}
    model = net()
    pruner = engine.create_compressor(model, {**config, "bonus": 3})
    assert pruner.bonus == 3
    assert engine.create_compressor(net(), config).bonus == 2.5
    pruner.compress()
    assert int((model[0].weight == 0).sum()) == 256
    with pytest.raises(ConfigError, match='unknown key "bonsu"'):
        engine.create_compressor(net(), {**config, "bonsu": 3})
    assert cli.main(["show", "made"]) == 0
    assert "extends       level" in capsys.readouterr().out


def test_it_passes_the_checks_of_its_description(site):
    results = check_plugin(child(site))
    assert not [r for r in results if r.outcome == FAILED and not check_named(r.name).runs_code]


def test_single_words_are_replaced_and_objects_merged(site):
    schema = copy.deepcopy(SCHEMA)
    schema["$defs"] = {"entry": {"properties": {"sparsity": {"default": 0.25}}, "required": []}}
    made(site, "Child", "pruner", schema, code=CHILD)
    config = {"compressor": "made", "config_list": [{"op_types": ["Linear"]}]}
    pruner = engine.create_compressor(net(), config)
    assert pruner.wrappers[0].config["sparsity"] == 0.25


def test_a_line_of_three(site):
    site.package("first", code=CHILD, schema=SCHEMA)
    site.package("second", code=CHILD, schema={**SCHEMA, "x-engine": {
        "extends": "one", "api": "1.1", "summary": "Second"}, "title": "Second",
        "properties": {"more": {"description": "M", "type": "integer", "default": 1}}})  # fmt: skip
    site.distribution("both", algorithms=[("one", "first:Child"), ("two", "second:Child")])
    registry.refresh()
    assert {"config_list", "bonus", "more"} <= set(registry.find("two").schema["properties"])
    assert "more" not in registry.find("one").schema["properties"]


@pytest.mark.parametrize(
    ("extends", "reason"),
    [
        ("lvel", 'x-engine.extends names "lvel", which is not installed'),
        ("other:level", 'x-engine.extends names "other:level", which is not installed'),
        ("made", 'x-engine.extends "made" goes in a circle'),
        (3, "x-engine.extends in schema.json is not text"),
    ],
)
def test_what_cannot_be_built_upon(site, extends, reason):
    plugin = child(site, extends=extends)
    assert (plugin.status, plugin.reason) == ("broken", reason)


def test_a_strangers_plugin_of_the_same_name_is_not_meant(site):
    site.package("strange", code=CHILD, schema={**SCHEMA, "x-engine": {
        "extends": "engine:fpgm", "api": "1.1", "summary": "Strange"}})  # fmt: skip
    site.distribution("strangers", algorithms=[("level", "strange:Child")])
    plugin = child(site)
    assert plugin.schema["$defs"] == find("engine:level").schema["$defs"]


# -- neighbours --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "check", "neighbour", "role"),
    [
        ("agp", "it_drives_every_pruner", "NeverRemovesAll", "pruner"),
        ("level", "every_schedule_drives_it", "NeverArrives", "schedule"),
        ("level", "it_composes_with_quantizers", "DividesByTheMaximum", "quantizer"),
        pytest.param(
            *("log", "it_works_with_every_algorithm", "CannotHalf", "pruner"),
            marks=pytest.mark.slow,
        ),
        ("fpgm", "it_composes_with_constraints", "MasksNormsOnly", "constraint"),
    ],
)
def test_the_verdict_does_not_depend_on_neighbours(site, name, check, neighbour, role):
    alone = run(check_named(check), Subject(find(name)))
    made(site, neighbour, role)
    beside = run(check_named(check), Subject(find(name)))
    assert (beside.outcome, beside.reason) == (alone.outcome, alone.reason)
    assert beside.outcome == OK


def test_a_clash_of_names_is_told_and_no_fault(site):
    made(site, "Sound", "pruner")
    site.plugin("made", "other", schema=schema_of("pruner"))
    (plugin,) = [p for p in registry.algorithms() if p.distribution == "made-for-tests"]
    assert plugin.status == "clash"
    result = run(check_named("it_is_usable"), Subject(plugin))
    assert result.outcome == OK
    assert result.reason.startswith("here its name clashes: also offered by other 1.0")
