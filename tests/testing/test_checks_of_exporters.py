"""Each check of exporters finds the fault that it is there for, and no other."""

from pathlib import Path

import pytest
from made import made

from engine.testing import check_plugin

CODE = (Path(__file__).parent / "faulty_exporters.py").read_text()
READ = "what_it_can_hold_is_read_back"
REFUSED = "what_it_cannot_hold_is_refused"
ALONE = "it_leaves_the_model_as_it_was"
PLACE = "it_writes_its_file_and_nothing_else"
BEFORE = "a_failure_leaves_what_was_there"


def schema(**facts):
    expresses = {
        "kinds": ["quantization"],
        "layers": ["Linear"],
        "weights": ["per_channel_symmetric"],
        "bits": [8],
        "activations": False,
    }
    about = {"kind": "exporter", "api": "1.0", "summary": "Made for a test", "endings": [".bin"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Made for a test",
        "x-engine": {**about, "expresses": expresses, **facts},
        "type": "object",
        "properties": {},
        "additionalProperties": False,
        "examples": [{}],
    }


def outcomes(site, cls, **facts):
    plugin = made(site, cls, "exporter", schema(**facts), CODE)
    return {result.name: result for result in check_plugin(plugin)}


def failed(results):
    return {name for name, result in results.items() if result.outcome == "failed"}


def test_a_right_one_passes_all_of_them(site):
    results = outcomes(site, "Right")
    assert {result.outcome for result in results.values()} == {"ok"}
    assert results[READ].reason == "8 bits per_channel_symmetric"
    assert results[REFUSED].reason == (
        "pruned; 8 bits per_channel_affine; 4 bits per_channel_symmetric; "
        "8 bits per_channel_symmetric, activations; convolutions"
    )
    assert results[PLACE].reason == "model.bin"


@pytest.mark.parametrize(
    ("cls", "names", "reason"),
    [
        ("ReadsSomethingElse", {READ}, "8 bits per_channel_symmetric: output 0 is off by"),
        ("ChangesTheModel", {ALONE}, "the mode of the model changed"),
        ("ChangesAWeight", {READ, ALONE}, "a tensor of the model changed"),
        ("WritesBeside", {PLACE}, "it also wrote notes.txt"),
        ("WritesNothing", {READ, PLACE}, "it wrote nothing"),
        ("WritesInPlace", {BEFORE}, "a failing export changed what was there"),
    ],
)
def test_a_fault_is_found(site, cls, names, reason):
    results = outcomes(site, cls)
    assert failed(results) == names
    assert any(reason in results[name].reason for name in names)


def test_a_reader_that_is_not_there_is_said(site):
    results = outcomes(site, "Right", reader={"not_there_at_all": "nothing"})
    assert results[READ].outcome == "skipped"
    assert results[READ].reason == "its reader is not installed: not_there_at_all"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"endings": []}, "x-engine.endings names no endings of files"),
        ({"expresses": {}}, "x-engine.expresses says nothing of what the format holds"),
        (
            {"expresses": {"bit": [4]}},
            'x-engine.expresses has an unknown key "bit", did you mean "bits"?',
        ),
    ],
)
def test_a_schema_that_says_too_little_is_found(site, facts, reason):
    plugin = made(site, "Right", "exporter", schema(**facts), CODE)
    (result,) = check_plugin(plugin, only=["the_schema_is_complete"])
    assert (result.outcome, result.reason) == ("failed", reason)
