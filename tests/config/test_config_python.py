import pytest
from fakes import SCHEMA

from engine import config
from engine.errors import ConfigError
from engine.plugins import registry

ENTRY = {"sparsity": 0.5, "op_types": ["default"]}
AGP = {"final_sparsity": 0.5, "end_epoch": 3, "op_types": ["default"]}


def message(check, *arguments, **more):
    with pytest.raises(ConfigError) as caught:
        check(*arguments, **more)
    return str(caught.value)


def test_entries_and_arguments_are_completed():
    entries, arguments = config.check_entries(
        registry.find("slim"), [ENTRY], {"training_epochs": 2}
    )
    assert entries == [{**ENTRY, "exclude": False}]
    assert arguments == {
        "dependency_aware": False,
        "regular_scale": 0.0001,
        "training_epochs": 2,
    }
    assert ENTRY == {"sparsity": 0.5, "op_types": ["default"]}


def test_all_problems_under_the_name_of_the_class():
    wrong = [{"sparsity": 1.5, "op_types": ["default"]}, {"sparsity": 0.5}]
    text = message(
        config.check_entries, registry.find("slim"), wrong, {"epochs": 2}, source="SlimPruner"
    )
    assert text == (
        "SlimPruner: 3 problems\n\n"
        '/epochs\n  unknown argument "epochs"\n'
        "  slim allows: dependency_aware, regular_scale, training_epochs\n\n"
        "/config_list/0/sparsity\n  1.5 is out of range\n  slim needs: 0 <= sparsity < 1\n\n"
        '/config_list/1\n  neither "op_types" nor "op_names" is given\n'
        "  an entry says which layers it is for: op_types: [default], for one"
    )


@pytest.mark.parametrize("config_list", [None, [], {}, "level", 3, [3]])
def test_a_config_list_that_is_none_is_refused(config_list):
    assert message(config.check_entries, registry.find("level"), config_list)


def test_arguments_of_an_algorithm_without_any():
    text = message(config.check_entries, registry.find("level"), [ENTRY], {"x": 1})
    assert text == 'config_list: 1 problem\n\n/x\n  unknown argument "x"\n  level allows none'


def test_arguments_that_only_python_can_give_pass(site):
    optimizer = object()
    _, arguments = config.check_entries(registry.find("agp"), [AGP], {"optimizer": optimizer})
    assert arguments == {"pruning_algorithm": "level", "optimizer": optimizer}


def test_an_algorithm_without_a_schema_is_checked_for_what_all_share():
    thing = object()
    entries, arguments = config.check_entries(
        None, [{**ENTRY, "more": 3}], {"thing": thing}, kind="pruning"
    )
    assert entries == [{**ENTRY, "exclude": False, "more": 3}]
    assert arguments == {"thing": thing}
    assert message(config.check_entries, None, [{"sparsity": 2, "op_type": ["a"]}]) == (
        "config_list: 2 problems\n\n"
        '/config_list/0\n  neither "op_types" nor "op_names" is given\n'
        "  an entry says which layers it is for: op_types: [default], for one\n\n"
        "/config_list/0/sparsity\n  2 is out of range\n  this algorithm needs: 0 <= sparsity < 1"
    )
    text = message(config.check_entries, None, [{"op_types": ["a"]}], kind="quantization")
    assert [line for line in text.splitlines() if "missing" in line] == [
        '  "quant_types" is missing',
        '  "quant_bits" is missing',
    ]


def test_a_schema_may_be_given_itself():
    entries, _ = config.check_entries(SCHEMA, [ENTRY])
    assert entries == [{**ENTRY, "exclude": False}]


def test_a_schedule_is_taken_apart():
    composed = config.check_composed(
        registry.find("agp"), [AGP], {"pruning_algorithm": "taylorfo", "statistics_batch_num": 3}
    )
    assert composed.entries[0]["sparsity"] == composed.entries[0]["final_sparsity"] == 0.5
    assert composed.arguments == {"pruning_algorithm": "taylorfo"}
    assert (composed.base_name, composed.base_class) == ("taylorfo", None)
    assert composed.base_plugin.name == "taylor_fo_weight_filter"
    assert composed.base_entries == [{"sparsity": 0.5, "op_types": ["default"], "exclude": False}]
    assert composed.base_arguments == {"dependency_aware": False, "statistics_batch_num": 3}
    again, _ = config.check_entries(composed.base_plugin, composed.base_entries)
    assert again == composed.base_entries


def test_the_pruner_inside_may_be_a_class(site):
    site.plugin("mine", "my-plugin")
    cls = registry.find("mine").load()
    composed = config.check_composed(registry.find("agp"), [AGP], {"pruning_algorithm": cls})
    assert (composed.base_class, composed.base_plugin.name) == (cls, "mine")
    assert composed.base_entries == [{"sparsity": 0.5, "op_types": ["default"], "exclude": False}]


def test_the_pruner_inside_may_be_a_class_that_is_no_plugin():
    class Mine:
        pass

    thing = object()
    composed = config.check_composed(
        registry.find("agp"), [{**AGP, "own": 3}], {"pruning_algorithm": Mine, "thing": thing}
    )
    assert (composed.base_class, composed.base_plugin, composed.base_name) == (Mine, None, "Mine")
    assert composed.base_entries == [
        {"sparsity": 0.5, "op_types": ["default"], "exclude": False, "own": 3}
    ]
    assert composed.base_arguments == {"thing": thing}
    assert composed.arguments == {"pruning_algorithm": "Mine"}


def test_a_schedule_without_a_schema_has_a_pruner_all_the_same():
    composed = config.check_composed(None, [{**ENTRY, "pace": 3}], {"pruning_algorithm": "level"})
    assert composed.base_entries == [{**ENTRY, "exclude": False}] or composed.base_plugin
    assert composed.base_plugin.name == "level"
    text = message(config.check_composed, None, [ENTRY], {})
    assert text == 'config_list: 1 problem\n\n/\n  "pruning_algorithm" is missing'
