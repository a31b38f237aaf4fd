"""Names are checked, nothing that exists is overwritten, and an update leaves an author's work."""

import builtins
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import cli
from engine.cli import scaffold


@pytest.fixture
def run(site, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = cli.main(["new-algorithm", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


RULE = "  lower-case letters, digits and single _, a letter first, at most 40, no word of Python"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("My-Pruner", "my_pruner"),
        ("MyPruner", "my_pruner"),
        ("2bit", "bit"),
        ("a b", "a_b"),
        ("a__b", "a_b"),
        ("../../etc", "etc"),
        ("prüne", "pr_ne"),
        ("x" * 41, "x" * 40),
        ("class", None),
        ("42", None),
        ("", None),
    ],
)
def test_a_name_that_is_no_identifier_gets_the_nearest_that_is_one(run, tmp_path, name, near):
    code, output, errors = run(name, "--kind", "pruning")
    assert (code, output) == (2, "")
    hint = f'\n  did you mean "{near}"?' if near else ""
    assert errors == f'"{name}" cannot be the name of a plugin\n{RULE}{hint}\n'
    assert not any(path.name.startswith("engine-") for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["my_plugin", "example", "pruner"])
def test_a_placeholder_is_refused(run, name):
    code, _, errors = run(name, "--kind", "pruning")
    assert code == 2
    assert errors.startswith(f'"{name}" says nothing about the plugin')


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("level", '"level" is taken by level (engine 0.1.0)\n  names of built-in plugins are'),
        ("channel_rounding", '"channel_rounding" is taken by channel_rounding (engine 0.1.0)'),
        ("apoz", "which is also called apoz\n  names of built-in plugins are reserved"),
        (
            "theirs",
            '"theirs" is taken by theirs (their-plugin 1.0)\n  choose another, or',
        ),
        ("unusable", '"unusable" is taken by unusable (broken-plugin 1.0)'),
    ],
)
def test_a_name_that_is_taken_is_refused(run, site, name, message):
    site.plugin("theirs", "their-plugin")
    site.plugin("unusable", "broken-plugin", schema=None)
    code, _, errors = run(name, "--kind", "pruning")
    assert code == 2
    assert message in errors


def test_a_module_of_its_name_is_not_shadowed(run, site):
    site.package("engine_mine", schema=None)
    code, _, errors = run("mine", "--kind", "pruning")
    assert (code, errors) == (2, '"mine" is taken: there is a module engine_mine already\n')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "new-algorithm needs a name"),
        (["mine"], "new-algorithm needs --kind, one of: pruning, quantization, schedule"),
        (["mine", "--update", "x"], "--update takes the package's folder alone"),
        (["--update", "nowhere"], "is not there: only what engine new-algorithm made"),
    ],
)
def test_misuse_says_what_is_needed(run, arguments, message):
    code, _, errors = run(*arguments)
    assert code == 2
    assert message in errors


def test_an_unknown_kind_lists_those_that_there_are(run):
    code, _, errors = run("mine", "--kind", "prunning")
    assert code == 2
    assert "pruning" in errors
    assert "extension" in errors


def test_nothing_that_exists_is_overwritten(run, tmp_path):
    own = tmp_path / "engine-mine" / "notes.txt"
    own.parent.mkdir()
    own.write_text("mine")
    code, _, errors = run("mine", "--kind", "pruning")
    assert code == 2
    assert errors.startswith("engine-mine is there already; nothing was changed\n")
    assert [path.name for path in tmp_path.rglob("*") if "site" not in str(path)] == [
        "engine-mine",
        "notes.txt",
    ]


def test_the_folder_is_made_and_next_steps_are_said(run, tmp_path):
    code, output, errors = run("mine", "--kind", "pruning", "--output", "deep/down")
    assert (code, errors) == (0, "")
    assert output == (
        "deep/down/engine-mine: a plugin that works as it is (pruning)\n"
        "  pip install -e deep/down/engine-mine\n"
        "  engine check mine\n"
    )
    assert (tmp_path / "deep" / "down" / "engine-mine" / "pyproject.toml").is_file()


def test_a_package_is_made_whole_or_not_at_all(run, tmp_path, monkeypatch):
    def fails(source, target):
        Path(target).mkdir()
        raise OSError("No space left on device")

    monkeypatch.setattr(scaffold.shutil, "copytree", fails)
    code, _, errors = run("mine", "--kind", "pruning")
    assert (code, errors) == (2, "engine: No space left on device\n")
    assert not [path for path in tmp_path.iterdir() if "engine-mine" in path.name]


def test_without_copier_the_extra_is_named(run, monkeypatch):
    whole = builtins.__import__

    def without(name, *arguments, **more):
        if name.partition(".")[0] == "copier":
            raise ImportError("No module named 'copier'")
        return whole(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert run("mine", "--kind", "pruning") == (
        2,
        "",
        "rendering a package needs copier (No module named 'copier')\n"
        "  pip install 'engine[template]'\n",
    )


def test_it_renders_without_git_without_a_home_and_without_torch(tmp_path):
    code = (
        "import sys; from engine.cli import main\n"
        "code = main(['new-algorithm', 'mine', '--kind', 'pruning', '--output', sys.argv[1]])\n"
        "print('torch' in sys.modules); sys.exit(code)\n"
    )
    variables = {**os.environ, "PATH": "", "HOME": str(tmp_path / "nobody")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env=variables,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("False\n")


# -- updates --------------------------------------------------------------------------------------


@pytest.fixture
def package(run, tmp_path):
    assert run("mine", "--kind", "pruning")[0] == 0
    return tmp_path / "engine-mine"


@pytest.fixture
def newer_template(tmp_path, monkeypatch):
    """A template with changes: the CI file, the class, and a file that was not there before."""
    import shutil

    newer = tmp_path / "newer"
    shutil.copytree(scaffold.TEMPLATE, newer)
    ci = newer / "package" / ".github" / "workflows" / "test.yml.jinja"
    ci.write_text(ci.read_text().replace('"3.11"', '"3.13"'))
    code = newer / "kinds" / "pruning" / "plugin.py.jinja"
    code.write_text(code.read_text() + "\n# New in this template.\n")
    (newer / "package" / "CHANGES.md.jinja").write_text("# Changes of {{ distribution }}\n")
    monkeypatch.setattr(scaffold, "TEMPLATE", newer)
    return newer


def test_an_update_without_changes_does_nothing(run, package):
    before = {path: path.read_bytes() for path in package.rglob("*") if path.is_file()}
    assert run("--update", package) == (
        0,
        "nothing to do: the package is as the template has it\n",
        "",
    )
    assert {path: path.read_bytes() for path in package.rglob("*") if path.is_file()} == before


def test_an_update_replaces_what_the_author_left_alone(run, package, newer_template):
    code, output, _ = run("--update", package)
    assert code == 0
    assert output.splitlines() == [
        "replaced  .github/workflows/test.yml",
        "replaced  engine_mine/__init__.py",
        "added  CHANGES.md",
    ]
    assert '"3.13"' in (package / ".github" / "workflows" / "test.yml").read_text()
    assert (package / "CHANGES.md").read_text() == "# Changes of engine-mine\n"
    assert run("--update", package)[1].startswith("nothing to do")


def test_an_update_keeps_what_the_author_has_written(run, package, newer_template):
    own = package / "engine_mine" / "__init__.py"
    own.write_text("# mine\n")
    (package / "README.md").write_text("my own words\n")
    code, output, _ = run("--update", package)
    assert code == 1
    assert own.read_text() == "# mine\n"
    assert (package / "README.md").read_text() == "my own words\n"
    assert "New in this template." in (package / "engine_mine" / "__init__.py.new").read_text()
    assert output.splitlines()[-1] == (
        "kept      engine_mine/__init__.py: you have changed it; the template's is in "
        "engine_mine/__init__.py.new"
    )
    assert not (package / "README.md.new").exists()


def test_an_update_does_not_bring_back_what_the_author_deleted(run, package, newer_template):
    (package / ".github" / "workflows" / "test.yml").unlink()
    assert run("--update", package)[0] == 0
    assert not (package / ".github" / "workflows" / "test.yml").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"answers": 3, "files": {}}', "\0"])
def test_a_damaged_record_changes_nothing(run, package, newer_template, text):
    (package / scaffold.RECORD).write_text(text)
    before = (package / "engine_mine" / "__init__.py").read_text()
    code, _, errors = run("--update", package)
    assert code == 2
    assert "is damaged" in errors
    assert (package / "engine_mine" / "__init__.py").read_text() == before


def test_the_record_holds_no_path_of_this_machine(package, tmp_path):
    record = (package / scaffold.RECORD).read_text()
    assert json.loads(record)["answers"]["name"] == "mine"
    assert str(tmp_path) not in record
    assert str(scaffold.TEMPLATE) not in record
