import json

import pytest
import yaml
from reading import TOO_LARGE, data, json_message, message, write, yaml_message

from engine import config
from engine.config import yaml_reader


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.5e+3", 1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-3", -3),
        ("+3", 3),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("null", None),
        ("", None),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 1", "1"),
        ("! 1", "1"),
        (".", "."),
        ("-", [None]),
        ("=", "="),
        ("1.2.3", "1.2.3"),
    ],
)
def test_scalars_follow_yaml_1_2(tmp_path, text, value):
    found = data(tmp_path, f"a:\n  {text}\n")["a"]
    assert found == value
    assert type(found) is type(value)


def test_anchors_aliases_and_merges_are_understood(tmp_path):
    text = "base: &b {x: 1, y: [1, 2]}\none: *b\ntwo: {<<: *b, x: 3}\nthree: {<<: [*b, {z: 4}]}\n"
    found = data(tmp_path, text)
    assert found["one"] == {"x": 1, "y": [1, 2]}
    assert found["two"] == {"x": 3, "y": [1, 2]}
    assert found["three"] == {"x": 1, "y": [1, 2], "z": 4}
    found["one"]["y"].append(3)
    assert found["two"]["y"] == [1, 2]


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    text = b"\xef\xbb\xbfcompressor: level\r\nconfig_list:\r\n  - sparsity: 2\r\n"
    document = config.read(write(tmp_path, text))
    assert document.data == {"compressor": "level", "config_list": [{"sparsity": 2}]}
    assert document.line("/config_list/0/sparsity") == 3
    text = b'\xef\xbb\xbf{\r\n"a":\r\n [1,\r\n 2]}'
    document = config.read(write(tmp_path, text, "c.json"))
    assert document.data == {"a": [1, 2]}
    assert document.line("/a/1") == 4


def test_json_with_tabs_is_json(tmp_path):
    assert data(tmp_path, '{\n\t"a": [1,\t2]\n}', "c.json") == {"a": [1, 2]}


def test_a_file_without_a_known_ending_is_told_by_its_first_character(tmp_path):
    assert data(tmp_path, ' {"a": 1}', "config") == {"a": 1}
    assert data(tmp_path, "a: 1", "config.txt") == {"a": 1}


def test_duplicate_keys_are_all_reported(tmp_path):
    assert yaml_message(tmp_path, "a: 1\nb: {c: 1, c: 2}\na: 3\n") == (
        'c.yaml: 2 problems\n\n/b/c   (line 2)\n  "c" is given twice, first on line 2\n\n'
        '/a   (line 3)\n  "a" is given twice, first on line 1'
    )


def test_keys_are_text(tmp_path):
    assert yaml_message(tmp_path, "a:\n  1: x\n  true: y\n") == (
        "c.yaml: 2 problems\n\n/a   (line 2)\n  the key 1 is not text\n"
        "  keys are names, in quotes\n\n/a   (line 3)\n  the key true is not text\n"
        "  keys are names, in quotes"
    )
    assert yaml_message(tmp_path, "? [a]\n: 1\n") == (
        "c.yaml: 1 problem\n\n/   (line 1)\n  a list stands where a key belongs\n  keys are names"
    )


def test_a_tab(tmp_path):
    assert yaml_message(tmp_path, "a:\n\tb: 1\n") == (
        "c.yaml: 1 problem\n\n/   (line 2)\n  a tab indents this line\n"
        "  YAML is indented with spaces"
    )


@pytest.mark.parametrize("tag", ["!!python/object:os.system", "!mine", "!!binary", "!!timestamp"])
def test_tags_are_refused(tmp_path, tag):
    assert yaml_message(tmp_path, f"a:\n  b: {tag} x\n") == (
        f'c.yaml: 1 problem\n\n/a   (line 2)\n  the tag "{tag}" is not allowed\n'
        "  a configuration holds text, numbers, true, false, lists and mappings"
    )


def test_a_second_document(tmp_path):
    assert yaml_message(tmp_path, "a: 1\n---\nb: 2\n") == (
        "c.yaml: 1 problem\n\n/   (line 2)\n  a second document begins here\n"
        "  a file holds one configuration"
    )


def test_aliases_that_mean_nothing(tmp_path):
    assert yaml_message(tmp_path, "a: *b\n") == (
        "c.yaml: 1 problem\n\n/   (line 1)\n  the alias *b stands for nothing"
    )
    assert yaml_message(tmp_path, "a: &x [1, *x]\n") == (
        "c.yaml: 1 problem\n\n/a   (line 1)\n  the alias *x stands inside of what it stands for"
    )
    assert yaml_message(tmp_path, "a: {<<: 3}\n") == (
        'c.yaml: 1 problem\n\n/   (line 1)\n  "<<" merges mappings only'
    )


def test_a_yaml_bomb(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    assert yaml_message(tmp_path, "\n".join(lines)) == f"c.yaml: {TOO_LARGE}"


def test_a_bomb_of_merged_mappings(tmp_path):
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}" for i in range(1, 60)]
    assert yaml_message(tmp_path, "\n".join(lines)) == f"c.yaml: {TOO_LARGE}"


@pytest.mark.parametrize("depth", [60, 5_000, 400_000])
@pytest.mark.parametrize("name", ["c.yaml", "c.json"])
def test_deep_nesting(tmp_path, depth, name):
    text = '{"a":' + "[" * depth + "]" * depth + "}"
    assert message(write(tmp_path, text, name)) == f"{name}: {TOO_LARGE}"


@pytest.mark.parametrize("text", ["[", "{a: ", "- "])
@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
def test_deep_nesting_whoever_parses(tmp_path, monkeypatch, text, loader):
    """PyYAML's parser of 6.0.4 has a limit of its own, earlier ones and the one in Python none."""
    monkeypatch.setattr(yaml_reader, "_LOADER", getattr(yaml, loader))
    assert yaml_message(tmp_path, text * 3000) == f"c.yaml: {TOO_LARGE}"


def test_too_many_values(tmp_path):
    text = json.dumps({"a": [0] * 150_000})
    assert json_message(tmp_path, text) == f"c.json: {TOO_LARGE}"
    assert yaml_message(tmp_path, text) == f"c.yaml: {TOO_LARGE}"


def test_a_number_of_thousands_of_digits(tmp_path):
    assert yaml_message(tmp_path, "a: " + "9" * 5000) == (
        "c.yaml: 1 problem\n\n/   (line 1)\n  the number has too many digits"
    )
    assert json_message(tmp_path, '{"a": ' + "9" * 5000 + "}") == (
        "c.json: 1 problem\n\n/\n  a number has too many digits"
    )


def test_numbers_are_finite(tmp_path):
    assert yaml_message(tmp_path, "a: .nan\nb: [-.inf, 1e999]\n") == (
        "c.yaml: 3 problems\n\n/a   (line 1)\n  nan is not a finite number\n\n"
        "/b/0   (line 2)\n  -inf is not a finite number\n\n"
        "/b/1   (line 2)\n  inf is not a finite number"
    )
    assert json_message(tmp_path, '{"a": NaN}') == (
        "c.json: 1 problem\n\n/\n  NaN is not a finite number"
    )


def test_what_is_not_yaml_at_all(tmp_path):
    text = yaml_message(tmp_path, "a: [1, 2\nb: 3\n")
    assert text.startswith("c.yaml: 1 problem\n\n/   (line 2)\n  not YAML: ")
    assert yaml_message(tmp_path, "a: \x07\n").startswith("c.yaml: 1 problem\n\n/")
