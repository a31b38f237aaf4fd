"""The example on digits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.cli import main

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def test_the_example_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(EXAMPLES / "experiment" / "search.yaml")]) == 0
    assert "max by gp, 1 search space" in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_finds_a_smaller_network_that_loads(tmp_path: Path) -> None:
    import sys

    import engine

    pytest.importorskip("sklearn")
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "experiment" / "search.yaml"
    file.write_text(file.read_text().replace("n_samples: 20", "n_samples: 2"))
    assert main(["run", str(file)]) == 0
    folder = file.parent / "digits-smallest-network.exp"
    assert main(["report", str(folder)]) == 0
    report = json.loads((folder / "report.json").read_text())
    totals = report["models"][str(report["best"])]["totals"]
    assert totals["params"]["after"] < totals["params"]["before"]
    assert totals["file_bytes"]["after"] < totals["file_bytes"]["before"]
    (model,) = folder.glob("models/*/model.pth")
    sys.path.insert(0, str(EXAMPLES))
    try:
        from digits_net import DigitsNet  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(EXAMPLES))
    small = engine.load_compressed(DigitsNet(), model)
    assert sum(p.numel() for p in small.parameters()) == totals["params"]["after"]
