"""Operations are those of torch's own counter, and those of nonzero weights are exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Everything, Residual
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from engine.analysis import count_flops_params


def torch_count(model: nn.Module, *args: Tensor) -> int:
    """Return what PyTorch's counter says, with attention and recurrence taken apart for it."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # oneDNN would fuse a recurrent layer into one operator that the counter does not know.
        with (
            sdpa_kernel(SDPBackend.MATH),
            torch.backends.mkldnn.flags(enabled=False),
            FlopCounterMode(display=False) as counter,
        ):
            model.eval()(*args)
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
    return counter.get_total_flops()


class Functional(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


IMAGE = (2, 8, 9, 9)
CASES = {
    "convolution": (nn.Conv2d(8, 6, 3, padding=1), [IMAGE]),
    "grouped": (nn.Conv2d(8, 12, 3, groups=4, stride=2), [IMAGE]),
    "depthwise": (nn.Conv2d(8, 16, 3, groups=8), [IMAGE]),
    "dilated": (nn.Conv2d(8, 6, 3, dilation=3, padding=2), [IMAGE]),
    "transposed": (nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2), [IMAGE]),
    "one dimension": (nn.Conv1d(4, 6, 3), [(2, 4, 11)]),
    "three dimensions": (nn.Conv3d(2, 3, 2), [(1, 2, 5, 5, 5)]),
    "single image": (nn.Conv2d(8, 6, 3), [(8, 9, 9)]),
    "linear": (nn.Linear(5, 7), [(2, 3, 5)]),
    "linear of a vector": (nn.Linear(5, 7), [(5,)]),
    "matrix products": (Functional(lambda a, b: a @ b), [(3, 4, 5), (3, 5, 6)]),
    "einsum": (Functional(lambda a, b: torch.einsum("bik,kj->bij", a, b)), [(3, 4, 5), (5, 6)]),
    "attention": (Functional(F.scaled_dot_product_attention), [(2, 3, 4, 5)] * 3),
    "cross attention": (
        Functional(F.scaled_dot_product_attention),
        [(2, 3, 4, 5), (2, 3, 7, 5), (2, 3, 7, 5)],
    ),
    "transformer": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), [(2, 5, 8)]),
    "lstm": (nn.LSTM(4, 5, 2, bidirectional=True), [(6, 3, 4)]),
    "projected lstm": (nn.LSTM(4, 5, 1, proj_size=3), [(6, 3, 4)]),
    "gru": (nn.GRU(4, 5), [(6, 3, 4)]),
    "no products": (nn.BatchNorm2d(8), [IMAGE]),
    "everything": (Everything(), [(2, 3, 14, 14)]),
}


@pytest.mark.filterwarnings("ignore:TF32", "ignore:LSTM with projections")
@pytest.mark.parametrize("name", CASES)
def test_operations_are_those_of_the_torch_counter(name: str) -> None:
    model, shapes = CASES[name]
    inputs = tuple(torch.randn(shape) for shape in shapes)
    assert count_flops_params(model, inputs).flops == torch_count(model, *inputs)


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    transposed=st.booleans(),
    sparsity=st.floats(0, 1),
)
def test_masked_operations_are_a_sum_over_nonzero_weights(
    groups, inputs, outputs, kernel, stride, padding, transposed, sparsity
) -> None:
    make = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = make(groups * inputs, groups * outputs, kernel, stride, padding, groups=groups)
    x = torch.randn(2, groups * inputs, 7, 6)
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) >= sparsity)
        at = x if transposed else layer(x)
    # Each weight meets each image and each place of the smaller side once.
    uses = at.shape[0] * at.shape[2] * at.shape[3]
    count = count_flops_params(layer, x)
    assert count.flops == 2 * uses * layer.weight.numel()
    assert count.masked_flops == 2 * uses * int((layer.weight != 0).sum())


def test_bilinear_and_dot_products_are_counted_though_torch_leaves_them_out() -> None:
    x, y = torch.randn(6, 3), torch.randn(6, 4)
    assert count_flops_params(nn.Bilinear(3, 4, 5), (x, y)).flops == 2 * 6 * 60
    a, b = torch.randn(9), torch.randn(9)
    assert count_flops_params(Functional(torch.dot), (a, b)).flops == 18


def test_operators_in_inference_mode_are_seen() -> None:
    class Inference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 7)

        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    count = count_flops_params(Inference(), torch.randn(3, 5))
    assert [(layer.name, layer.flops) for layer in count.layers] == [("fc", 2 * 3 * 35)]


def test_a_weight_that_is_computed_from_parameters_is_a_weight() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 6))
            self.register_buffer("keep", torch.tensor([1.0, 0, 0, 1])[:, None])

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.linear(x, self.weight * self.keep), torch.ones(3, 4))

    count = count_flops_params(Masked(), torch.randn(5, 6))
    assert count.flops == 2 * 5 * (24 + 12)
    assert count.masked_flops == 2 * 5 * (12 + 12)


def test_what_depends_on_the_input_is_no_weight_whatever_zeros_it_has() -> None:
    class Hyper(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kernel = torch.zeros(3, 4)
            kernel[:, :2] = x[:3, :2]
            return F.linear(x, kernel)

    count = count_flops_params(Hyper(), torch.randn(5, 4))
    assert count.masked_flops == count.flops == 2 * 5 * 12


def test_operations_belong_to_the_module_that_runs_them() -> None:
    model = Everything()
    count = count_flops_params(model, (2, 3, 14, 14))
    layers = {layer.name: layer for layer in count.layers}
    tokens = layers["mix"].output_shape[1]
    assert layers["mix"].calls == 2
    assert layers["mix"].flops == 2 * (2 * 2 * tokens * 64)
    # Three projections and one back, and two products of tokens with tokens.
    assert layers["attention"].flops == 2 * 2 * (4 * tokens * 64 + 2 * tokens * tokens * 8)
    assert layers["attention.out_proj"].flops == 0
    # The functional attention, the einsum and the product with ones.
    own = 2 * 2 * (2 * tokens * tokens * 8 + tokens * 8 * 5 + tokens * 5 * 2)
    assert layers[""].flops == own


def test_operations_grow_with_the_batch_and_parameters_do_not() -> None:
    one = count_flops_params(Residual(), (1, 3, 8, 8))
    five = count_flops_params(Residual(), (5, 3, 8, 8))
    assert five.flops == 5 * one.flops
    assert five.params == one.params == 224 + 16 + 438 + 440 + 27


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_scripted_and_replicated_models_count_like_the_plain_one() -> None:
    x, plain = torch.randn(3, 4), nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    variants = [
        torch.jit.script(plain),
        torch.compile(plain, backend="eager"),
        nn.DataParallel(plain),
        nn.Sequential(nn.Linear(4, 5, device="meta"), nn.Linear(5, 2, device="meta")),
    ]
    for model in variants[:3]:
        assert count_flops_params(model, x).flops == 2 * 3 * 30
    count = count_flops_params(variants[3], (3, 4))
    assert count.masked_flops == 2 * 3 * 30
    assert count.nonzero_params == count.params == 37
