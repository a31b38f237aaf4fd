"""What an export says of one operator: whether it computes with integers, and why not."""

from __future__ import annotations

from typing import NamedTuple

FLOAT_INPUT = "the input is not quantized"
FLOAT_TERM = "an input is not quantized"
FLOAT_OUTPUT = "the output is not quantized"
FLOAT_READER = "the output is also read in float"
SEVERAL_GRIDS = "its readers have different grids"
_LACKS_GRIDS = {FLOAT_INPUT, FLOAT_TERM, FLOAT_OUTPUT, FLOAT_READER, SEVERAL_GRIDS}


class Placement(NamedTuple):
    """One operator of an exported model.

    Attributes:
        layer: the dotted name of the module that calls it, ``""`` for the model's own forward.
        operator: "convolution", "linear", "add", "product" (of matrices, also in attention) or
            "recurrent".
        integer: whether all that an integer kernel needs is in the file.
        reason: why not; "" where it is.
    """

    layer: str
    operator: str
    integer: bool
    reason: str

    @property
    def lacks_grids(self) -> bool:
        """Whether an integer kernel exists and lacks grids, which sample batches can give."""
        return self.reason in _LACKS_GRIDS
