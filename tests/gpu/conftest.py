"""The device that these tests run on, and how to count what it is waited for.

``ENGINE_TEST_DEVICE`` chooses it: ``cuda`` (the default; skipped where there is none), ``cpu``
(do the tests themselves hold?), or ``pretended`` (see ``pretended.py``): what mixes devices or
waits for one is found without a card.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator

import pretended
import pytest
import torch
from runs import CountWaits

from engine.testing.subject import detach_all

CHOSEN = os.environ.get("ENGINE_TEST_DEVICE", "cuda")
_card = pretended.card() if CHOSEN == "pretended" else None


@pytest.fixture
def device() -> torch.device:
    if CHOSEN == "pretended":
        return torch.device(pretended.NAME, 0)
    if CHOSEN == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch.cuda is not available; ENGINE_TEST_DEVICE=cpu runs these on the CPU")
    return torch.device(CHOSEN)


@pytest.fixture(autouse=True)
def _exact_arithmetic() -> Iterator[None]:
    """float32 means float32, and the same kernel each time: results are compared with the CPU's."""
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = kept
    detach_all()


@pytest.fixture
def real_device(device: torch.device) -> torch.device:
    if CHOSEN == "pretended":
        pytest.skip("needs kernels or casts that a pretended device does not have")
    return device


@pytest.fixture
def count_waits(device: torch.device) -> CountWaits:
    if CHOSEN == "cpu":
        pytest.skip("nothing waits for the CPU")
    return _count_pretended if _card is not None else _count_on_cuda


def _count_pretended(call: Callable[[], object]) -> Counter[str]:
    assert _card is not None
    _card.waits.clear()
    call()
    return Counter(_card.waits)


def _count_on_cuda(call: Callable[[], object]) -> Counter[str]:
    found: Counter[str] = Counter()

    def note(message: object, *args: object) -> None:
        if "called a synchronizing" in str(message):
            found[pretended.place()] += 1

    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)
