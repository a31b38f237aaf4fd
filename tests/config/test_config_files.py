import math

import pytest
from reading import TOO_LARGE, json_message, message, write, yaml_message

from engine import config
from engine.errors import ConfigError

PLACES = """\
a:
  b~c/d: 1
  e:
    - x
    -
      f: 2
    - {g: 3,
       h: 4}
"""


def test_lines_of_yaml(tmp_path):
    document = config.read(write(tmp_path, PLACES))
    expected = {"": 1, "/a": 1, "/a/b~0c~1d": 2, "/a/e": 3, "/a/e/0": 4, "/a/e/1/f": 6}
    expected |= {"/a/e/2": 7, "/a/e/2/g": 7, "/a/e/2/h": 8}
    assert {pointer: document.line(pointer) for pointer in expected} == expected


def test_a_value_that_is_not_there_has_the_line_of_what_it_belongs_in(tmp_path):
    document = config.read(write(tmp_path, PLACES))
    assert document.line("/a/e/1/missing/deep") == 6
    assert document.line("/nowhere") == 1


def test_lines_of_json(tmp_path):
    text = '{\n "a": {"b~c/d": 1,\n  "e": ["x, [{",\n   {"f\\"": {}},\n   [[],\n 5]]}}\n'
    document = config.read(write(tmp_path, text, "c.json"))
    expected = {"": 1, "/a": 2, "/a/b~0c~1d": 2, "/a/e": 3, "/a/e/0": 3, "/a/e/1": 4}
    expected |= {'/a/e/1/f"': 4, "/a/e/2": 5, "/a/e/2/0": 5, "/a/e/2/1": 6}
    assert {pointer: document.line(pointer) for pointer in expected} == expected


def test_python_has_no_lines():
    document = config.read({"a": 1})
    assert (document.source, document.line("/a")) == ("configuration", None)


def test_a_missing_file_and_a_folder(tmp_path):
    assert message(tmp_path / "no.yaml") == "no.yaml: 1 problem\n\n/\n  there is no such file"
    folder = tmp_path / "folder"
    folder.mkdir()
    assert message(folder) == ("folder: 1 problem\n\n/\n  this is a folder\n  a file is needed")


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000])
def test_a_path_that_cannot_be(path):
    with pytest.raises(ConfigError):
        config.read(path)


def test_an_empty_file(tmp_path):
    assert yaml_message(tmp_path, " \n\n") == "c.yaml: 1 problem\n\n/\n  the file is empty"


def test_a_file_that_is_not_utf8(tmp_path):
    assert yaml_message(tmp_path, b"a: 1\nb: \xff\xfe\n") == (
        "c.yaml: 1 problem\n\n/   (line 2)\n  the file is not UTF-8 text"
    )


def test_a_file_of_10_mb(tmp_path):
    assert yaml_message(tmp_path, "a: 1\n" * 2_000_000) == (
        "c.yaml: 1 problem\n\n/\n  the file is too large\n"
        "  a configuration has at most 1,000,000 bytes"
    )


def test_a_list_or_a_word_is_no_configuration(tmp_path):
    needs = "it needs a mapping, with the keys compressor and config_list, for one"
    assert yaml_message(tmp_path, "- a\n") == (
        f"c.yaml: 1 problem\n\n/\n  the file holds a list\n  {needs}"
    )
    assert yaml_message(tmp_path, "just words\n") == (
        f"c.yaml: 1 problem\n\n/\n  the file holds one value\n  {needs}"
    )
    assert yaml_message(tmp_path, "# nothing but a comment\n") == (
        f"c.yaml: 1 problem\n\n/\n  the file holds nothing\n  {needs}"
    )


def test_a_number_is_no_source():
    assert message(3) == (
        "configuration: 1 problem\n\n/\n  an object of type int is no configuration\n"
        "  a file's path, a mapping or a list is"
    )


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("True", "JSON spells it true, not True"),
        ("None", "JSON spells it null, not None"),
        ("'a'", "JSON quotes text with \", not with '"),
        (".5", "JSON numbers begin with a digit: 0.5, not .5"),
        ("# x", "JSON has no comments; a .yaml file may have them"),
    ],
)
def test_json_that_is_nearly_json(tmp_path, value, hint):
    assert json_message(tmp_path, '{\n  "exclude": ' + value + "\n}") == (
        "c.json: 1 problem\n\n/   (line 2)\n"
        f"  not JSON: expecting value, line 2, column 14\n  {hint}"
    )


def test_a_comma_too_many(tmp_path):
    for text, bracket in (('{"a": 1,}', "}"), ('{"a": [1,]}', "]")):
        assert json_message(tmp_path, text).endswith(f'a comma before "{bracket}" is one too many')


def test_json_keys_given_twice(tmp_path):
    assert json_message(tmp_path, '{"a": 1,\n "b": [{"c": 1, "c": 2}],\n "a": 2}') == (
        'c.json: 2 problems\n\n/b/0/c   (line 2)\n  "c" is given twice, first on line 2\n\n'
        '/a   (line 3)\n  "a" is given twice, first on line 1'
    )


class Scalar:
    def __init__(self, value):
        self.value = value

    def __float__(self):
        return float(self.value)


def test_python_values_become_plain_data():
    given = {"a": (1, 2), "b": Scalar(0.5), "c": True, "d": {"e": None}}
    document = config.read(given)
    assert document.data == {"a": [1, 2], "b": 0.5, "c": True, "d": {"e": None}}
    document.data["d"]["e"] = 1
    assert given["d"]["e"] is None


def test_what_is_not_plain_is_refused_all_at_once():
    class Conv2d:
        pass

    given = {"a": [Conv2d], "b": {1: 2}, "c": {1, 2}, "d": math.nan}
    assert message(given) == (
        "configuration: 4 problems\n\n"
        "/a/0\n  the class Conv2d stands here\n"
        "  a configuration holds text, numbers, true, false, lists and mappings\n"
        '  did you mean "Conv2d"?\n\n'
        "/b\n  the key 1 is not text\n  keys are names, in quotes\n\n"
        "/c\n  an object of type set stands here\n"
        "  a configuration holds text, numbers, true, false, lists and mappings\n\n"
        "/d\n  nan is not a finite number"
    )


def test_a_cycle_is_too_deep():
    given = {}
    given["self"] = given
    assert message(given) == f"configuration: {TOO_LARGE}"
