"""What cannot be compressed block by block is a sentence, and nothing is left under the name."""

import json

import pytest
import torch
from decoders import Decoder, decoder, tokens
from folders import mixed, saved
from torch import nn

import engine
from engine.streaming import compress_folder
from engine.streaming.weights import Weights

LINEAR = [{"sparsity": 0.5, "op_types": ["Linear"]}]
WANDA = {"compressor": "wanda", "config_list": LINEAR}


@pytest.fixture
def dense(tmp_path):
    return saved(decoder(), tmp_path / "dense")


def refused(folder, message, config=WANDA, error=engine.EngineError, **more):
    out = folder.parent / "small"
    more = {"batches": tokens(), "model": Decoder, **more}
    with pytest.raises(error) as caught:
        compress_folder(folder, config, out, **more)
    assert str(caught.value) == message.format(folder=folder, out=out)
    assert not out.exists()


def test_a_missing_shard(dense):
    (dense / "model-00002-of-00003.safetensors").unlink()
    refused(
        dense,
        "{folder}: 1 of 3 shards is missing: model-00002-of-00003.safetensors\n"
        "  fetch the folder again",
    )


def test_a_shard_that_is_cut_off(dense):
    file = dense / "model-00002-of-00003.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    refused(
        dense,
        f"{file} is cut off: {len(content) - 1} bytes of {len(content)}\n  fetch it again",
    )
    file.write_bytes(content[:50])
    refused(dense, f"{file} is no whole safetensors file: its header is longer than the file")
    file.write_bytes(b"")
    with pytest.raises(engine.EngineError, match="no whole safetensors file"):
        Weights(dense)


def test_a_file_that_becomes_shorter_while_it_is_read(dense):
    weights = Weights(dense)
    place = weights.place("layers.1.up.weight")
    with place.path.open("rb+") as stream:
        stream.truncate(place.end - 4)
    with pytest.raises(engine.EngineError, match="is cut off: it ends within layers"):
        weights.read("layers.1.up.weight")


def test_folders_that_hold_no_model(tmp_path):
    refused(tmp_path / "none", "there is no folder {folder}")
    (tmp_path / "empty").mkdir()
    refused(
        tmp_path / "empty",
        "{folder} holds no model: neither model.safetensors nor model.safetensors.index.json is "
        "there\n  it needs weights in safetensors, as save_pretrained writes them",
    )


def test_a_block_that_is_in_no_shard(dense):
    refused(
        dense,
        'the model has a tensor "layers.3.norm1.weight", and no file of {folder} holds it\n'
        '  the nearest that is there is "layers.2.norm1.weight"\n'
        "  the model must be that of the folder, its names those of its state_dict",
        model=lambda: Decoder(depth=4),
    )


def test_a_block_of_another_shape(dense):
    refused(
        dense,
        '"layers.0.gate.weight" is (48, 32) in {folder} and (64, 32) in the model',
        model=lambda: Decoder(inner=64),
    )


def test_tensors_that_the_model_has_not_are_named(dense, tmp_path):
    message = "13 tensors that the model has not, which are left out: layers.2.down.bias, "
    with pytest.warns(UserWarning, match=message):
        made = compress_folder(
            dense,
            WANDA,
            tmp_path / "small",
            batches=tokens(),
            model=lambda: Decoder(depth=2),
        )
    assert made.path.exists()


def test_weights_that_two_layers_share(tmp_path):
    def tied():
        model = decoder()
        model.head.weight = model.embed.weight
        return model

    folder = saved(tied(), tmp_path / "dense")
    refused(
        folder,
        '"head" and "embed" share one weight, and are not in memory at the same time: neither can '
        "be compressed block by block\n"
        '  leave both out: {{"op_names": ["head", "embed"], "exclude": true}}',
        model=tied,
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"compressor": "agp", "pruning_algorithm": "level"},
            "agp needs the whole model in memory: it is a schedule",
        ),
        (
            {"compressor": "slim", "config_list": [{"sparsity": 0.5, "op_types": ["BatchNorm2d"]}]},
            "slim needs the whole model in memory: its schema does not say that it works layer by "
            "layer\n  these do: ada_round, awq, fpgm, gptq, l1_filter, l2_filter, level, naive, "
            "ptq, smooth_quant, sparse_gpt, wanda",
        ),
        (
            {"compressor": "l1_filter", "dependency_aware": True},
            "dependency_aware needs the whole model in memory: it decides over layers together",
        ),
        (
            {"compressor": "l1_filter", "extensions": ["global_ranking"]},
            "global_ranking needs the whole model in memory: it decides over layers together",
        ),
    ],
)
def test_algorithms_that_need_the_whole_model(config, message, tmp_path):
    folder = saved(mixed(), tmp_path / "dense")
    entry = {"op_types": ["Conv2d"], "sparsity": 0.5}
    if config["compressor"] == "agp":
        entry = {"op_types": ["Conv2d"], "initial_sparsity": 0.0, "final_sparsity": 0.5}
        entry |= {"start_epoch": 0, "end_epoch": 3, "frequency": 1}
    refused(folder, message, {"config_list": [entry], **config}, model=mixed, batches=None)


def test_an_algorithm_that_changes_another_block(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 4))
            )

        def forward(self, x):
            return self.layers(x)

    folder = saved(Two(), tmp_path / "dense")
    entry = {"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": 8}
    config = {"compressor": "ptq", "cross_layer_equalization": True, "config_list": [entry]}
    with pytest.raises(engine.EngineError, match="of another block, which is not loaded"):
        compress_folder(folder, config, tmp_path / "small", model=Two)
    assert not (tmp_path / "small").exists()


def test_a_block_that_runs_twice(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4)])

        def forward(self, x):
            return self.layers[0](self.layers[0](x))

    folder = saved(Twice(), tmp_path / "dense")
    refused(
        folder,
        '"layers.0" runs more than once in a forward pass: such a model cannot be compressed block '
        "by block\n  compress it in memory",
        model=Twice,
        batches=[torch.randn(3, 4)],
    )


def test_what_the_configuration_lacks(dense):
    with pytest.raises(engine.ConfigError, match="batches is missing"):
        compress_folder(dense, WANDA, dense.parent / "small", model=Decoder)
    entries = [{"sparsity": 0.5, "op_names": ["layers.7.up"]}]
    with pytest.raises(engine.ConfigError, match=r'"layers\.7\.up"'):
        compress_folder(
            dense,
            {"compressor": "level", "config_list": entries},
            dense.parent / "small",
            model=Decoder,
        )


def test_a_name_that_is_taken(dense):
    out = dense.parent / "small"
    out.mkdir()
    with pytest.raises(engine.ExportError, match="is there already"):
        compress_folder(dense, WANDA, out, batches=tokens(), model=Decoder)


def test_formats_without_shards(dense):
    entry = {"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": 8}
    refused(
        dense,
        "packed writes one file of the whole model, not shards: a model larger than memory can be "
        'written as "compressed_tensors" or "safetensors"',
        {"compressor": "naive", "config_list": [entry]},
        error=engine.ExportError,
        batches=None,
        to="packed",
    )


def test_folders_of_transformers(tmp_path):
    folder = saved(decoder(), tmp_path / "dense")
    refused(
        folder,
        "{folder} has no config.json\n  give the model by a factory: model=lambda: MyModel()",
        model=None,
    )
    config = folder / "config.json"
    config.write_text(json.dumps({"quantization_config": {}}))
    refused(
        folder,
        "{folder} is quantized already: config.json has a quantization_config",
        model=None,
    )
    pytest.importorskip("transformers", reason="needs engine[transformers]")
    config.write_text(json.dumps({"architectures": ["Unheard"]}))
    refused(
        folder,
        f'{config} : transformers has no class "Unheard" (architectures)'.replace(" :", ":"),
        model=None,
    )


def test_a_format_that_cannot_hold_it_says_so_behind_the_first_block(tmp_path):
    pytest.importorskip("compressed_tensors", reason="needs engine[compressed-tensors]")
    pytest.importorskip("transformers", reason="needs engine[transformers]")
    from engine.testing.networks import language_model

    model, _ = language_model(2)
    model.save_pretrained(tmp_path / "dense")
    entry = {"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": 4}
    entry |= {"quant_scheme": "per_channel_affine"}
    entries = [entry, {"op_names": ["lm_head"], "exclude": True}]
    config = {"compressor": "naive", "config_list": entries}
    with pytest.raises(engine.ExportError, match="compressed_tensors cannot hold this model"):
        compress_folder(tmp_path / "dense", config, tmp_path / "small")
    assert not (tmp_path / "small").exists()
