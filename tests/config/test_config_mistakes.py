"""One mistake in a configuration gives one problem; the whole message is compared."""

import pytest
from built_in import EXTENSIONS
from checking import entry, problem, section

ONE_MISTAKE = [
    (
        section(framework="tensorflow"),
        "/framework\n  TensorFlow is not supported\n  the engine allows: torch, pytorch",
    ),
    (
        section(framework="Torch"),
        '/framework\n  "Torch" is not one of the choices\n'
        '  the engine allows: torch, pytorch\n  did you mean "torch"?',
    ),
    (
        section(type="quantization"),
        "/type\n  level is a pruning algorithm\n  level needs: type pruning",
    ),
    (
        section(type="prunning"),
        '/type\n  "prunning" is not one of the choices\n'
        '  the engine allows: pruning, quantization\n  did you mean "pruning"?',
    ),
    (
        section("simulated_annealing", start_temperature=10),
        "/start_temperature\n  stop_temperature is 20 and start_temperature is 10\n"
        "  needed: stop_temperature <= start_temperature",
    ),
    (
        {"config_list": []},
        '/\n  "compressor" is missing\n'
        "  the engine needs: an algorithm's name, as engine list-algorithms shows it",
    ),
    (
        section(compressor=3),
        "/compressor\n  3 is not text\n"
        "  the engine needs: an algorithm's name, as engine list-algorithms shows it",
    ),
    (
        {"compressor": "level"},
        '/\n  "config_list" is missing\n  level needs: a list of entries',
    ),
    (entry("level"), "/config_list\n  the list is empty\n  level needs: a list of entries"),
    (
        {"compressor": "level", "config_list": {"sparsity": 0.5}},
        "/config_list\n  a mapping is not a list\n"
        '  level needs: a list of entries; each of its items begins with "-"',
    ),
    (
        entry("level", "default"),
        '/config_list/0\n  "default" is text, not a mapping\n  level needs: a mapping of settings',
    ),
    (
        entry("level", {"sparsity": 1.6, "op_types": ["a"]}),
        "/config_list/0/sparsity\n  1.6 is out of range\n  level needs: 0 <= sparsity < 1",
    ),
    (
        entry("level", {"sparsity": "0.5", "op_types": ["a"]}),
        '/config_list/0/sparsity\n  "0.5" is text, not a number\n'
        "  level needs: a number, 0 <= sparsity < 1, without quotes",
    ),
    (
        entry("level", {"sparsity": True, "op_types": ["a"]}),
        "/config_list/0/sparsity\n  true is not a number\n"
        "  level needs: a number, 0 <= sparsity < 1",
    ),
    (
        entry("level", {"sparsity": None, "op_types": ["a"]}),
        "/config_list/0/sparsity\n  nothing is given\n  level needs: a number, 0 <= sparsity < 1",
    ),
    (
        entry("level", {"op_types": ["a"]}),
        '/config_list/0\n  "sparsity" is missing\n  level needs: a number, 0 <= sparsity < 1',
    ),
    (
        entry("level", {"sparcity": 0.5, "op_types": ["a"]}),
        '/config_list/0/sparcity\n  unknown setting "sparcity"\n'
        '  level allows: sparsity, op_types, op_names, exclude\n  did you mean "sparsity"?',
    ),
    (
        entry("level", {"sparsity": 0.5, "op_name": ["a"]}),
        '/config_list/0/op_name\n  unknown setting "op_name"\n'
        '  level allows: sparsity, op_types, op_names, exclude\n  did you mean "op_names"?',
    ),
    (
        entry("level", {"sparsity": 0.5}),
        '/config_list/0\n  neither "op_types" nor "op_names" is given\n'
        "  an entry says which layers it is for: op_types: [default], for one",
    ),
    (
        entry("level", {"sparsity": 0.5, "op_types": "Conv2d"}),
        '/config_list/0/op_types\n  "Conv2d" is text, not a list\n'
        "  level needs: a list of layer types, such as [Conv2d, Linear] or [default]\n"
        '  did you mean "[Conv2d]"?',
    ),
    (
        entry("level", {"sparsity": 0.5, "op_names": [3]}),
        "/config_list/0/op_names/0\n  3 is not text\n  level needs: text",
    ),
    (
        entry("level", {"sparsity": 0.5, "op_names": []}),
        "/config_list/0/op_names\n  the list is empty\n"
        "  level needs: a list of layer names or patterns, such as [conv1, layer1.*.fc]",
    ),
    (
        entry("level", {"sparsity": 0.5, "op_names": ["a", "b", "a"]}),
        '/config_list/0/op_names\n  "a" is given twice\n'
        "  level needs: a list of layer names or patterns, such as [conv1, layer1.*.fc]",
    ),
    (
        entry("level", {"sparsity": 0.5, "op_names": [""]}),
        "/config_list/0/op_names/0\n  the text is empty\n  level needs: text",
    ),
    (
        entry("level", {"exclude": "yes", "sparsity": 0.5, "op_names": ["a"]}),
        '/config_list/0/exclude\n  "yes" is text, not true or false\n'
        '  level needs: true or false\n  did you mean "true"?',
    ),
    (
        entry("level", {"exclude": True, "sparsity": 0.5, "op_names": ["a"]}),
        '/config_list/0/sparsity\n  "sparsity" is set for layers that are excluded\n'
        "  an entry with exclude: true takes no other settings",
    ),
    (
        section(sparsity=0.5),
        '/sparsity\n  "sparsity" stands outside of config_list\n'
        "  it is a setting of the entries of config_list",
    ),
    (
        entry("slim", {"sparsity": 0.5, "op_types": ["a"], "training_epochs": 3}),
        '/config_list/0/training_epochs\n  "training_epochs" stands in an entry of config_list\n'
        "  it is an argument of the algorithm and stands beside config_list",
    ),
    (
        section("slim", training_epoch=3),
        '/training_epoch\n  unknown key "training_epoch"\n'
        "  slim allows: framework, type, compressor, config_list, extensions, "
        'dependency_aware, regular_scale, training_epochs\n  did you mean "training_epochs"?',
    ),
    (
        section("slim", training_epochs=1.5),
        "/training_epochs\n  1.5 is not a whole number\n"
        "  slim needs: a whole number, training_epochs >= 0",
    ),
    (
        section("apoz", activation="gelu"),
        '/activation\n  "gelu" is not one of the choices\n'
        '  activation_apoz_rank_filter allows: relu, relu6\n  did you mean "relu"?',
    ),
    (
        entry("qat", {"quant_types": ["weigth"], "quant_bits": 8, "op_types": ["a"]}),
        '/config_list/0/quant_types/0\n  "weigth" is not one of the choices\n'
        '  qat allows: weight, input, output\n  did you mean "weight"?',
    ),
    (
        entry("naive", {"quant_types": ["output"], "op_types": ["a"]}),
        '/config_list/0/quant_types/0\n  "output" is not one of the choices\n'
        "  naive allows: weight",
    ),
    (
        entry("qat", {"quant_types": ["weight"], "quant_bits": 34, "op_types": ["a"]}),
        "/config_list/0/quant_bits\n  34 is out of range\n"
        "  qat needs: 2 <= quant_bits <= 16, or a mapping of such numbers",
    ),
    (
        entry("qat", {"quant_types": ["weight"], "quant_bits": "8", "op_types": ["a"]}),
        '/config_list/0/quant_bits\n  "8" is text, not a whole number or a mapping\n'
        "  qat needs: a whole number, 2 <= quant_bits <= 16, or a mapping of such numbers, "
        "without quotes",
    ),
    (
        entry("qat", {"quant_types": ["weight"], "quant_bits": {"abc": 8}, "op_types": ["a"]}),
        None,
    ),
    (
        entry("qat", {"quant_types": ["weight"], "quant_bits": {"weight": 1}, "op_types": ["a"]}),
        "/config_list/0/quant_bits/weight\n  1 is out of range\n  qat needs: 2 <= weight <= 16",
    ),
    (
        entry("bnn", {"quant_types": ["weight"], "quant_bits": 2, "op_types": ["a"]}),
        "/config_list/0/quant_bits\n  2 is out of range\n"
        "  bnn needs: quant_bits = 1, or a mapping of such numbers",
    ),
    (
        entry(
            "agp",
            {"initial_sparsity": 0.9, "final_sparsity": 0.5, "end_epoch": 2, "op_names": ["a"]},
        ),
        "/config_list/0/final_sparsity\n  initial_sparsity is 0.9 and final_sparsity is 0.5\n"
        "  needed: initial_sparsity <= final_sparsity",
    ),
    (
        entry("agp", {"final_sparsity": 0.5, "end_epoch": 2, "start_epoch": 2, "op_names": ["a"]}),
        "/config_list/0/end_epoch\n  start_epoch is 2 and end_epoch is 2\n"
        "  needed: start_epoch < end_epoch",
    ),
    (
        entry(
            "lottery_ticket",
            {"sparsity": 0.5, "prune_iterations": 2, "op_names": ["a"]},
            {"sparsity": 0.5, "prune_iterations": 3, "op_names": ["b"]},
        ),
        "/config_list/1/prune_iterations\n  3 differs from 2 in entry 0\n"
        "  prune_iterations is the same in all entries",
    ),
    (
        entry("agp", {"final_sparsity": 0.5, "end_epoch": 2, "op_names": ["a"]}, optimizer="adam"),
        '/optimizer\n  "optimizer" cannot be given in a file\n'
        "  it is given in Python: the optimizer that trains the model",
    ),
    (
        entry(
            "agp",
            {"final_sparsity": 0.5, "end_epoch": 2, "op_names": ["a"]},
            pruning_algorithm="lottery_ticket",
        ),
        "/pruning_algorithm\n  lottery_ticket is a schedule itself\n"
        "  agp needs: an algorithm that is none",
    ),
    (
        entry(
            "agp",
            {"final_sparsity": 0.5, "end_epoch": 2, "op_names": ["a"]},
            pruning_algorithm="qat",
        ),
        "/pruning_algorithm\n  qat is a quantization algorithm\n  agp needs: a pruning algorithm",
    ),
    (section(extensions="bars"), None),
    (
        section(extensions=[{"a": {}, "b": {}}]),
        "/extensions/0\n  2 are given, at most 1 are allowed\n"
        "  the engine needs: a name, or a mapping from one name to its arguments",
    ),
    (
        section(extensions=["bars"]),
        f'/extensions/0\n  unknown extension "bars"\n  installed: {", ".join(EXTENSIONS)}',
    ),
    ({"compression": 3}, None),
    (
        {"nam": "x", "compression": section()},
        '/nam\n  unknown key "nam"\n'
        "  an experiment allows: name, script, resource, workingdir, compression, model, "
        "proposer, target, n_samples, n_parallel, random_seed, job_failure, resource_args, "
        "runtime_args\n"
        '  did you mean "name"?',
    ),
    (
        {"name": "x", "compresion": section()},
        '/compresion\n  unknown key "compresion"\n'
        "  an experiment allows: name, script, resource, workingdir, compression, model, "
        "proposer, target, n_samples, n_parallel, random_seed, job_failure, resource_args, "
        "runtime_args\n"
        '  did you mean "compression"?',
    ),
    (
        {"resource": "laptop", "compression": section()},
        '/resource\n  "laptop" is not one of the choices\n'
        "  an experiment allows: cpu, gpu, passive, node",
    ),
    (
        {"script": "", "compression": section()},
        "/script\n  the text is empty\n  an experiment needs: text",
    ),
]


@pytest.mark.parametrize(("source", "expected"), ONE_MISTAKE)
def test_one_mistake_gives_one_message(site, source, expected):
    if expected is not None:
        assert problem(source) == expected
