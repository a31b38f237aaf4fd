"""Progress on a terminal, in a pipe, with rich and without."""

import importlib.util
import io
import re
import sys

import pytest
from watching import agp, train

from engine import EngineError
from plugins_builtin.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_in_a_pipe_a_line_for_each_epoch(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    pruner = agp(Progress())
    train(pruner)
    pruner.unwrap()
    lines = stream.getvalue().splitlines()
    pattern = r"epoch (\d): 2 steps in \d+\.\d s \(\d+\.\d/s\), (\S+) % removed"
    assert [re.fullmatch(pattern, line).groups() for line in lines] == [
        ("0", "0.0"),
        ("1", "70.0"),
        ("2", "80.0"),
    ]
    assert "\x1b" not in stream.getvalue()


def test_on_a_terminal_without_rich_a_line_that_counts(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("plugins_builtin.progress._PAUSE", -1.0)
    pruner = agp(Progress(style="plain"))
    train(pruner, epochs=2)
    pruner.unwrap()
    text = stream.getvalue()
    assert "\r\x1b[Kepoch 0: step 1, 0.0 % removed" in text
    # The first epoch has told how long one is.
    assert "\r\x1b[Kepoch 1: step 1/2, 0.0 % removed" in text
    assert text.endswith("\r\x1b[K")


def test_with_rich_a_bar(monkeypatch):
    pytest.importorskip("rich", reason="the extra progress is not installed")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress()
    assert progress.uses_rich
    pruner = agp(progress)
    train(pruner)
    pruner.unwrap()
    assert "epoch 2" in stream.getvalue()
    assert "80.0 % removed" in stream.getvalue()
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") > 0


def test_style_rich_without_rich_names_the_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "rich" else find(name)
    )
    with pytest.raises(EngineError) as caught:
        Progress(style="rich")
    assert str(caught.value) == (
        "the extension progress needs rich for style rich\n"
        "  pip install 'engine[progress]', or choose style: plain"
    )
    assert not Progress().uses_rich


def test_the_terminal_is_given_back_when_the_program_ends_without_detaching(monkeypatch):
    ended = []
    monkeypatch.setattr("atexit.register", ended.append)
    monkeypatch.setattr("atexit.unregister", ended.remove)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    pruner = agp(Progress(style="plain"))
    (close,) = ended
    close()
    assert stream.getvalue().endswith("\r\x1b[K")
    train(pruner, epochs=1)  # nothing is shown any more
    assert stream.getvalue().endswith("\r\x1b[K")
    pruner.unwrap()
    assert ended == []


def test_from_a_configuration(capsys):
    pruner = agp(extensions=[{"progress": {"style": "plain"}}])
    train(pruner, epochs=1)
    pruner.unwrap()
    assert capsys.readouterr().err.startswith("epoch 0: 2 steps in ")
