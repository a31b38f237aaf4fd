"""What the tests of this folder say where there is no card: on the CPU, and on a pretended one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

_MIXES = """
import sys
sys.path.insert(0, {folder!r})
import pretended, torch
card = pretended.card()
x = torch.ones(3, device="card")
print(x.device, float((x * torch.tensor(2.0)).sum()))
try:
    x + torch.ones(3)
except pretended.MixedDevicesError as error:
    print(error)
print(sorted(line.rpartition(": ")[2] for line in card.waits))
"""


def test_a_pretended_card_computes_and_refuses_to_mix() -> None:
    script = _MIXES.format(folder=str(HERE))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "card:0 6.0",
        "aten.add.Tensor got tensors on card and on cpu: shapes [(3,)] and [(3,)]",
        "['_local_scalar_dense']",
    ]


def suite(device: str, *arguments: str) -> None:
    """Run the folder's tests on ``device`` in a process of their own: a pretended card stays."""
    environment = {**os.environ, "ENGINE_TEST_DEVICE": device}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE)]
    done = subprocess.run(
        [*command, "-p", "no:xdist", *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "pretended"])
def test_what_is_said_of_a_card_holds(device: str) -> None:
    suite(device, "-m", "gpu and not slow")
