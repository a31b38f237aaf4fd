import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema.validators import Draft202012Validator
from referencing import Registry, Resource

import engine.config
from engine import config
from engine.config import quick, schema, validator
from engine.config.describe import needs
from engine.errors import ConfigError
from engine.plugins import registry

SHARED = json.loads((Path(engine.config.__file__).parent / "shared.json").read_text())
NAMES = [plugin.name for plugin in registry.algorithms() if plugin.distribution == "engine"]


def stock(document):
    """Return jsonschema's own validator, which knows nothing of our keywords."""
    resources = Registry().with_resource("engine:config", Resource.from_contents(SHARED))
    return Draft202012Validator(document, registry=resources)


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_a_json_schema_and_its_examples_are_valid(name):
    document = registry.find(name).schema
    Draft202012Validator.check_schema(document)
    assert document["examples"]
    for example in document["examples"]:
        entries = [e for e in example["config_list"] if not e.get("exclude")]
        stock(document).validate({**example, "config_list": entries})
        assert config.check({"compressor": name, **example}).entries


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_describes_every_setting_and_argument(name):
    shape = schema.compose(registry.find(name).schema, name)
    for key, value in {**shape.arguments, **shape.entry["properties"]}.items():
        assert value["description"], key
        assert needs(value, key) != "another value", key
        assert not value["description"].endswith("."), key


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_closed(name):
    document = registry.find(name).schema
    assert document["additionalProperties"] is False
    assert document["$defs"]["entry"]["additionalProperties"] is False


def test_what_a_schema_says_of_all_arguments_together_holds():
    def described(*rules):
        arguments = {key: {"type": "integer", "description": key} for key in "abcd"}
        return {"x-engine": {}, "examples": [], "properties": arguments, **dict(rules)}

    one = described(("x-ascending", [["a", "<", "b"]]), ("not", {"required": ["c", "d"]}))
    other = described(("x-ascending", [["c", "<", "d"]]))
    whole = schema.section(schema.compose(one, "one", (other, "other")))
    assert "examples" not in whole
    good = {"a": 1, "b": 2, "config_list": []}
    assert not list(validator.errors(whole, good))
    assert quick.accepts(whole, good) is False, "it leaves to jsonschema what it does not know"
    for bad in ({"a": 2, "b": 2}, {"c": 2, "d": 1}, {"c": 1, "d": 2}):
        assert list(validator.errors(whole, {**good, **bad})), bad


@pytest.mark.parametrize("missing", ["b", "d"])
def test_conditions_of_a_schedule_and_of_its_pruner_both_hold(missing):
    def described(first, second):
        arguments = {key: {"type": "integer", "description": key} for key in (first, second)}
        condition = {"if": {"required": [first]}, "then": {"required": [second]}}
        return {"x-engine": {}, "properties": arguments, **condition}

    composed = schema.compose(described("a", "b"), "one", (described("c", "d"), "other"))
    whole = schema.section(composed)
    good = {"a": 1, "b": 1, "c": 1, "d": 1, "config_list": []}
    assert not list(validator.errors(whole, good))
    bad = {key: value for key, value in good.items() if key != missing}
    assert list(validator.errors(whole, bad))


def test_the_shared_definitions_are_json_schemas():
    for definition in SHARED["$defs"].values():
        Draft202012Validator.check_schema(definition)


def test_keywords_beside_a_reference_hold_as_well():
    root = {"$defs": {"a": {"type": "integer", "minimum": 0, "maximum": 5, "description": "old"}}}
    node = {"$ref": "#/$defs/a", "maximum": 9, "description": "new"}
    assert schema.expand(node, root) == {
        "type": "integer",
        "minimum": 0,
        "maximum": 9,
        "description": "new",
        "allOf": [{"maximum": 5}],
    }


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.floats(-2, 40, allow_nan=False)
    | st.sampled_from(["", "a", "weight", "output", "default", "level", "relu", "1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["weight", "sparsity", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def sections(draw, name):
    """Return a section near the example of an algorithm: some values changed, some left out."""
    example = draw(st.sampled_from(registry.find(name).schema["examples"]))
    shape = schema.compose(registry.find(name).schema, name)

    def vary(mapping, known):
        result = {key: item for key, item in mapping.items() if draw(st.integers(0, 9))}
        for key in draw(st.lists(st.sampled_from([*known, "else"]), max_size=2)):
            result[key] = draw(VALUES)
        return result

    entries = [vary(entry, shape.entry["properties"]) for entry in example["config_list"]]
    return {**vary(example, shape.arguments), "config_list": entries}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_quick_check_and_jsonschema_agree(name, data):
    section = data.draw(sections(name))
    rules = schema.section(schema.compose(registry.find(name).schema, name))
    assert quick.accepts(rules, section) == (not validator.errors(rules, section))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_the_engine_accepts_a_stock_validator_accepts(name, data):
    section = data.draw(sections(name))
    section.pop("pruning_algorithm", None)  # what it is, is another question than its type
    arguments = {key: item for key, item in section.items() if key != "config_list"}
    try:
        entries, _ = config.check_entries(registry.find(name), section["config_list"], arguments)
    except ConfigError:
        return
    kept = [e for e in section["config_list"] if e.get("exclude") is not True]
    if kept:
        stock(registry.find(name).schema).validate({**section, "config_list": kept})
    assert len(entries) >= len(kept)


KEYWORDS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(
            ["integer", "number", "string", "boolean", "array", "object", ["integer", "object"]]
        ),
        "minimum": st.integers(0, 5),
        "exclusiveMaximum": st.integers(0, 5),
        "enum": st.just(["a", 1, None, True]),
        "minLength": st.integers(0, 2),
        "maxItems": st.integers(0, 2),
        "minProperties": st.integers(0, 2),
        "uniqueItems": st.booleans(),
        "items": st.sampled_from([True, False, {"type": "integer"}]),
        "properties": st.just({"x": {"type": "number"}}),
        "required": st.just(["x"]),
        "additionalProperties": st.sampled_from([True, False, {"type": "string"}]),
        "patternProperties": st.just({"^w": {"type": "integer"}}),
        "allOf": st.just([{"maximum": 3}]),
        "anyOf": st.just([{"type": "string"}, {"minimum": 2}]),
        "not": st.just({"type": "null"}),
        "multipleOf": st.just(2),
        "pattern": st.just("^a"),
        "const": st.just(1),
    },
)


@settings(max_examples=500, deadline=None)
@given(rules=KEYWORDS, value=VALUES)
def test_the_quick_check_never_accepts_what_jsonschema_refuses(rules, value):
    if quick.accepts(rules, value):
        assert not validator.errors(rules, value)
        assert Draft202012Validator(rules).is_valid(value)
