"""The site builds without warnings, and what is made from the code is what the code says."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from engine import config
from engine.plugins import registry
from engine.plugins.stack import FIRST_RESULT, HOOKS

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


PLUGINS = [*registry.algorithms(), *registry.extensions()]


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_every_setting_is_on_the_page_of_its_plugin(
    generate: ModuleType, plugin: registry.Plugin
) -> None:
    page = generate.algorithm_page(plugin)
    entry = plugin.schema.get("$defs", {}).get("entry", {})
    settings = entry.get("properties", {})
    arguments = plugin.schema["properties"].keys() - {"config_list"}
    assert all(f"| `{name}` |" in page for name in (*settings, *arguments))
    assert plugin.attribute in page
    summary = inspect.getdoc(plugin.load()).splitlines()[0]
    assert summary.replace("``", "`") in page
    assert "## Example" in page


@pytest.mark.parametrize("plugin", registry.exporters(), ids=lambda plugin: plugin.name)
def test_the_page_of_a_format_says_what_it_holds(
    generate: ModuleType, plugin: registry.Plugin
) -> None:
    page = generate.exporter_page(plugin)
    options = (*plugin.schema["properties"], *plugin.runtime_arguments)
    assert all(f"| `{name}` |" in page for name in options)
    assert all(str(scheme) in page for scheme in plugin.expresses.get("weights", ()))
    summary = inspect.getdoc(plugin.load()).splitlines()[0]
    assert summary.replace("``", "`") in page
    example = page.partition("```python\n")[2].partition("```")[0]
    assert example.startswith(f'compressor.export("{plugin.name}"')


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_the_example_on_the_page_of_a_plugin_is_right(
    generate: ModuleType, plugin: registry.Plugin, tmp_path: Path
) -> None:
    example = generate.algorithm_page(plugin).partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "example.yaml").write_text(example, encoding="utf-8")
    checked = config.check(tmp_path / "example.yaml")
    named = [extension.name.rpartition(":")[2] for extension in checked.extensions]
    assert plugin.name in (checked.plugin.name, *named)


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    pytest.importorskip("myst_parser", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "final_sparsity" in (tmp_path / "algorithms" / "agp.html").read_text(encoding="utf-8")


def test_the_pictures_are_what_their_script_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparsities of the schedules among them; hooks that are drawn are hooks."""
    pytest.importorskip("grimp", reason="import-linter brings what finds the arrows of the house")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    for title, draw in pictures.PICTURES.items():
        drawn = (ROOT / "docs" / "pictures" / f"{title}.svg").read_text(encoding="utf-8")
        assert drawn == draw(), "run python docs/pictures.py"
        assert len(drawn) < 10_000
    named = [hook for _, _, hooks in pictures.STEPS for hook in hooks]
    assert set(named) <= set(HOOKS)
    assert set(pictures.PROVIDERS) == FIRST_RESULT
