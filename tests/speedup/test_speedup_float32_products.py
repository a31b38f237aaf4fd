"""Outputs are compared in float32, also where products are rounded to TensorFloat-32."""

import pytest
import torch
from torch import nn

from engine.speedup import compare
from engine.speedup.float32_products import float32_products


def precisions() -> tuple[str, str]:
    backends = torch.backends
    return backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision


class Asking(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = precisions()
        return x


@pytest.fixture
def tensor_float_32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("tensor_float_32")
def test_a_compared_model_multiplies_in_float32():
    model = Asking()
    compare.run(model, ((torch.ones(1),), {}))
    assert model.seen == ("ieee", "ieee")
    assert precisions() == ("tf32", "tf32")


@pytest.mark.usefixtures("tensor_float_32")
def test_settings_are_put_back_after_an_error():
    with pytest.raises(ZeroDivisionError), float32_products():
        _ = 1 / 0
    assert precisions() == ("tf32", "tf32")
