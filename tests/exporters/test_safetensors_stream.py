"""Safetensors files written tensor by tensor, read by the package of that name."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import ExportError
from engine.export import write_safetensors

safetensors = pytest.importorskip("safetensors.torch", reason="needs engine[safetensors]")

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32),
    *(torch.int16, torch.int8, torch.uint8, torch.bool),
]
SHAPES = st.lists(st.integers(0, 3), max_size=3)


def stated(tensors):
    return {name: (each.shape, each.dtype) for name, each in tensors.items()}


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=5),
        st.tuples(SHAPES, st.sampled_from(DTYPES)),
        max_size=4,
    ).filter(lambda each: "__metadata__" not in each)
)
def test_what_was_written_is_read(tmp_path_factory, kinds):
    tensors = {name: (torch.randn(s) * 9).to(d) for name, (s, d) in kinds.items()}
    path = tmp_path_factory.mktemp("file") / "m.safetensors"
    write_safetensors(path, stated(tensors), tensors.items(), {"format": "pt"})
    read = safetensors.load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name], tensor)


def test_one_tensor_is_alive_at_a_time(tmp_path):
    alive = weakref.WeakSet()
    most = []

    def made():
        for place in range(5):
            tensor = torch.full((100,), float(place))
            alive.add(tensor)
            most.append(len(alive))
            yield str(place), tensor
            del tensor

    shapes = {str(place): ((100,), torch.float32) for place in range(5)}
    write_safetensors(tmp_path / "m.safetensors", shapes, made())
    assert most == [1] * 5


def test_views_and_transposes_are_written_as_they_are_seen(tmp_path):
    tensor = torch.arange(12.0).view(3, 4)
    parts = {"t": tensor.T, "part": tensor[1:, ::2]}
    write_safetensors(tmp_path / "m.safetensors", stated(parts), parts.items())
    read = safetensors.load_file(tmp_path / "m.safetensors")
    assert all(torch.equal(read[name], part) for name, part in parts.items())


def test_another_tensor_than_was_stated_is_an_error(tmp_path):
    one = {"a": torch.zeros(2)}
    with pytest.raises(ValueError, match="was stated"):
        write_safetensors(tmp_path / "m", {"a": ((3,), torch.float32)}, one.items())
    both = {**stated(one), "b": ((1,), torch.int8)}
    with pytest.raises(ValueError, match="b was stated and not given"):
        write_safetensors(tmp_path / "m", both, one.items())


def test_a_dtype_that_the_format_has_not_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r'holds no torch.complex64: "z"'):
        write_safetensors(tmp_path / "m", {"z": ((1,), torch.complex64)}, [])
