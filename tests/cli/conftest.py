import pytest
from fakes import site  # noqa: F401

from engine import cli


@pytest.fixture
def run(site, capsys):  # noqa: F811
    """Run a command; return exit code, output and errors."""

    def call(*arguments):
        code = cli.main(list(map(str, arguments)))
        output, errors = capsys.readouterr()
        return code, output, errors

    return call


@pytest.fixture
def file(tmp_path, monkeypatch):
    def write(text, name="c.yaml"):
        (tmp_path / name).write_text(text)
        monkeypatch.chdir(tmp_path)
        return name

    return write
