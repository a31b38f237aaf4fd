"""What listing a plugin cannot see is found by a check: schema, metadata, import."""

import re

import pytest
from made import CODE, made, schema_of

from engine.testing import CHECKS
from engine.testing.outcome import FAILED, OK, SKIPPED, run
from engine.testing.subject import Subject


def outcome(plugin, name):
    check = next(each for each in CHECKS if each.name == name)
    assert not check.runs_code
    result = run(check, Subject(plugin))
    return result.outcome, result.reason


def schema(change, role="pruner"):
    result = schema_of(role)
    change(result)
    return result


def argument(**more):
    def change(result):
        result["properties"]["how"] = {"description": "How", "type": "integer", **more}

    return change


def facts(**more):
    return lambda result: result["x-engine"].update(more)


FAULTS = [
    (
        "the_schema_is_json_schema",
        lambda s: s.update(type="objekt"),
        '/: unknown type "objekt", did you mean "object"?',
    ),
    (
        "the_schema_is_json_schema",
        argument(minimun=3),
        '/properties/how: unknown keyword "minimun", did you mean "minimum"?',
    ),
    (
        "the_schema_is_json_schema",
        argument(type="xyz"),
        '/properties/how: unknown type "xyz", known',
    ),
    ("the_schema_is_json_schema", argument(type=3), "/properties/how"),
    ("the_schema_is_json_schema", argument(minimum="3"), "/properties/how/minimum: '3' is not"),
    (
        "the_schema_is_json_schema",
        argument(**{"$ref": "#/$defs/gone"}),
        'the reference "#/$defs/gone" leads nowhere',
    ),
    ("the_schema_is_complete", lambda s: s.pop("title"), 'there is no "title"'),
    ("the_schema_is_complete", facts(summary=""), "x-engine.summary is empty"),
    ("the_schema_is_complete", facts(summary="x" * 71), "has 71 characters; 70 fit"),
    ("the_schema_is_complete", facts(paper={"title": "A"}), "x-engine.paper lacks authors, year"),
    (
        "the_schema_is_complete",
        facts(paper={"title": "A", "authors": "B", "year": 2000}),
        "x-engine.paper has no arxiv and no url",
    ),
    ("the_schema_is_complete", argument(description=""), '"how" has no description'),
    (
        "the_schema_is_complete",
        lambda s: s["properties"].update(how={"description": "How"}),
        '"how" has no type',
    ),
    (
        "the_schema_is_complete",
        lambda s: s.pop("additionalProperties"),
        "misspelt arguments pass",
    ),
    (
        "the_schema_is_complete",
        lambda s: s["$defs"]["entry"].pop("additionalProperties"),
        "an entry allows any setting",
    ),
    ("the_schema_is_complete", lambda s: s.pop("examples"), "there are no"),
    (
        "the_schema_is_complete",
        facts(check={"expected_failures": {"ties_do_not_overshot": "why"}}),
        'there is no check "ties_do_not_overshot", did you mean "ties_do_not_overshoot"?',
    ),
    ("the_schema_is_complete", facts(check={"modle": 1}), "x-engine.check has unknown keys: modle"),
    (
        "defaults_are_valid",
        argument(minimum=3, default=2),
        'the default of "how" is not valid: 2 is less than the minimum of 3',
    ),
    (
        "examples_are_valid",
        lambda s: s["examples"][0].update(how=3),
        r'(?s)/how.*unknown key "how"|unknown argument "how"',
    ),
    (
        "examples_are_valid",
        lambda s: s["examples"][0]["config_list"][0].update(sparsity=2),
        r"(?s)/config_list/0/sparsity.*2 is out of range",
    ),
]


@pytest.mark.parametrize(("check", "change", "message"), FAULTS)
def test_a_fault_of_the_schema_is_found(site, check, change, message):
    found, reason = outcome(made(site, "Sound", "pruner", schema(change)), check)
    assert found == FAILED
    assert message in reason or re.search(message, reason), reason


def test_an_example_of_an_extension_is_checked(site):
    def change(result):
        argument()(result)
        result["examples"] = [{"how": "much"}]

    found, reason = outcome(
        made(site, "DisturbsTraining", "watcher", schema(change, "watcher")), "examples_are_valid"
    )
    assert (found, reason) == (FAILED, "example 0: 'much' is not of type 'integer'")


@pytest.mark.parametrize(
    "check", sorted({each.name for each in CHECKS if not each.runs_code} - {"it_is_usable"})
)
def test_a_sound_description_passes(site, check):
    found, reason = outcome(made(site, "Sound", "pruner"), check)
    assert found == OK, reason


def test_a_broken_plugin_is_not_usable_and_that_is_said_once(site):
    plugin = made(site, "Sound", "pruner", schema="{")
    assert outcome(plugin, "it_is_usable")[0] == FAILED
    assert outcome(plugin, "the_schema_is_complete") == (SKIPPED, "the plugin is not usable")


def test_a_plugin_that_shadows_a_built_in_is_not_usable_by_its_name(site):
    site.plugin("level", "other")
    from engine.plugins import registry

    (plugin,) = [p for p in registry.algorithms() if p.distribution == "other"]
    assert outcome(plugin, "it_is_usable") == (
        FAILED,
        'clash: also offered by engine 0.1.0; this one is "other:level"',
    )


def test_an_entry_that_names_a_missing_class_is_found(site):
    found, reason = outcome(made(site, "Sund", "pruner"), "its_class_is_of_its_kind")
    assert found == FAILED
    assert "AttributeError: module 'made_for_tests' has no attribute 'Sund'" in reason


@pytest.mark.parametrize(
    ("cls", "role", "message"),
    [
        ("Sound", "quantizer", "Sound is no subclass of engine.Quantizer"),
        ("SoundQuantizer", "pruner", "SoundQuantizer is no subclass of engine.Pruner"),
        ("NeverArrives", "pruner", 'x-engine.role must be "schedule"'),
        ("Hookless", "watcher", "the extension Hookless has no hook"),
    ],
)
def test_a_class_of_another_kind_is_found(site, cls, role, message):
    code = CODE + "\n\nclass Hookless:\n    pass\n"
    plugin = made(site, cls, role, code=code)
    found, reason = outcome(plugin, "its_class_is_of_its_kind")
    assert found == FAILED
    assert message in reason


def test_a_requirement_that_is_not_installed_is_found(site):
    plugin = made(site, "Sound", "pruner")
    (metadata,) = site.folder.glob("*.dist-info/METADATA")
    metadata.write_text(
        "Metadata-Version: 2.1\nName: made-for-tests\nVersion: 1.0\n"
        "Requires-Dist: torch>=2\nRequires-Dist: surely.not_installed>=3\n"
        'Requires-Dist: other; extra == "more"\n'
    )
    assert outcome(plugin, "its_requirements_are_installed") == (
        FAILED,
        "made-for-tests requires surely.not_installed>=3: pip install surely.not_installed>=3",
    )


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('hello')", "importing it changes: what is printed"),
        ("import torch; torch.manual_seed(3)", "torch's random numbers"),
        ("import torch; torch.set_default_dtype(torch.float64)", "torch's default dtype"),
        ("import random; random.seed(1)", "random's numbers"),
        ("import os; os.environ['A'] = 'b'", "environment variables"),
        ("open('log.txt', 'w').close()", "files in the working folder"),
        ("import sys; sys.path.append('/')", "sys.path"),
        ("import warnings; warnings.simplefilter('ignore')", "warning filters"),
        ("import logging; logging.basicConfig()", "logging's root"),
        ("from torch import nn; nn.Linear.forward = lambda *a: None", "methods of torch's classes"),
        (
            "from torch.optim.optimizer import register_optimizer_step_post_hook as r\n"
            "r(lambda *a: None)",
            "torch's hooks on all optimizers",
        ),
        ("import surely_not_installed", "ModuleNotFoundError: No module named 'surely_not_"),
        ("raise ValueError('never')", "it cannot be imported: ValueError: never"),
        ("import sys; sys.exit(3)", "it cannot be imported: SystemExit: 3"),
    ],
)
def test_what_an_import_does_is_found(site, code, message):
    plugin = made(site, "Sound", "pruner", code=f"{code}\n{CODE}")
    found, reason = outcome(plugin, "it_loads_without_side_effects")
    assert found == FAILED
    assert message in reason


def test_what_is_heavy_is_found_and_named(site):
    burn = "import time\nstart = time.process_time()\nwhile time.process_time() < start + 1: pass\n"
    site.package("heavy_things", code=burn, schema=None)
    plugin = made(site, "Sound", "pruner", code=f"import heavy_things\n{CODE}")
    found, reason = outcome(plugin, "it_loads_without_side_effects")
    assert found == FAILED
    assert re.search(r"costs \d+% of importing torch and loads heavy_things: import what", reason)


def test_an_import_that_kills_its_process_is_a_finding(site):
    code = f"import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n{CODE}"
    found, reason = outcome(
        made(site, "Sound", "pruner", code=code), "it_loads_without_side_effects"
    )
    assert found == FAILED
    assert "died" in reason
