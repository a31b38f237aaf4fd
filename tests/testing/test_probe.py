"""What an import changes is seen, also where NumPy is not installed: PyTorch works without it."""

import subprocess
import sys

import pytest
import torch

from engine.testing import probe


def test_the_state_of_the_process_is_read_without_numpy(monkeypatch):
    def missing(tensor, *args, **kwargs):
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch.Tensor, "numpy", missing)
    before = probe._state()
    assert probe._state() == before
    torch.rand(1)
    changed = {name for name, value in probe._state().items() if value != before[name]}
    assert changed == {"torch's random numbers"}


@pytest.fixture(autouse=True)
def _own_random_numbers():
    with torch.random.fork_rng():
        yield


def test_checks_are_in_order_whichever_module_was_imported_first():
    code = (
        "import engine.testing.lifecycle, engine.testing.results\n"
        "from engine.testing.suite import CHECKS, _PATHS\n"
        "places = [_PATHS.index(each.function.__module__) for each in CHECKS]\n"
        "assert places == sorted(places) and len(set(places)) == len(_PATHS), places\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
