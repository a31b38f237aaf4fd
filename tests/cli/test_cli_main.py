import os
import signal
import subprocess
import sys

import pytest

from engine import cli, config
from engine.plugins import registry

GOOD = """\
name: digits
compression:
  compressor: agp
  pruning_algorithm: taylorfo
  config_list:
    - {final_sparsity: 0.5, end_epoch: 10, op_types: [Conv2d]}
    - {exclude: true, op_names: [conv1]}
"""


def test_the_version(run):
    assert run("--version") == (0, "engine 0.1.0\n", "")


def test_an_unknown_command(run):
    code, output, errors = run("lst-algorithms")
    assert (code, output) == (2, "")
    assert errors == (
        'engine: unknown command "lst-algorithms"\n'
        f"  commands: {', '.join(cli.COMMANDS)}\n"
        '  did you mean "list-algorithms"?\n'
    )


def test_misuse_is_exit_code_2(run):
    assert run()[0] == 2
    assert run("show")[0] == 2
    assert run("list-algorithms", "--nonsense")[0] == 2
    assert run("--help")[0] == 0


def test_the_traceback_is_shown_when_asked_for(site):
    with pytest.raises(registry.UnknownPlugin):
        cli.main(["show", "levle", "--traceback"])


def test_an_interruption_is_no_traceback(run, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(config, "read", interrupted)
    assert run("validate", "c.yaml") == (130, "", "interrupted\n")


def process(*arguments, code=""):
    code = (
        f"import sys; from engine.cli import main; code = main(sys.argv[1:]){code}; sys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        text=True,
        capture_output=True,
    )


@pytest.mark.parametrize("command", ["list-algorithms", "show agp", "validate c.yaml", "show x"])
def test_no_command_imports_torch(file, command):
    file(GOOD)
    done = process(*command.split(), code="; print({'torch', 'pluggy'} & set(sys.modules))")
    assert done.stdout.endswith("set()\n")
    assert done.returncode == (2 if command == "show x" else 0)


def test_listing_imports_no_jsonschema_and_neither_does_validating_what_is_right(file):
    file(GOOD)
    for command in (["list-algorithms"], ["validate", "c.yaml"]):
        done = process(*command, code="; print('jsonschema' in sys.modules)")
        assert done.stdout.endswith("False\n")


@pytest.mark.skipif(os.name == "nt", reason="interrupts are no signals there")
def test_an_interruption_while_the_command_is_imported_is_no_traceback():
    code = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, *arguments):
        if name == "engine.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
signal.signal(signal.SIGINT, signal.default_int_handler)
from engine.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_reader_that_stops_reading_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    code = "import sys; from engine.cli import main; sys.exit(main(['list-algorithms']))"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_module_runs_as_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "engine", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "engine 0.1.0\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_error(closed):
    command = f'"$0" -m engine list-algorithms {closed}'
    done = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
