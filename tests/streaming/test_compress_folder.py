"""What is compressed block by block is what is compressed in memory, bit for bit."""

import copy
import json

import pytest
import torch
from decoders import Decoder, decoder, tokens
from folders import loaded, mixed, saved

import engine
from engine.streaming import compress_folder

pytest.importorskip("safetensors", reason="needs engine[safetensors]")

PRUNED = [{"sparsity": 0.5, "op_types": ["Linear"]}, {"exclude": True, "op_names": ["head"]}]
WEIGHTS = {"quant_types": ["weight"], "quant_bits": 4}
GROUPS = [
    {"op_types": ["Linear"], "quant_scheme": "per_group_symmetric", "quant_group_size": 16}
    | WEIGHTS
]


def in_memory(model, config, batches, forward=None):
    runtime = {} if batches is None else {"batches": batches, "forward": forward}
    compressor = engine.create_compressor(model, config, **runtime)
    compressor.compress()
    from engine.export import Source

    return compressor, dict(Source(compressor).tensors())


def same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize(
    ("name", "config_list", "more"),
    [
        ("wanda", PRUNED, {}),
        ("gptq", GROUPS, {}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("wanda", [{"op_types": ["Linear"]}], {"pattern": "2:4"}),
                ("sparse_gpt", PRUNED, {}),
                ("awq", GROUPS, {}),
                ("smooth_quant", GROUPS, {}),
                ("ada_round", GROUPS, {"iterations": 20, "damping": [0.1]}),
                ("ptq", GROUPS, {}),
                ("level", PRUNED, {}),
            ]
        ),
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_it_is_what_comes_out_in_memory(name, config_list, more, skip, tmp_path):
    model = decoder(depth=4, skip=skip)
    folder = saved(model, tmp_path / "dense")
    config = {"compressor": name, "config_list": config_list, **more}
    batches = None if name == "level" else tokens()
    made = compress_folder(
        folder,
        config,
        tmp_path / "small",
        batches=batches,
        to="safetensors",
        model=lambda: Decoder(depth=4, skip=skip),
    )
    compressor, expected = in_memory(model, config, batches)
    same(loaded(made.path), expected)
    assert made.notes == compressor.calibration_notes
    assert [path.name for path in tmp_path.iterdir() if path != folder] == ["small"]


def test_parts_that_are_no_blocks_are_written_and_statistics_with_them(tmp_path):
    model = mixed()
    folder = saved(model, tmp_path / "dense")
    config = {"compressor": "wanda", "config_list": [{"sparsity": 0.5, "op_types": ["Conv2d"]}]}
    batches = [torch.randn(2, 3, 6, 6) for _ in range(4)]
    made = compress_folder(folder, config, tmp_path / "small", batches=batches, model=mixed)
    same(loaded(made.path), in_memory(model, config, batches)[1])


@pytest.mark.slow
def test_filters_and_patterns_by_weights_alone(tmp_path):
    model = mixed()
    folder = saved(model, tmp_path / "dense")
    entries = [{"sparsity": 0.5, "op_types": ["Conv2d"]}]
    for number, config in enumerate(
        [
            {"compressor": "l1_filter", "config_list": entries},
            {"compressor": "level", "config_list": entries, "extensions": ["n_m"]},
        ]
    ):
        made = compress_folder(folder, config, tmp_path / f"small{number}", model=mixed)
        same(loaded(made.path), in_memory(copy.deepcopy(model), config, None)[1])


def test_layers_that_no_batch_reaches_are_named_as_in_memory(tmp_path):
    def forward(model, batch):
        x = model.embed(batch)
        for layer in model.layers[:2]:
            x = layer(x)[0]

    model = decoder(depth=3)
    folder = saved(model, tmp_path / "dense")
    config = {"compressor": "wanda", "config_list": PRUNED}
    with pytest.warns(UserWarning, match=r"no calibration batch reached \"layers\.2\.q\""):
        made = compress_folder(
            folder,
            config,
            tmp_path / "small",
            batches=tokens(),
            forward=forward,
            model=lambda: Decoder(depth=3),
        )
    with pytest.warns(UserWarning, match="no calibration batch reached"):
        same(loaded(made.path), in_memory(model, config, tokens(), forward)[1])


def test_batches_may_be_named_in_the_configuration(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(
        "import torch\ndef batches():\n    return [torch.arange(8).view(1, 8)] * 4\n"
    )
    monkeypatch.chdir(tmp_path)
    folder = saved(decoder(), tmp_path / "dense")
    config = {"compressor": "wanda", "batches": "own_data:batches", "config_list": PRUNED}
    made = compress_folder(folder, config, "small", model=Decoder)
    assert made.path == tmp_path / "small"


class TestOfTransformers:
    @pytest.fixture
    def dense(self, tmp_path):
        pytest.importorskip("transformers", reason="needs engine[transformers]")
        from engine.testing.networks import language_model

        model, _ = language_model(3, tied=True)
        model.save_pretrained(tmp_path / "dense", max_shard_size="100KB")
        (tmp_path / "dense" / "tokenizer.json").write_text("{}")
        generator = torch.Generator().manual_seed(1)
        mask = torch.ones(2, 9, dtype=torch.int64)
        mask[:, :3] = 0
        batches = [
            {
                "input_ids": torch.randint(0, 96, (2, 9), generator=generator),
                "attention_mask": mask,
            }
            for _ in range(5)
        ]
        return tmp_path / "dense", model, batches

    def read(self, folder):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder).eval()

    def test_a_pruned_folder_is_loaded_by_transformers(self, dense, tmp_path):
        folder, model, batches = dense
        entries = [PRUNED[0], {"exclude": True, "op_names": ["lm_head"]}]
        config = {"compressor": "sparse_gpt", "config_list": entries}
        made = compress_folder(folder, config, tmp_path / "small", batches=batches)
        _, expected = in_memory(model, config, batches)
        own = self.read(made.path)
        same({k: v for k, v in own.state_dict().items() if k in expected}, expected)
        assert own.lm_head.weight is own.model.embed_tokens.weight
        stated = json.loads((folder / "config.json").read_text())
        assert json.loads((made.path / "config.json").read_text()) == stated
        assert (made.path / "tokenizer.json").exists()

    @pytest.mark.parametrize(
        ("name", "bits"), [("gptq", 4), pytest.param("naive", 8, marks=pytest.mark.slow)]
    )
    def test_integers_are_loaded_by_compressed_tensors(self, dense, tmp_path, name, bits):
        pytest.importorskip("compressed_tensors", reason="needs engine[compressed-tensors]")
        folder, model, batches = dense
        entries = [
            {**GROUPS[0], "quant_bits": bits},
            {"exclude": True, "op_names": ["lm_head"]},
            {"exclude": True, "op_names": ["model.layers.1.mlp.down_proj"]},
        ]
        config = {"compressor": name, "config_list": entries}
        given = batches if name == "gptq" else None
        made = compress_folder(folder, config, tmp_path / "small", batches=given)
        compressor, _ = in_memory(model, config, given)
        own = self.read(made.path)
        with torch.no_grad():
            assert torch.equal(own(**batches[0]).logits, model(**batches[0]).logits)
        compressor.export("compressed_tensors", tmp_path / "whole")
        one, other = (
            json.loads((path / "config.json").read_text())
            for path in (made.path, tmp_path / "whole")
        )
        assert one == other
        assert (made.path / "tokenizer.json").exists()
