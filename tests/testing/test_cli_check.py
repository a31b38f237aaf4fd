"""engine check: a report of every check, and an exit code."""

import json

import pytest
from made import made

from engine import cli
from engine.testing import CHECKS


@pytest.fixture
def run(site, capsys):
    def call(*arguments):
        code = cli.main(list(arguments))
        return code, *capsys.readouterr()

    return call


def test_a_check_that_passes(run):
    code, output, errors = run("check", "level", "--only", "ties_do_not_overshoot")
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0] == "ok        ties_do_not_overshoot"
    assert lines[2].startswith("level (engine 0.1.0): 1 ok, in ")


def test_a_check_that_fails_is_a_finding_with_its_claim_and_reason(run, site):
    made(site, "OvershootsTies", "pruner")
    code, output, _ = run("check", "made", "--only", "ties_do_not_overshoot")
    assert code == 1
    assert output.splitlines()[:2] == [
        "failed    ties_do_not_overshoot",
        "          Where all weights are equal, not more and not less is removed than was asked",
    ]
    assert "see one of them with: engine check made --only ties_do_not_overshoot" in output


def test_the_same_as_json(run, site):
    made(site, "OvershootsTies", "pruner")
    code, output, _ = run("check", "made", "--json", "--only", "ties_do_not_overshoot")
    facts = json.loads(output)
    assert code == 1
    assert facts.keys() == {"plugin", "distribution", "version", "passed", "checks"}
    assert (facts["plugin"], facts["passed"]) == ("made", False)
    assert facts["checks"][0].keys() == {"name", "claim", "outcome", "reason", "seconds"}
    assert facts["checks"][0]["outcome"] == "failed"


def test_a_broken_plugin_is_checked_too(run, site):
    made(site, "Sound", "pruner", schema="{")
    code, output, errors = run("check", "made")
    assert (code, errors) == (1, "")
    assert output.startswith("failed    it_is_usable\n")
    assert "is not JSON" in output


def test_a_plugin_that_cannot_be_imported_is_checked_as_far_as_possible(run, site):
    made(site, "Sound", "pruner", code="import surely_not_installed")
    code, output, _ = run("check", "made")
    assert code == 1
    assert "failed    it_loads_without_side_effects" in output
    assert "failed    its_class_is_of_its_kind" in output
    assert "skipped   masks_fit_their_weights" in output
    assert "No module named 'surely_not_installed'" in output


def test_an_extension_is_found_as_well(run):
    code, output, _ = run("check", "channel_rounding", "--only", "its_class_is_of_its_kind")
    assert code == 0
    assert "channel_rounding (engine 0.1.0): 1 ok" in output


def test_an_unknown_plugin_gets_the_nearest(run):
    code, output, errors = run("check", "channel_roundin")
    assert (code, output) == (2, "")
    assert errors.startswith('no algorithm, extension or exporter is called "channel_roundin"\n')
    assert errors.endswith('did you mean "channel_rounding"?\n')


def test_an_unknown_check_gets_the_nearest(run):
    code, _, errors = run("check", "level", "--only", "ties_do_not_overshot")
    assert code == 2
    assert errors.startswith('no check for it is called "ties_do_not_overshot"\n')
    assert errors.endswith('did you mean "ties_do_not_overshoot"?\n')


def test_every_check_has_a_claim_in_one_line():
    for each in CHECKS:
        assert 20 < len(each.claim) < 100, each.name
        assert not each.claim.endswith("."), each.name
    assert len({each.name for each in CHECKS}) == len(CHECKS)
