"""The checks as pytest tests: three lines, one test for each check, outcomes as pytest has them."""

from pathlib import Path

import pytest
from made import made

from engine.testing import (
    CHECKS,
    BlocksConformance,
    ExtensionConformance,
    PrunerConformance,
    QuantizerConformance,
    ScheduleConformance,
    SearchConformance,
)

CLASSES = {
    PrunerConformance: {"pruner"},
    QuantizerConformance: {"quantizer"},
    ScheduleConformance: {"schedule"},
    SearchConformance: {"search"},
    BlocksConformance: {"blocks"},
    ExtensionConformance: {"watcher", "constraint", "training"},
}


def inherited(base, plugin):
    class TestMine(base):
        pass

    TestMine.plugin = plugin
    return TestMine()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_class_has_a_test_for_each_check_of_its_roles(cls):
    tests = {name.removeprefix("test_") for name in dir(cls) if name.startswith("test_")}
    assert tests == {each.name for each in CHECKS if each.roles & CLASSES[cls]}


def test_outcomes_are_those_of_pytest(site):
    made(
        site,
        "OvershootsTies",
        "pruner",
        expected_failures={
            "ties_do_not_overshoot": "a threshold is faster",
            "zero_sparsity_removes_nothing": "not yet",
        },
    )
    tests = inherited(PrunerConformance, "made")
    tests.test_it_is_usable()
    with pytest.raises(pytest.xfail.Exception, match="a threshold is faster"):
        tests.test_ties_do_not_overshoot()
    with pytest.raises(pytest.fail.Exception, match=r"it passes now: .* \(not yet\)"):
        tests.test_zero_sparsity_removes_nothing()
    with pytest.raises(pytest.skip.Exception, match="single weights, not filters"):
        tests.test_it_composes_with_constraints()


def test_a_failure_says_claim_and_reason_without_a_traceback(site):
    made(site, "OvershootsTies", "pruner")
    with pytest.raises(pytest.fail.Exception) as caught:
        inherited(PrunerConformance, "made").test_ties_do_not_overshoot()
    claim, reason = caught.value.msg.splitlines()
    assert claim.startswith("Where all weights are equal, not more and not less is removed")
    assert reason.endswith("a fraction of 0.5 was asked")
    assert caught.value.pytrace is False


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ("agp", "agp is a schedule, PrunerConformance is for: pruner"),
        ("levl", 'did you mean "level"?'),
        ("", 'TestMine names no plugin: plugin = "my_plugin"'),
    ],
)
def test_a_class_that_names_no_plugin_of_its_kind_says_so(site, plugin, message):
    with pytest.raises(pytest.fail.Exception) as caught:
        inherited(PrunerConformance, plugin).test_it_is_usable()
    assert message in caught.value.msg


def test_a_check_for_the_other_role_is_skipped(site):
    with pytest.raises(pytest.skip.Exception, match="it is a constraint"):
        inherited(ExtensionConformance, "channel_rounding").test_watching_changes_nothing()


def test_nothing_of_the_suite_is_loaded_by_pytest_unasked():
    """It would make every run of pytest import torch."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert "pytest11" not in text
