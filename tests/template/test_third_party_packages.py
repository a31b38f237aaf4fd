"""The example packages as a stranger gets them: wheels, in an environment of their own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from environments import ROOT, Environment

PACKAGES = ROOT / "docs" / "examples" / "third_party"
#: What the engine's wheel is built from.
ENGINE = (
    *("engine", "plugins_builtin", "plugin_template"),
    *("pyproject.toml", "README.md", "LICENSE"),
)
PLUGINS = {
    "movement": ("movement_pruning", "pruner"),
    "pact": ("pact", "quantizer"),
    "c_header": ("c_header", "exporter"),
    "ria": ("ria", "pruner"),
}
GENERATED = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the sources: a build leaves files beside them."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "engine").mkdir()
    for name in ENGINE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "engine" / name, ignore=GENERATED)
        else:
            shutil.copy(ROOT / name, folder / "engine" / name)
    for package, _ in PLUGINS.values():
        shutil.copytree(PACKAGES / package, folder / package, ignore=GENERATED)
    return folder


@pytest.fixture(scope="module")
def environment(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("fresh")
    names = ["engine", *(package for package, _ in PLUGINS.values())]
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    built = subprocess.run(
        [*command, "--no-index", "-w", str(folder), *(str(sources / name) for name in names)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    wheels = sorted(folder.glob("*.whl"))
    assert [wheel.name.partition("-")[0] for wheel in wheels] == [
        "engine",
        "engine_c_header",
        "engine_movement",
        "engine_pact",
        "engine_ria",
    ]
    made = Environment(folder / "environment", engine=False)
    made.install(*wheels)
    return made


@pytest.mark.slow
def test_wheels_bring_what_they_need(environment: Environment, tmp_path: Path) -> None:
    code = "import engine, engine_pact; print(engine.__file__); print(engine_pact.__file__)"
    done = environment.run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(str(environment.packages) in line for line in done.stdout.splitlines())
    rows = {}
    for options in ((), ("--exporters",)):
        listed = environment.engine("list-algorithms", *options, cwd=tmp_path)
        assert (listed.returncode, listed.stderr) == (0, "")
        rows |= {line.split()[0]: line.split()[1:5] for line in listed.stdout.splitlines() if line}
    for name, (_, role) in PLUGINS.items():
        distribution = f"engine-{name.replace('_', '-')}"
        assert rows[name] == [role, "ok", distribution, "0.1.0"]
    assert rows["level"][:2] == ["pruner", "ok"]
    made = environment.engine("new-algorithm", "other", "--kind", "schedule", cwd=tmp_path)
    assert made.returncode == 0, made.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", PLUGINS)
def test_every_check_is_green(environment: Environment, name: str, tmp_path: Path) -> None:
    checked = environment.engine("check", name, cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert " failed" not in checked.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", PLUGINS)
def test_its_own_tests_pass(environment: Environment, sources: Path, name: str) -> None:
    """Those beside the engine's checks, which the test above has run."""
    checks = "not TestMovementPruner and not TestPACTQuantizer and not TestCHeaderExporter"
    checks += " and not TestRIAPruner"
    options = ["-q", "-p", "no:cacheprovider", "-k", checks]
    tested = environment.run("-m", "pytest", *options, cwd=sources / PLUGINS[name][0])
    assert tested.returncode == 0, tested.stdout
    assert "passed" in tested.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", PLUGINS)
def test_the_example_of_its_readme_runs(
    environment: Environment, sources: Path, name: str, tmp_path: Path
) -> None:
    readme = (sources / PLUGINS[name][0] / "README.md").read_text(encoding="utf-8")
    code = readme.partition("```python\n")[2].partition("```")[0]
    done = environment.run("-c", f"{code}\nmodel(torch.zeros(1, 8))", cwd=tmp_path)
    assert code
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", [package for package, _ in PLUGINS.values()])
def test_only_what_is_public_is_imported(package: str) -> None:
    """The names of ``engine``, and of the packages within it that docs/api.md lists."""
    import ast

    import engine

    public = {"engine", "engine.pruning", "engine.quantization", "engine.testing"}
    public |= {"engine.algorithms", "engine.export", "engine.calibration"}
    for path in (PACKAGES / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("engine."):
                assert node.module in public, f"{path.name} imports {node.module}"
            if isinstance(node, ast.ImportFrom) and node.module == "engine":
                assert {alias.name for alias in node.names} <= set(engine.__all__)


@pytest.mark.parametrize(
    "module", ["movement_pruning/engine_movement", "pact/engine_pact", "ria/engine_ria"]
)
def test_the_mathematics_takes_no_more_than_thirty_lines(module: str) -> None:
    """Statements within functions: imports, signatures and docstrings are not mathematics."""
    import ast

    tree = ast.parse((PACKAGES / module / "__init__.py").read_text(encoding="utf-8"))
    lines: set[int] = set()
    for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
        for statement in function.body:
            text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if not text:
                lines.update(range(statement.lineno, (statement.end_lineno or 0) + 1))
    assert 5 < len(lines) <= 30
