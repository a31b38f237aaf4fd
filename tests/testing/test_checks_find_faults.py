"""Each check fails for an algorithm with the fault that it is there to find, and says so."""

import re

import pytest
from made import made

from engine.testing import CHECKS
from engine.testing.outcome import EXPECTED, EXPORTER, FAILED, OK, UNEXPECTED, run
from engine.testing.subject import Subject
from engine.testing.suite import checks_for

PRUNERS = {
    "masks_fit_their_weights": ("BroadcastsMasks", r"has shape \(8, 1, 1, 1\), the parameter"),
    "removes_what_was_asked": ("RemovesTooMuch", "a fraction of 0.25 was asked"),
    "zero_sparsity_removes_nothing": ("AlwaysRemovesHalf", "stem.weight has changed"),
    "full_sparsity_is_survived": ("NeverRemovesAll", "are removed"),
    "ties_do_not_overshoot": ("OvershootsTies", "1044 of 1044 are removed|36 of 36 are removed"),
    "one_channel_is_survived": ("NeedsTwoChannels", "made.* failed in calc_mask .* IndexError"),
    "half_precision_is_survived": ("CannotHalf", "failed in calc_mask .* RuntimeError"),
    "the_same_seed_gives_the_same_masks": ("DrawsLots", "has other masks the second time"),
    "removed_weights_stay_removed": ("PutsWeightsBack", "removed weights are not zero"),
    "gradients_reach_what_is_kept": ("LosesGradients", 'no gradient reaches layer "stem"'),
    "detaching_leaves_the_model_as_found": ("LeavesAHook", "hooks of '' differ after compress"),
    "training_resumes_bit_exactly": ("ForgetsItsScores", "differs after .* epochs"),
    "copies_are_models_of_their_own": ("HooksThatReport", "training a deepcopy has changed"),
    "it_trains_in_distributed_data_parallel": ("NeedsTheModelUnwrapped", "no processes, please"),
    "it_compiles_as_one_graph": ("BreaksTheGraph", "Unsupported|graph break"),
    "every_schedule_drives_it": ("IgnoresSchedules", "with .*: .* a fraction of 0.5 was asked"),
    "it_composes_with_constraints": ("RefusesConstraints", "with .*: alone or not at all"),
    "it_composes_with_quantizers": ("RefusesQuantizers", "with .* quantized"),
    "speedup_is_exact": ("FailsInSpeedup", "outputs differ by up to 1 from"),
    "exported_files_give_the_same_outputs": ("ExportsDenseWeights", "outputs differ"),
    "onnx_gives_the_same_outputs": ("ExportsAnotherModel", "outputs differ by up to 1"),
    "a_step_is_not_much_dearer": ("TakesItsTime", "times the bare step"),
}
QUANTIZERS = {
    "values_lie_on_the_grid": ("TooManyValues", 'the weight of layer "stem" has .* 3 bits have 8'),
    "quantized_tensors_fit": ("ChangesDtype", "outputs are .* in a model of torch.bfloat16"),
    "gradients_reach_weights_and_input": ("StopsGradients", "stem.weight has no finite gradient"),
    "weights_stay_as_the_optimizer_left_them": ("ChangesWeights", "has changed stem.weight"),
    "evaluation_changes_nothing": ("LearnsInEvaluation", "outputs change between two"),
    "degenerate_tensors_are_survived": ("DividesByTheMaximum", "not finite where all weights"),
    "it_composes_with_pruners": ("QuantizesAfterMasks", "removed weights of layer .* not zero"),
    "exported_weights_are_the_quantized_ones": ("ExportsOtherWeights", "the weight of layer"),
}
SCHEDULES = {
    "sparsity_never_falls": ("NeverArrives", "0.75 was asked, the sparsities were"),
    "it_drives_every_pruner": ("NeverArrives", "a fraction of 0.5 was asked"),
}
SEARCHES = {
    "the_search_reaches_what_was_asked": ("FindsNothing", "nothing is removed"),
    "what_it_needs_is_asked_for_at_once": (
        "AsksTooLate",
        "stem.weight has changed before it was refused",
    ),
}
BLOCKS = {
    "as_many_blocks_go_as_were_asked": ("ChangesItsMind", "are removed the second time"),
    "the_smaller_model_computes_the_same": ("TakesTheFirstOut", "outputs differ from those"),
}
WATCHERS = {
    "it_works_with_every_algorithm": ("FailsWithQuantizers", "with .*: masks are expected"),
    "watching_changes_nothing": ("DisturbsTraining", "is trained otherwise under"),
    "nothing_is_left_behind": ("LeavesAnAttribute", "hooks or attributes of .* stay"),
    "copies_do_not_report": ("CannotBeCopied", "TypeError: cannot pickle 'generator' object"),
}
TRAINING = {
    "its_loss_counts_in_training_alone": ("AddsNothing", "trains as it does without it"),
}
CONSTRAINTS = {
    "training_with_it_resumes_bit_exactly": ("CountsSteps", "differs after"),
    "speedup_of_its_masks_is_exact": ("MasksNormsOnly", "changes the outputs"),
}
CASES = [
    pytest.param(role, check, cls, message, id=check)
    for role, cases in (
        ("pruner", PRUNERS),
        ("quantizer", QUANTIZERS),
        ("schedule", SCHEDULES),
        ("search", SEARCHES),
        ("blocks", BLOCKS),
        ("watcher", WATCHERS),
        ("constraint", CONSTRAINTS),
        ("training", TRAINING),
    )
    for check, (cls, message) in cases.items()
]
#: Those of what a plugin says of itself are in test_checks_of_descriptions.
DESCRIBED = {each.name for each in CHECKS if not each.runs_code}


def check_named(name):
    return next(each for each in CHECKS if each.name == name)


@pytest.mark.parametrize(("role", "check", "cls", "message"), CASES)
def test_the_fault_is_found_and_said(site, role, check, cls, message):
    plugin = made(site, cls, role)
    assert check_named(check) in checks_for(plugin)
    result = run(check_named(check), Subject(plugin))
    assert result.outcome == FAILED, result
    assert re.search(message, result.reason), result.reason


def test_every_check_has_a_fault_that_it_finds():
    cases = {case.values[1] for case in CASES}
    # Those of exporters have faults of their own: test_checks_of_exporters.py.
    of_algorithms = {each.name for each in CHECKS if set(each.roles) != {EXPORTER}}
    assert cases | DESCRIBED == of_algorithms


@pytest.mark.parametrize(("cls", "role"), [("Sound", "pruner"), ("SoundQuantizer", "quantizer")])
def test_what_the_faulty_ones_are_made_from_passes(site, cls, role):
    subject = Subject(made(site, cls, role))
    faults = [r for c in checks_for(subject.plugin) if (r := run(c, subject)).outcome == FAILED]
    assert not faults


def test_an_expected_failure_is_one_and_gives_the_reason(site):
    plugin = made(
        site,
        "OvershootsTies",
        "pruner",
        expected_failures={"ties_do_not_overshoot": "a threshold is faster"},
    )
    result = run(check_named("ties_do_not_overshoot"), Subject(plugin))
    assert (result.outcome, result.reason) == (EXPECTED, "a threshold is faster")


def test_an_expected_failure_that_passes_is_reported(site):
    plugin = made(
        site, "Sound", "pruner", expected_failures={"ties_do_not_overshoot": "not yet done"}
    )
    result = run(check_named("ties_do_not_overshoot"), Subject(plugin))
    assert result.outcome == UNEXPECTED
    assert result.reason == "it passes now: take it out of expected_failures (not yet done)"


def test_a_plugin_may_bring_its_own_model(site):
    code = (
        "import torch\nfrom torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3)), torch.arange(9)\n"
    )
    from made import CODE

    plugin = made(site, "Sound", "pruner", code=CODE + code, model="made_for_tests:build")
    subject = Subject(plugin)
    assert run(check_named("removes_what_was_asked"), subject).outcome == OK
    compressor = subject.at_rest(subject.model())
    assert [wrapper.type for wrapper in compressor.get_modules_wrapper()] == ["Embedding", "Linear"]


def test_settings_may_be_given_for_the_checks(site):
    plugin = made(site, "Sound", "pruner", entry={"op_types": ["Linear"]})
    compressor = Subject(plugin).attach(Subject(plugin).model())
    assert {wrapper.type for wrapper in compressor.get_modules_wrapper()} == {"Linear"}
