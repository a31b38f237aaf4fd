"""What all tests share."""

import signal
import sys
from collections.abc import Iterator

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a few seconds")
    config.addinivalue_line("markers", "gpu: is about a CUDA device; see tests/gpu/conftest.py")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell lets what it runs in the background ignore interrupts; scripts would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # The models are tiny: threads would cost more than they save, above all under pytest-xdist.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _random_state() -> Iterator[None]:
    """Each test draws its own numbers, whatever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def _compiled_code() -> None:
    """Each test compiles anew: PyTorch leaves code eager that other tests compiled too often."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
