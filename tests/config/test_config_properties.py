"""Whatever is in a file, reading and checking it ends in Settings or a ConfigError."""

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import config
from engine.errors import ConfigError
from engine.plugins import registry

JUNK = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 1.5, 10**400, -0.0, 1e308),
        *("", "a", "default", "level", "agp", "engine:level", ":", "x:y:z", "\0", "~/0", "é" * 99),
        *([], {}, [[]], [None], ["a", "a"], {"a": {}}, {"": 1}, {"weight": True}, {"config": []}),
    ]
)
KEYS = st.sampled_from(
    ["", "op_types", "op_name", "exclude", "sparsity", "compression", "compressor", "config", "~"]
)


def documents():
    for plugin in registry.algorithms():
        for example in plugin.schema["examples"]:
            section = {
                "framework": "torch",
                "type": plugin.kind,
                "compressor": plugin.name,
                "extensions": [],
                **example,
            }
            yield {"name": "x", "script": "s.py", "resource": "cpu", "compression": section}


DOCUMENTS = list(documents())


def containers(node):
    if isinstance(node, dict | list):
        yield node
        for child in node.values() if isinstance(node, dict) else node:
            yield from containers(child)


@st.composite
def mutated(draw):
    """Return a valid document with one thing changed, added, renamed or taken away."""
    document = copy.deepcopy(draw(st.sampled_from(DOCUMENTS)))
    where = draw(st.sampled_from(list(containers(document))))
    keys = list(where) if isinstance(where, dict) else list(range(len(where)))
    action = draw(st.sampled_from(["change", "add", "rename", "remove"]))
    if action == "add" or not keys:
        if isinstance(where, dict):
            where[draw(KEYS)] = draw(JUNK)
        else:
            where.append(draw(JUNK))
        return document
    key = draw(st.sampled_from(keys))
    if action == "change":
        where[key] = draw(JUNK)
    elif action == "rename" and isinstance(where, dict):
        where[draw(KEYS)] = where.pop(key)
    else:
        del where[key]
    return document


def ends_well(source):
    error = None
    try:
        config.check(source)
    except ConfigError as raised:
        error = raised
    if error is not None:
        assert error.problems
        assert all(problem.message for problem in error.problems)
        assert "is not valid under any of the given schemas" not in str(error)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(max_examples=400, deadline=None)
@given(mutated())
def test_any_one_mistake_in_python(document):
    before = copy.deepcopy(document)
    ends_well(document)
    assert document == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(document=mutated(), suffix=st.sampled_from(["json", "yaml"]))
def test_any_one_mistake_in_a_file(tmp_path, document, suffix):
    path = tmp_path / f"c.{suffix}"
    path.write_text(json.dumps(document, indent=1))
    ends_well(path)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=200), suffix=st.sampled_from(["json", "yaml", "txt"]))
def test_any_bytes(tmp_path, content, suffix):
    path = tmp_path / f"c.{suffix}"
    path.write_bytes(content)
    ends_well(path)


SYNTAX = st.text(alphabet="ab:-[]{},&*!|>'\"#%@`?~<\n\t 01.e\r", max_size=60)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=SYNTAX, suffix=st.sampled_from(["json", "yaml"]))
def test_any_text_of_yaml_characters(tmp_path, text, suffix):
    path = tmp_path / f"c.{suffix}"
    path.write_text(text)
    ends_well(path)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_file_cut_or_spliced_anywhere(tmp_path, data):
    text = json.dumps(data.draw(st.sampled_from(DOCUMENTS)), indent=1)
    at = data.draw(st.integers(0, len(text)))
    path = tmp_path / "c.yaml"
    path.write_text(text[:at] + data.draw(SYNTAX) + text[at + data.draw(st.integers(0, 5)) :])
    ends_well(path)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
        ),
        max_leaves=15,
    )
)
def test_lines_of_json_are_those_that_counting_gives(tmp_path, data):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"top": data}, indent=1))
    document = config.read(path)

    def look(node, pointer, line):
        """``json.dumps`` puts each item on the line after the one before it ends."""
        assert document.line(pointer) == line
        items = node.items() if isinstance(node, dict) else enumerate(node)
        line += 1
        for key, child in items:
            step = str(key).replace("~", "~0").replace("/", "~1")
            if isinstance(child, dict | list):
                look(child, f"{pointer}/{step}", line)
            else:
                assert document.line(f"{pointer}/{step}") == line
            line += json.dumps(child, indent=1).count("\n") + 1

    look(document.data, "", 1)
