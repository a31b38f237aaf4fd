"""Configurations that come through pipes."""

import contextlib
import os
import threading
import time

import pytest

from engine import ConfigError, config
from engine.config import pipe

TEXT = "compressor: level\nconfig_list:\n  - {op_types: [Linear], sparsity: 0.5}\n"
pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


@pytest.fixture
def fifo(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    return tmp_path / "config.yaml"


def written(fifo, *parts, pause=0.0):
    def write():
        with contextlib.suppress(BrokenPipeError), fifo.open("w") as stream:
            for part in parts:
                stream.write(part)
                stream.flush()
                time.sleep(pause)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


def test_a_writer_may_take_its_time(fifo):
    thread = written(fifo, TEXT[:30], TEXT[30:], pause=0.1)
    assert config.read(fifo).data["compressor"] == "level"
    thread.join(5)


def test_a_pipe_without_a_writer_is_given_up(fifo, monkeypatch):
    monkeypatch.setattr(pipe, "NOBODY", 0.2)
    with pytest.raises(ConfigError, match=r"cannot be read: nobody has written .+ 0\.2 seconds"):
        config.read(fifo)


def test_a_silent_writer_is_given_up(fifo, monkeypatch):
    monkeypatch.setattr(pipe, "SILENT", 0.2)
    thread = written(fifo, TEXT, pause=1.0)
    with pytest.raises(ConfigError, match=r"nobody has written .+ 0\.2 seconds"):
        config.read(fifo)
    thread.join(5)


def test_a_flood_through_a_pipe_is_refused_without_being_read(fifo):
    thread = written(fifo, "a: b\n" * 300_000)
    with pytest.raises(ConfigError, match="the file is too large"):
        config.read(fifo)
    thread.join(5)


def test_a_pipe_of_the_shell_is_read():
    reader, writer = os.pipe()
    os.write(writer, TEXT.encode())
    os.close(writer)
    try:
        assert config.read(f"/dev/fd/{reader}").data["compressor"] == "level"
    finally:
        os.close(reader)
