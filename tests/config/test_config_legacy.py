import warnings

import pytest

from engine import config
from engine.errors import ConfigError

OLD = """\
AGPruner:
  config:
    -
      start_epoch: 1
      end_epoch: 10
      frequency: 1
      initial_sparsity: 0.05
      final_sparsity: 0.8
      support_type: 'default'
    -
      prune: False
      final_sparsity: 0.6
      support_type: [Linear]
      support_op: [conv1, conv2]
"""


def write(tmp_path, text):
    path = tmp_path / "old.yaml"
    path.write_text(text)
    return path


def read(path):
    with pytest.warns(DeprecationWarning, match="first compression release") as notices:
        document = config.read(path)
    assert len(notices) == 1
    return document, str(notices[0].message).replace(f"{path.parent}/", "")


def test_the_first_format_is_translated_with_one_notice(tmp_path):
    document, notice = read(write(tmp_path, OLD))
    assert document.data == {
        "framework": "pytorch",
        "compressor": "AGPruner",
        "config_list": [
            {
                "start_epoch": 1,
                "end_epoch": 10,
                "frequency": 1,
                "initial_sparsity": 0.05,
                "final_sparsity": 0.8,
                "op_types": ["default"],
            },
            {"exclude": True, "op_types": ["Linear"]},
            {"exclude": True, "op_names": ["conv1", "conv2"]},
        ],
    }
    assert notice == (
        "old.yaml is of the format of NNI's first compression release; today it is written as\n\n"
        "    framework: pytorch\n"
        "    compressor: AGPruner\n"
        "    config_list:\n"
        "    - start_epoch: 1\n"
        "      end_epoch: 10\n"
        "      frequency: 1\n"
        "      initial_sparsity: 0.05\n"
        "      final_sparsity: 0.8\n"
        "      op_types: [default]\n"
        "    - exclude: true\n"
        "      op_types: [Linear]\n"
        "    - exclude: true\n"
        "      op_names: [conv1, conv2]\n"
    )


def test_the_translation_means_something(tmp_path):
    document, _ = read(write(tmp_path, OLD))
    settings = config.check(document)
    assert settings.plugin.name == "agp"
    assert [entry.get("sparsity") for entry in settings.entries] == [0.8, None, None]


def test_the_notice_is_for_the_caller(tmp_path):
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        config.check(write(tmp_path, OLD))
    assert [notice.filename for notice in notices] == [__file__]


def test_an_entry_for_types_or_names_becomes_two(tmp_path):
    text = (
        "LevelPruner:\n  config:\n  - {sparsity: 0.5, support_type: [Linear], support_op: conv1}\n"
    )
    document, _ = read(write(tmp_path, text))
    assert document.data["config_list"] == [
        {"sparsity": 0.5, "op_types": ["Linear"]},
        {"sparsity": 0.5, "op_names": ["conv1"]},
    ]


@pytest.mark.parametrize("name", ["QATquantizer", "torchQATquantizer", "DoReFaQuantizer"])
def test_bits_of_quantizers(tmp_path, name):
    text = f"{name}:\n  config:\n  - {{q_bits: 8, support_type: [Conv2d, Linear]}}\n"
    document, _ = read(write(tmp_path, text))
    assert document.data["config_list"] == [
        {"quant_types": ["weight"], "quant_bits": 8, "op_types": ["Conv2d", "Linear"]}
    ]
    assert config.check(document).kind == "quantization"


def test_problems_are_at_the_places_of_the_old_file(tmp_path):
    text = (
        "LevelPruner:\n  config:\n  - sparsity: 1.5\n    support_type: [Linear]\n"
        "    support_op: conv1\n  - prune: 3\n    support_typ: default\n  - q_bits: 8\n"
        "    support_op: [3]\n"
    )
    path = write(tmp_path, text)
    document, _ = read(path)
    with pytest.raises(ConfigError) as caught:
        config.check(document)
    assert str(caught.value).replace(f"{path.parent}/", "") == (
        "old.yaml: 9 problems\n\n"
        "/LevelPruner/config/0/sparsity   (line 3)\n  1.5 is out of range\n"
        "  level needs: 0 <= sparsity < 1\n\n"
        "/LevelPruner/config/1   (line 6)\n"
        '  neither "op_types" nor "op_names" is given\n'
        "  an entry says which layers it is for: op_types: [default], for one\n\n"
        '/LevelPruner/config/1   (line 6)\n  "sparsity" is missing\n'
        "  level needs: a number, 0 <= sparsity < 1\n\n"
        "/LevelPruner/config/1/prune   (line 6)\n  3 is not true or false\n"
        "  level needs: true or false\n\n"
        '/LevelPruner/config/1/support_typ   (line 7)\n  unknown setting "support_typ"\n'
        "  level allows: sparsity, op_types, op_names, exclude\n\n"
        '/LevelPruner/config/2   (line 8)\n  "sparsity" is missing\n'
        "  level needs: a number, 0 <= sparsity < 1\n\n"
        '/LevelPruner/config/2/q_bits   (line 8)\n  unknown setting "quant_types"\n'
        '  level allows: sparsity, op_types, op_names, exclude\n  did you mean "op_types"?\n\n'
        '/LevelPruner/config/2/q_bits   (line 8)\n  unknown setting "quant_bits"\n'
        "  level allows: sparsity, op_types, op_names, exclude\n\n"
        "/LevelPruner/config/2/support_op/0   (line 9)\n  3 is not text\n  level needs: text"
    )


def test_tensorflow_is_refused_by_name(tmp_path):
    text = "tfLevelPruner:\n  config:\n  - {sparsity: 0.5, support_type: default}\n"
    path = write(tmp_path, text)
    document, _ = read(path)
    with pytest.raises(ConfigError) as caught:
        config.check(document)
    assert str(caught.value).replace(f"{path.parent}/", "") == (
        "old.yaml: 1 problem\n\n/tfLevelPruner   (line 1)\n  TensorFlow is not supported\n"
        "  the engine allows: torch, pytorch"
    )


def test_several_algorithms_in_one_file(tmp_path):
    path = write(tmp_path, "LevelPruner: {config: []}\nAGPruner: {config: []}\n")
    with pytest.raises(ConfigError) as caught:
        config.read(path)
    assert str(caught.value).replace(f"{path.parent}/", "") == (
        "old.yaml: 1 problem\n\n/   (line 1)\n"
        "  the file configures 2 algorithms: LevelPruner, AGPruner\n"
        "  an experiment has one; put each into a file of its own"
    )


@pytest.mark.parametrize("text", ["LevelPruner: {config: 3}\n", "LevelPruner: {config: [3]}\n"])
def test_an_old_file_with_a_mistake_is_a_config_error(tmp_path, text):
    document, _ = read(write(tmp_path, text))
    with pytest.raises(ConfigError):
        config.check(document)


def test_the_old_format_in_python():
    with pytest.warns(DeprecationWarning, match="configuration is of the format"):
        document = config.read(
            {"LevelPruner": {"config": [{"sparsity": 0.5, "support_type": "default"}]}}
        )
    assert document.data["compressor"] == "LevelPruner"
