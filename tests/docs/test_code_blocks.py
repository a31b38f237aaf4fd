"""Every code block in README and docs runs: Python, YAML and console sessions."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import config
from engine.cli import main

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: Pages of plugins are made from schemas when the site is built: see test_site. Those of the
#: third-party packages need what they describe: see tests/template/test_third_party_packages.
MADE = {"algorithms", "exporters"}
PAGES = [
    ROOT / "README.md",
    *sorted(
        page
        for page in ROOT.glob("docs/**/*.md")
        if page.parent.name not in MADE and "third_party" not in page.parts
    ),
]
#: Blocks that are shown, not run: the shell commands of README are what .ci/run does.
SHOWN = {"sh", "text", "toml", "json", "diff"}


def blocks(page: Path) -> list[tuple[str, str, int]]:
    text = page.read_text(encoding="utf-8")
    return [(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in FENCE.finditer(text)]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_the_page_runs(
    page: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace: dict[str, object] = {"__name__": "docs"}
    for language, code, line in blocks(page):
        where = f"{page.relative_to(ROOT)}:{line}"
        if language == "python":
            exec(compile("\n" * line + code, str(page), "exec"), namespace)
        elif language == "yaml":
            if "compressor" in code:
                (workplace / "page.yaml").write_text(code, encoding="utf-8")
                document = config.read(workplace / "page.yaml")
                check = config.check_search if config.is_automatic(document) else config.check
                check(document)
        elif language == "console":
            capsys.readouterr()
            for command, expected in sessions(code):
                status = run(command)
                printed = capsys.readouterr()
                assert status in (0, 2), where
                assert matches(expected, printed.out + printed.err), (
                    f"{where}: $ {command}\n{printed.out}{printed.err}"
                )
        else:
            assert language in SHOWN, f"{where}: nobody runs blocks of {language}"


def run(command: str) -> int:
    program, *arguments = shlex.split(command)
    assert program == "engine", command
    try:
        return main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


def sessions(code: str) -> Iterator[tuple[str, str]]:
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output.strip()


def matches(expected: str, printed: str) -> bool:
    """Compare lines without trailing blanks; a line of dots stands for any lines."""
    if not expected:
        return True
    lines = [r".*?" if text.strip() == "..." else re.escape(text.rstrip()) + r"\s*?\n"
             for text in expected.splitlines()]  # fmt: skip
    text = "".join(line.rstrip() + "\n" for line in printed.strip().splitlines())
    return re.fullmatch("".join(lines), text, flags=re.DOTALL) is not None


def test_ci_runs_the_test_command_of_the_readme() -> None:
    shell = [code for language, code, _ in blocks(ROOT / "README.md") if language == "sh"]
    commands = [code.strip() for code in shell]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    wanted = commands[1].replace("install -c", "install -q -c")
    assert len(commands) == 2
    assert wanted in ci
