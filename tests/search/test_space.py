"""Search spaces: what is refused, and which values a grid and the first trials take."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import space
from engine.config.messages import Found

FINITE = st.floats(min_value=1e-6, max_value=1e6)


def read(value: dict[str, Any]) -> tuple[space.Space | None, list[Found]]:
    found: list[Found] = []
    return space.read(value, "", found), found


@pytest.mark.parametrize(
    ("value", "pointer", "message"),
    [
        ({"range": [], "type": "float"}, "/range", "the range is empty"),
        ({"range": [0.5, 0.5], "type": "float"}, "/range", "both ends are 0.5"),
        ({"range": [0.9, 0.2], "type": "float"}, "/range", "inverted: 0.9 is more than 0.2"),
        ({"range": [1, 2, 3], "type": "int"}, "/range", "has 3 values, not 2"),
        ({"range": [1, 2.5], "type": "int"}, "/range/1", "2.5 is not a whole number"),
        ({"range": ["a", "b"], "type": "float"}, "/range/0", '"a" is not a number'),
        ({"range": [True, 2], "type": "int"}, "/range/0", "true is not a whole number"),
        ({"range": 3, "type": "int"}, "/range", "3 is not a list"),
        ({"range": [1, 2]}, "", 'no "type"'),
        ({"type": "int"}, "", 'no "range"'),
        ({"range": [], "type": "choice"}, "/range", "the range is empty"),
        ({"range": [1, 1], "type": "choice"}, "/range/1", "1 is given twice"),
        ({"range": [1, 2], "type": "integer"}, "/type", "not one of the choices"),
        ({"range": [0, 1], "type": "float", "log": True}, "/range/0", "no logarithm"),
        ({"range": [0, 1], "type": "float", "step": 0}, "/step", "above 0"),
        ({"range": [0, 1], "type": "float", "step": 2}, "/step", "more than the whole range"),
        ({"range": [1, 9], "type": "float", "step": 1, "log": True}, "/log", "either"),
        ({"range": [1, 9], "type": "int", "n": 1}, "/n", "from 2 on"),
        ({"range": ["a"], "type": "choice", "log": True}, "/log", 'no "log"'),
        ({"range": [1, 9], "type": "int", "interval": 1, "step": 1}, "/interval", "the same"),
    ],
)
def test_a_wrong_space_is_said_at_its_place(
    value: dict[str, Any], pointer: str, message: str
) -> None:
    one, found = read(value)
    assert one is None
    assert [each.pointer for each in found] == [pointer]
    assert message in found[0].message


def test_a_misspelt_key_is_named_with_the_nearest() -> None:
    one, found = read({"range": [1, 2], "type": "int", "lgo": True})
    assert one is None
    assert (found[0].pointer, found[0].suggestion) == ("/lgo", "log")
    assert read({"rnage": [1, 2], "type": "int"})[1][0].suggestion == "range"


def test_an_inverted_range_is_offered_the_right_way_round() -> None:
    assert read({"range": [0.9, 0.2], "type": "float"})[1][0].suggestion == "[0.2, 0.9]"


def test_grids_by_step_by_number_and_by_ratio() -> None:
    def grid(**value: Any) -> list[Any]:
        one, found = read(value)
        assert not found
        assert one is not None
        return one.grid()

    assert grid(range=[0.2, 0.8], type="float", interval=0.2) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert grid(range=[2, 5], type="int") == [2, 3, 4, 5]
    assert grid(range=[2, 8], type="int", n=3) == [2, 5, 8]
    assert grid(range=[0.01, 1], type="float", log=True, n=3) == pytest.approx([0.01, 0.1, 1])
    assert grid(range=["x", None, 3], type="choice") == ["x", None, 3]


@given(FINITE, FINITE, st.integers(2, 50), st.booleans())
def test_a_grid_holds_both_ends_and_nothing_outside(a: float, b: float, n: int, log: bool) -> None:
    low, high = sorted((a, b))
    if low == high:
        return
    grid = space.Space("float", (low, high), log=log, n=n).grid()
    assert len(grid) == n
    assert grid[0] == low
    assert math.isclose(grid[-1], high, rel_tol=1e-12)
    assert all(low <= point <= high for point in grid)
    assert grid == sorted(grid)


@given(
    st.recursive(
        st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.text(max_size=5).filter(lambda key: key not in ("range", "type")), inner
            )
        ),
        max_leaves=20,
    )
)
def test_a_replaced_copy_shares_nothing_and_changes_nothing_else(data: Any) -> None:
    whole = {"data": data, "at/here": [0, {"range": [0, 1], "type": "float"}]}
    ((pointer, value),) = space.find(whole)
    assert value == whole["at/here"][1]
    copy = space.replace(whole, {pointer: 0.5})
    assert copy == {"data": data, "at/here": [0, 0.5]}
    assert whole["at/here"][1] == {"range": [0, 1], "type": "float"}
    if isinstance(data, list | dict):
        assert copy["data"] is not data
