"""Merging many labels at once gives what merging one pair after the other gives."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.speedup.labels import Labels

_COUNT = 40
_PAIRS = st.lists(st.tuples(st.integers(0, _COUNT), st.integers(0, _COUNT)), min_size=1)
_STEPS = st.lists(
    st.one_of(_PAIRS, st.sets(st.integers(0, _COUNT), min_size=1, max_size=3)), max_size=6
)


@given(_STEPS)
def test_classes_and_pins_are_those_of_one_pair_after_the_other(steps: list) -> None:
    labels = Labels()
    labels.fresh(_COUNT)
    classes = {n: {n} for n in range(_COUNT + 1)}
    pinned = {0}
    for step in steps:
        if isinstance(step, set):
            labels.pin(torch.tensor(sorted(step)), "asked")
            pinned |= step
            continue
        left, right = torch.tensor(step).T
        labels.unite(left, right)
        for a, b in step:
            merged = classes[a] | classes[b]
            for member in merged:
                classes[member] = merged
    everything = torch.arange(_COUNT + 1)
    assert labels.roots(everything).tolist() == [min(classes[n]) for n in range(_COUNT + 1)]
    assert labels.pinned(everything).tolist() == [
        bool(classes[n] & pinned) for n in range(_COUNT + 1)
    ]


def test_the_first_reason_of_a_class_is_kept() -> None:
    labels = Labels()
    a, b, c = (labels.fresh(1) for _ in range(3))
    labels.pin(c, "first")
    labels.pin(a, "second")
    labels.unite(a, b)
    labels.unite(b, c)
    labels.pin(b, "third")
    assert {labels.reason(int(x)) for x in (a, b, c)} == {"first"}


def test_there_is_room_for_any_number() -> None:
    labels = Labels()
    many = labels.fresh(200_000)
    labels.unite(many[:-1], many[1:])
    assert labels.roots(many).unique().tolist() == [1]
    assert labels.fresh(2).tolist() == [200_001, 200_002]
