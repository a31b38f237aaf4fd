"""The engine's checks, and whether a C compiler agrees."""

import ctypes
import shutil
import subprocess

import pytest
import torch
from engine_c_header import example
from torch import nn

import engine
from engine.testing import ExporterConformance

ENTRY = {"quant_types": ["weight"], "quant_bits": 8, "op_types": ["Linear"]}


class TestCHeaderExporter(ExporterConformance):
    plugin = "c_header"


def quantized(model):
    quantizer = engine.create_compressor(model, {"compressor": "ptq", "config_list": [ENTRY]})
    quantizer.compress()
    return quantizer


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_compiled_it_computes_what_the_model_does(tmp_path):
    model, x = example()
    quantized(model).export("c_header", tmp_path / "net.h", dummy_input=x, function="net")
    code = '#include "net.h"\nvoid call(const float *x, float *y) { net(x, y); }\n'
    (tmp_path / "net.c").write_text(code)
    command = ["cc", "-O1", "-shared", "-fPIC", "net.c", "-o", "net.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "net.so"))
    for row in x:
        y = torch.empty(8)
        pointers = (ctypes.c_void_p(each.data_ptr()) for each in (row.contiguous(), y))
        library.call(*pointers)
        torch.testing.assert_close(y, model(row).detach(), rtol=1e-4, atol=1e-5)


def test_another_module_is_refused_by_its_name(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    with pytest.raises(engine.ExportError) as raised:
        quantized(model).export("c_header", tmp_path / "net.h")
    assert str(raised.value) == (
        "c_header cannot hold this model; nothing was written\n"
        '  layer "1": is a Tanh; it writes nn.Linear and nn.ReLU'
    )
    assert not list(tmp_path.iterdir())
