"""From a section with search spaces to one configuration for each trial."""

from __future__ import annotations

from typing import Any

from engine.experiment.search.plan import Plan, expand

SPACE = {"range": [0.1, 0.9], "type": "float"}
SECTION: dict[str, Any] = {
    "compressor": "level",
    "rate": {"range": [1, 9], "type": "int"},
    "config_list": [
        {"op_types": ["Linear"], "sparsity": SPACE},
        {"op_names": ["a", "b"], "sparsity": SPACE},
        {"op_names": ["c", "d"], "sparsity": SPACE, "expand_op_names": False},
        {"op_names": ["e", "f"], "sparsity": 0.5},
    ],
}


def names(section: dict[str, Any]) -> list[str]:
    return [each.name for each in Plan.of(section).parameters]


def test_each_name_gets_a_value_unless_the_entry_says_otherwise() -> None:
    assert names(expand(SECTION)) == [
        "rate",
        "sparsity (Linear)",
        "sparsity (a)",
        "sparsity (b)",
        "sparsity (c, d)",
    ]
    entries = expand(SECTION)["config_list"]
    assert all("expand_op_names" not in entry for entry in entries)
    assert entries[-1] == {"op_names": ["e", "f"], "sparsity": 0.5}


def test_with_a_model_layers_of_a_type_are_expanded_too() -> None:
    expanded = expand(SECTION, [["x", "y"], ["a"], ["c", "d"], ["e"]])
    assert names(expanded)[1:4] == ["sparsity (x)", "sparsity (y)", "sparsity (a)"]
    assert expanded["config_list"][0]["op_types"] == ["Linear"]


def test_two_entries_for_one_layer_have_two_names() -> None:
    section = {"config_list": [{"op_names": ["a"], "sparsity": SPACE}] * 2}
    assert names(expand(section)) == ["sparsity (a)", "sparsity (a) #2"]


def test_trials_share_nothing() -> None:
    plan = Plan.of(expand(SECTION))
    values = {each.name: 5 if each.name == "rate" else 0.25 for each in plan.parameters}
    first, second = plan.configuration(values), plan.configuration({**values, "rate": 7})
    first["config_list"][0]["sparsity"] = "changed"
    assert second["config_list"][0]["sparsity"] == 0.25
    assert (first["rate"], second["rate"]) == (5, 7)
    assert plan.section["rate"] == SECTION["rate"]


def test_choices_may_be_any_value() -> None:
    choices = [4, True, "x", None, {"weight": 8}, [1, 2], 1]
    section = {"bits": {"range": choices, "type": "choice"}}
    (one,) = Plan.of(section).parameters
    stored = [one.stored(value) for value in choices]
    assert all(isinstance(value, str | int | float) for value in stored)
    assert [one.value(value) for value in stored] == choices
    assert [type(one.value(value)) for value in stored] == [type(value) for value in choices]


def test_a_section_without_a_list_stays_without_one() -> None:
    assert expand({"compressor": "x", "rate": SPACE}) == {"compressor": "x", "rate": SPACE}
