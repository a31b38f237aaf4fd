"""The zoo beside a torchvision that loads its own operators, and beside one that cannot."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ZOO = Path(__file__).parents[2] / "docs" / "benchmarks" / "zoo"
#: What torchvision does when it is imported: define operators, then describe one of them.
PACKAGE = """
import torch

if {loads}:
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", lambda dets, scores, iou_threshold: scores.argsort(), "CPU")

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return scores.argsort()

from torchvision import models, ops
"""
SCRIPT = """
import torch, zoos

assert zoos.torchvision() == {}
boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [6, 6, 9, 9]])
print(torch.ops.torchvision.nms(boxes, torch.tensor([1.0, 2, 3]), 0.5).tolist())
"""


@pytest.mark.parametrize(
    ("loads", "kept"), [(True, [0, 1, 2]), (False, [2, 1])], ids=["its own", "in Python"]
)
def test_operators_are_defined_once(tmp_path, loads, kept):
    package = tmp_path / "torchvision"
    (package / "ops").mkdir(parents=True)
    (package / "__init__.py").write_text(textwrap.dedent(PACKAGE).format(loads=loads))
    (package / "models.py").write_text("def list_models():\n    return []\n")
    (package / "ops" / "__init__.py").write_text("from torchvision.ops import boxes\n")
    (package / "ops" / "boxes.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ZOO,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{kept}\n"
