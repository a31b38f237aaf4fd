"""Packed integers come back bit by bit and take the bits they say."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import ExportError
from engine.export import PackedWeight, pack, unpack
from engine.quantization import affine_parameters, fake_quantize

WIDTHS = [1, 2, 3, 4, 5, 6, 7, 8, 16]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def on_grid(shape, bits, dtype=torch.float32, per_channel=False, sparsity=0.0):
    """A fake-quantized weight and its grid; some of it pruned."""
    weight = torch.randn(shape).to(dtype)
    dims = {"dim": tuple(range(1, weight.dim())), "keepdim": True} if per_channel else {}
    low, high = weight.float().amin(**dims), weight.float().amax(**dims)
    scale, zero_point = affine_parameters(low, high, 0, 2**bits - 1)
    weight = fake_quantize(weight, scale, zero_point, 0, 2**bits - 1)
    return weight * (torch.rand(shape) >= sparsity), scale, zero_point


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_grid_comes_back_bit_by_bit(bits, sparsity, per_channel):
    weight, scale, zero_point = on_grid((7, 5, 3), bits, per_channel=per_channel, sparsity=sparsity)
    packed = pack(weight, bits, scale, zero_point)
    assert packed.table is None
    assert same(unpack(packed), weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [2, 8, 16])
def test_every_precision_comes_back_bit_by_bit(dtype, bits):
    weight, scale, zero_point = on_grid((9, 8), bits, dtype=dtype, sparsity=0.4)
    assert same(unpack(pack(weight, bits, scale, zero_point)), weight)


def test_float64_needs_no_table():
    weight, scale, zero_point = on_grid((9, 8), 4, dtype=torch.float64)
    assert pack(weight, 4, scale.float(), zero_point.float()).table is None


def test_codes_by_hand():
    # 3-bit codes 0, 1, 2, 3, 4, 5, 6, 7, 1, lowest bit first: 24 bits, then 001.
    weight = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7, 1])
    packed = pack(weight, 3, torch.tensor(1.0), torch.tensor(0.0))
    bits = "000100010110001101011111100"
    expected = [int(bits[i : i + 8][::-1], 2) for i in range(0, 27, 8)]
    assert packed.codes.tolist() == expected


def test_a_symmetric_grid_counts_from_its_smallest_integer():
    weight = torch.tensor([-3.0, 0.0, 3.0])
    packed = pack(weight, 3, torch.tensor(1.0), torch.tensor(0.0), qmin=-3)
    assert packed.codes.tolist() == [0b10_011_000, 0b1]
    assert same(unpack(packed), weight)


def test_without_a_grid_values_are_looked_up_in_a_table():
    weight = torch.tensor([[0.3, -1.7], [0.3, 2.2]])
    packed = pack(weight, 2)
    assert packed.table.tolist() == pytest.approx([-1.7, 0.3, 2.2])
    assert packed.scale is None
    assert same(unpack(packed), weight)


def test_a_weight_off_its_grid_is_looked_up_too():
    weight = torch.tensor([0.25, 1.0])
    packed = pack(weight, 4, torch.tensor(1.0), torch.tensor(0.0))
    assert packed.table is not None
    assert same(unpack(packed), weight)


@pytest.mark.parametrize(("values", "bits"), [((-1.0, 1.0), 1), ((-1.0, -1 / 3, 1 / 3, 1.0), 2)])
@pytest.mark.parametrize("zeros", [1, 30, 90])
def test_zeros_that_a_full_grid_has_no_code_for_are_left_out(values, bits, zeros):
    weight = torch.tensor(values)[torch.arange(100) % len(values)]
    weight[:zeros] = 0
    packed = pack(weight, bits)
    assert packed.present is not None
    assert same(unpack(packed), weight)


def test_too_many_values_are_refused():
    with pytest.raises(ExportError) as caught:
        pack(torch.arange(6.0), 2)
    assert str(caught.value) == (
        "the weight has 5 different values beside zero, 2 bits hold 4: it is not quantized to 2 "
        "bits"
    )


def test_nan_is_refused():
    with pytest.raises(ExportError, match="the weight holds NaN"):
        pack(torch.tensor([1.0, math.nan]), 8, torch.tensor(1.0), torch.tensor(0.0))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,)])
def test_small_shapes_come_back(shape):
    weight = torch.ones(shape)
    assert same(unpack(pack(weight, 4, torch.tensor(1.0), torch.tensor(0.0))), weight)
    assert same(unpack(pack(0 * weight, 4)), 0 * weight)


def test_minus_zero_comes_back_as_zero():
    assert unpack(pack(torch.tensor([-0.0, 1.0]), 2))[0].signbit().item() is False


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_dense_weight_takes_its_bits_and_nothing_else(bits):
    weight, scale, zero_point = on_grid((64, 128), bits)
    packed = pack(weight, bits, scale, zero_point)
    if packed.present is None:
        assert packed.nbytes == 64 * 128 * bits // 8 + 8
    else:
        assert packed.nbytes < 64 * 128 * bits // 8


def test_a_sparse_weight_takes_a_bit_for_each_and_its_bits_for_what_is_left():
    weight, scale, zero_point = on_grid((64, 128), 8, sparsity=0.9)
    kept = int(torch.count_nonzero(weight))
    assert pack(weight, 8, scale, zero_point).nbytes == 64 * 128 // 8 + kept + 8


def test_the_weight_is_not_changed_and_the_grid_not_shared():
    weight, scale, zero_point = on_grid((4, 4), 4)
    before = weight.clone()
    packed = pack(weight, 4, scale, zero_point)
    scale.mul_(2)
    assert torch.equal(weight, before)
    assert same(unpack(packed), weight)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 16),
    st.lists(st.integers(0, 2**16 - 1), max_size=70),
    st.integers(-(2**15), 2**15),
)
def test_any_integers_of_any_width_come_back(bits, codes, zero_point):
    weight = (torch.tensor([code % 2**bits for code in codes]).float() - zero_point) * 0.5
    packed = pack(weight, bits, torch.tensor(0.5), torch.tensor(float(zero_point)))
    assert same(unpack(packed), weight + 0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"codes": torch.zeros(1, dtype=torch.uint8)},
        {"codes": torch.zeros(99, dtype=torch.uint8)},
        {"codes": torch.zeros(6)},
        {"present": torch.zeros(1, dtype=torch.uint8)},
        {"shape": (10**13,)},
        {"bits": 0},
        {"bits": 40},
        {"dtype": "load"},
        {"dtype": "int32"},
        {"dtype": "nothing"},
        {"scale": None},
    ],
)
def test_parts_that_do_not_belong_together_are_refused(change):
    weight, scale, zero_point = on_grid((3, 4), 4)
    packed: PackedWeight = pack(weight, 4, scale, zero_point)._replace(**change)
    with pytest.raises(ValueError, match=r"."):
        unpack(packed)
