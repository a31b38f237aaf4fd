"""The locked versions, and the script that runs the suite on others."""

import re
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = [Requirement(line) for line in LINES if not line.startswith("#")]
PLATFORMS = [
    {"sys_platform": system, "python_full_version": f"{version}.9", "python_version": version}
    for system in ("linux", "darwin", "win32")
    for version in ("3.11", "3.12", "3.13")
]

sys.path.insert(0, str(ROOT / "tests"))

from versions import OF_TORCH, Request, Row, copy_sources, locked_versions  # noqa: E402


def name(requirement: Requirement) -> str:
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


def locked_on(platform: dict[str, str]) -> dict[str, str]:
    """The version of each package there; two of one would be an error of pip's."""
    there = {**default_environment(), **platform}
    found: dict[str, str] = {}
    for pin in PINS:
        if pin.marker is None or pin.marker.evaluate(there):
            assert name(pin) not in found
            (only,) = pin.specifier
            assert only.operator == "=="
            found[name(pin)] = only.version
    return found


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: "-".join(platform.values()))
def test_every_requirement_is_locked_within_its_range(platform):
    """If not: the first lines of constraints.txt say how it is renewed."""
    locked = locked_on(platform)
    extras = PROJECT["optional-dependencies"].values()
    for text in (*PROJECT["dependencies"], *(text for extra in extras for text in extra)):
        wanted = Requirement(text)
        if wanted.name != "engine":
            assert locked.get(name(wanted), "0") in wanted.specifier, text


def test_pip_takes_the_lock_from_anywhere():
    assert not any(pin.extras or pin.url for pin in PINS)  # pip refuses extras in constraints
    assert not any(re.search(r"https?:|file:|--(index|find)", line) for line in LINES)


def test_how_the_lock_is_renewed_is_said_where_people_look():
    command = LINES[1].removeprefix("#").strip()
    assert command in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_what_pip_builds_with_is_exact():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    assert [str(Requirement(text).specifier)[:2] for text in build["requires"]] == ["=="]


def test_every_requirement_has_a_lowest_version():
    extras = PROJECT["optional-dependencies"].values()
    for text in (*PROJECT["dependencies"], *(text for extra in extras for text in extra)):
        assert text.startswith("engine[") or ">=" in text


def test_all_is_every_extra_that_is_no_tool():
    optional = PROJECT["optional-dependencies"]
    (everything,) = optional["all"]
    named = set(everything.removeprefix("engine[").removesuffix("]").split(","))
    assert named == set(optional) - {"all", "examples", "test", "docs", "dev"}


# -- the script --------------------------------------------------------------------------------


def test_an_environment_is_words_with_commas():
    assert Request.parse("torch==2.11.0,python3.12") == (
        "torch==2.11.0,python3.12",
        "python3.12",
        False,
        False,
        ("torch==2.11.0",),
    )
    assert Request.parse("lowest") == ("lowest", sys.executable, False, True, ())
    assert Request.parse("locked").locked


def test_another_torch_brings_its_own_companions():
    """Those of constraints.txt belong to the locked torch."""
    every, others = locked_versions(with_torch=True), locked_versions(with_torch=False)
    assert {pin for pin in every if pin not in others} == {
        pin for pin in every if pin.startswith(("torch==", "triton==", "nvidia-", "cuda-"))
    }
    assert not any(map(OF_TORCH.match, others))


def test_the_table_has_the_columns_of_the_page():
    table = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert f"| {' | '.join(Row._fields)} |" in table


def test_the_copy_is_what_git_knows_of(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "left over").touch()
    copy_sources(tmp_path / "copy")
    assert (tmp_path / "copy" / "engine" / "api_version.py").exists()
    assert not (tmp_path / "copy" / "left over").exists()
    assert not (tmp_path / "copy" / ".venv").exists()


# -- what the tests themselves need ------------------------------------------------------------


def installed_by(extras: set[str]) -> set[str]:
    """Names of all distributions that these extras of the project bring, theirs included."""
    found: set[str] = set()
    waiting = [("engine", frozenset(extras))]
    while waiting:
        distribution, wanted = waiting.pop()
        for text in requires(distribution) or ():
            needed = Requirement(text)
            environments = [{"extra": extra} for extra in wanted] or [{"extra": ""}]
            if needed.marker is None or any(map(needed.marker.evaluate, environments)):
                key = (needed.name, frozenset(needed.extras))
                if f"{key}" not in found:
                    found |= {f"{key}", name(needed)}
                    waiting.append(key)
    return found


def run_by_tests() -> set[str]:
    """Modules that the tests start with `python -m`."""
    texts = (file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    return {module for text in texts for module in re.findall(r'"-m", "(\w+)"', text)}


def test_what_the_tests_start_is_installed_for_them():
    there, modules = installed_by({"test", "docs"}), packages_distributions()
    started = run_by_tests() - {"engine", "pip"}
    assert {"ruff", "pytest", "sphinx"} <= started
    for module in started:
        assert {name(Requirement(of)) for of in modules[module]} <= there, module
