"""Keys of NNI's later releases and of Auptimizer: the same thing, or named with what to write."""

import pytest
from models import mlp

import engine
from engine import ConfigError, config


def chosen(**entry):
    made = engine.create_compressor(mlp(), {"compressor": "level", "config_list": [entry]})
    return [(w.name, w.config["sparsity"]) for w in made.get_modules_wrapper()]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            {"op_types": ["Linear"], "sparse_ratio": 0.25},
            {"op_types": ["Linear"], "sparsity": 0.25},
        ),
        ({"op_names_re": ["0|2"], "sparsity": 0.5}, {"op_names": ["re:0|2"], "sparsity": 0.5}),
        ({"op_partial_names": ["2"], "sparsity": 0.5}, {"op_names": ["*2*"], "sparsity": 0.5}),
        (
            {"op_names": ["0"], "op_names_re": "[2]", "sparse_ratio": 0.5},
            {"op_names": ["0", "re:[2]"], "sparsity": 0.5},
        ),
    ],
)
def test_a_key_that_means_the_same_is_read(theirs, ours):
    assert chosen(**theirs) == chosen(**ours) != []


def test_both_words_for_one_thing_are_refused():
    with pytest.raises(ConfigError, match='unknown setting "sparse_ratio"'):
        chosen(op_types=["Linear"], sparsity=0.5, sparse_ratio=0.4)


def test_a_part_of_a_name_is_no_pattern_by_itself():
    with pytest.raises(ConfigError, match=r'no layer of the model matches "\*\[\*\]\*"'):
        chosen(op_partial_names=["*"], sparsity=0.5)


@pytest.mark.parametrize("key", ["exclude_op_names", "total_sparsity", "flops_ratio"])
def test_a_key_that_means_something_else_is_named(key):
    with pytest.raises(ConfigError) as caught:
        chosen(op_types=["Linear"], sparsity=0.5, **{key: ["0"]})
    (problem,) = caught.value.problems
    assert problem.message == f'unknown setting "{key}"'
    assert problem.allowed.startswith("here that is: ")


def decorated(compression_type, compression_framework, compressor, config_list, folder_name=None,
              save_model=False):  # fmt: skip
    """Auptimizer's own pattern."""
    config = locals()
    made = engine.create_compressor(mlp(), config)
    made.compress()
    assert (save_model, folder_name) == (False, None)
    return float(made.get_modules_wrapper()[0].weight_mask.mean())


@pytest.mark.parametrize("given", [{}, {"framework": "torch", "type": "pruning"}])
def test_the_decorator_takes_auptimizers_arguments(given, capsys, recwarn):
    entry = {"op_types": ["Linear"], "sparsity": 0.5}
    script = engine.experiment_args(decorated)
    assert script({"compressor": "level", "config_list": [entry], **given}) == 0.5
    assert not [w for w in recwarn if w.category is UserWarning]


def test_keys_of_a_job_are_no_settings_of_an_experiment():
    section = {"compressor": "level", "config_list": [{"op_types": ["Linear"], "sparsity": 0.5}]}
    config.check({**section, "save_model": True, "folder_name": "models/0"})
    whole = {"name": "a", "script": "a.py", "resource": "cpu"}
    with pytest.raises(ConfigError, match='unknown key "save_model"'):
        config.check({**whole, "compression": {**section, "save_model": True}})
