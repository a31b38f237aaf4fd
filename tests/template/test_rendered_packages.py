"""What engine new-algorithm renders works as it is: installed, listed, checked, tested."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from environments import Environment

from engine import cli
from engine.cli.new_algorithm import KINDS
from engine.plugins import registry

ROLES = {
    "pruning": "pruner",
    "quantization": "quantizer",
    "schedule": "schedule",
    "extension": "watcher",
    "exporter": "exporter",
}


GROUPS = {"extension": "engine.extensions", "exporter": "engine.exporters"}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packages")
    for kind in KINDS:
        arguments = ["new-algorithm", f"of_kind_{kind}", "--kind", kind, "--output", str(folder)]
        assert cli.main(arguments) == 0
    return {kind: folder / f"engine-of-kind-{kind}" for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_is_complete(packages: dict[str, Path], kind: str) -> None:
    package, module = packages[kind], f"engine_of_kind_{kind}"
    files = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    assert files == {
        ".engine-template.json",
        ".github/workflows/test.yml",
        ".gitignore",
        "LICENSE",
        "README.md",
        f"{module}/__init__.py",
        f"{module}/py.typed",
        f"{module}/schema.json",
        "pyproject.toml",
        f"tests/test_of_kind_{kind}.py",
    }
    for path in files:
        text = (package / path).read_text()
        assert "{{" not in text.replace("${{", ""), path
        assert "{%" not in text, path
        assert str(Path.home()) not in text, path
        assert text.endswith("\n") or not text, path
    project = tomllib.loads((package / "pyproject.toml").read_text())
    groups = project["project"]["entry-points"]
    (group,) = groups
    assert group == GROUPS.get(kind, "engine.algorithms")
    assert list(groups[group]) == [f"of_kind_{kind}"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_is_clean_by_the_usual_linters(packages: dict[str, Path], kind: str) -> None:
    package = packages[kind]
    settings = ["--isolated", "--line-length", "100", "--target-version", "py311"]
    for command in (
        ["check", "--select", "E,F,W,I,UP,B,D1,ANN,RUF", "--ignore", "D107"],
        ["format", "--check"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *settings, f"{package}/engine_of_kind_{kind}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_of_the_readme_runs(
    packages: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _put_on_path(packages[kind], monkeypatch)
    monkeypatch.chdir(tmp_path)
    text = (packages[kind] / "README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    namespace: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["model"] is not None


def _put_on_path(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the package be found as pip would have installed it, without the time that pip takes."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    info = package / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(package))
    registry.refresh()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("fresh") / "environment")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_three_commands_lead_to_a_green_check_in_a_fresh_environment(
    environment: Environment, kind: str, tmp_path: Path
) -> None:
    """new-algorithm, install, check: no network, no edited line; its tests and the listing, too."""
    name = f"fresh_{kind}"
    rendered = environment.engine("new-algorithm", name, "--kind", kind, cwd=tmp_path)
    assert rendered.returncode == 0, rendered.stderr
    package = tmp_path / f"engine-fresh-{kind}"
    environment.install(package)
    checked = environment.engine("check", name, "--json", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    checks = json.loads(checked.stdout)["checks"]
    assert {each["outcome"] for each in checks} <= {"ok", "skipped"}
    assert sum(each["outcome"] == "ok" for each in checks) > len(checks) * 0.8

    lists = {"extension": ["--extensions"], "exporter": ["--exporters"]}
    listed = environment.engine("list-algorithms", *lists.get(kind, []), cwd=tmp_path).stdout
    assert [line.split()[:3] for line in listed.splitlines() if line.startswith(name)] == [
        [name, ROLES[kind], "ok"]
    ]
    own = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not TestFresh"]
    tested = environment.run(*own, cwd=package)  # beside those that engine check has run
    assert tested.returncode == 0, tested.stdout
    assert "1 passed" in tested.stdout
