"""The site builds without warnings, and what is made from the code is what the code says."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from engine import config, registry
from engine.stack import HOOKS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_hook_reference_is_what_the_specifications_say(generate: ModuleType) -> None:
    page = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    assert page == generate.hooks_page(), "run python docs/generate.py"
    assert all(f"## {hook}\n" in page for hook in HOOKS)


@pytest.mark.parametrize("plugin", registry.algorithms(), ids=lambda plugin: plugin.name)
def test_every_setting_is_on_the_page_of_its_plugin(
    generate: ModuleType, plugin: registry.Plugin
) -> None:
    page = generate.algorithm_page(plugin)
    settings = plugin.schema["$defs"]["entry"]["properties"]
    arguments = plugin.schema["properties"].keys() - {"config_list"}
    assert all(f"| `{name}` |" in page for name in (*settings, *arguments))
    assert plugin.attribute in page
    assert "## Example" in page


@pytest.mark.parametrize("plugin", registry.algorithms(), ids=lambda plugin: plugin.name)
def test_the_example_on_the_page_of_a_plugin_is_right(
    generate: ModuleType, plugin: registry.Plugin, tmp_path: Path
) -> None:
    example = generate.algorithm_page(plugin).partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "example.yaml").write_text(example, encoding="utf-8")
    assert config.check(tmp_path / "example.yaml").plugin.name == plugin.name


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    pytest.importorskip("myst_parser", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "final_sparsity" in (tmp_path / "algorithms" / "agp.html").read_text(encoding="utf-8")
