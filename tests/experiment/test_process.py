"""A script under its guard: what is known of its end, and that nothing outlives the guard."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from engine.experiment.process import Ended, Script, environment_of, read_exit


def script(folder: Path, code: str) -> Script:
    command = [sys.executable, "-S", "-c", f"import os, sys, time\n{code}"]
    return Script(command, folder, dict(os.environ), folder / "out", folder / "exit")


def gone(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the latter while it is being read
        return True
    return state.rpartition(")")[2].split()[0] == "Z"


def end_of(running: Script) -> Ended:
    deadline = time.monotonic() + 30
    while (ended := running.poll()) is None:
        assert time.monotonic() < deadline
        running.wait(0.05)
    running.close()
    return ended


def printed(running: Script) -> str:
    """Return the first line, waiting for it."""
    deadline = time.monotonic() + 30
    while not (lines := running.lines()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return lines[0]


@pytest.mark.parametrize(("code", "number"), [("pass", 0), ("sys.exit(7)", 7)])
def test_the_exit_code_is_kept_in_a_file(tmp_path: Path, code: str, number: int) -> None:
    assert end_of(script(tmp_path, code)) == Ended(number)
    assert read_exit(tmp_path / "exit") == Ended(number)


def test_a_signal_is_a_negative_code(tmp_path: Path) -> None:
    assert end_of(script(tmp_path, "os.kill(os.getpid(), 9)")) == Ended(-signal.SIGKILL)


def test_a_script_that_removes_the_folder_of_its_job_was_not_killed(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    ended = end_of(script(folder, f"import shutil; shutil.rmtree({str(folder)!r})"))
    assert ended == Ended(None, f"its exit code cannot be kept in {folder / 'exit'}")


def test_a_guard_that_is_killed_takes_the_script_along(tmp_path: Path) -> None:
    running = script(tmp_path, "print(os.getpid(), os.getppid(), flush=True)\ntime.sleep(60)")
    process, guard = map(int, printed(running).split())
    os.kill(guard, signal.SIGKILL)
    assert end_of(running) == Ended(-signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not gone(process):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not (tmp_path / "exit").exists()


def test_what_has_left_the_session_of_a_script_may_tidy_up_as_well(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess\n"
        "def tidy(*_):\n"
        "    with open('told', 'a') as file: file.write(sys.argv[-1] + ' ')\n"
        "signal.signal(signal.SIGTERM, tidy)\n"
        "print(sys.argv[-1], flush=True)\n"
        "if sys.argv[-1] in ('apart', 'beside'): time.sleep(1.5); sys.exit()\n"
        "for name in ('apart', 'beside'):\n"
        "    words = [*sys.orig_argv, name]\n"
        "    subprocess.Popen(words, start_new_session=name == 'apart', stdout=2)\n"
        "time.sleep(1.5)\n"
    )
    running = script(tmp_path, code)
    seen: list[str] = []
    while len(seen) < 3:
        seen += running.lines()
        time.sleep(0.01)
    running.stop()
    running.close()
    assert sorted((tmp_path / "told").read_text().split()) == ["-c", "apart", "beside"]


def test_without_psutil_a_guard_that_is_killed_takes_the_group_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.experiment.system.psutil_folder", lambda: "")
    test_a_guard_that_is_killed_takes_the_script_along(tmp_path)


def test_a_runner_that_lets_go_of_the_pipe_has_ended_the_script(tmp_path: Path) -> None:
    """That is what the system does with a runner that is killed."""
    running = script(tmp_path, "print(os.getpid(), flush=True)\ntime.sleep(60)")
    process = int(printed(running))
    assert (tmp_path / "exit.process").exists()
    running.terminate()
    assert end_of(running) == Ended(-signal.SIGTERM)
    assert gone(process)
    assert not (tmp_path / "exit.process").exists()


def test_a_script_that_ended_by_itself_before_its_runner_did_has_its_exit_code(
    tmp_path: Path,
) -> None:
    running = script(tmp_path, "print(os.getpid(), flush=True)\nos._exit(0)")
    process = int(printed(running))
    while not gone(process):
        time.sleep(0.001)
    running.terminate()
    assert end_of(running) == Ended(0)


def test_a_script_that_prints_without_end_is_read_bit_by_bit(tmp_path: Path) -> None:
    running = script(tmp_path, "print(('x' * 99 + '\\n') * 50_000)")
    while running.poll() is None:
        running.wait(0.05)
    assert len(running.lines()) < 11_000
    assert len(running.lines(rest=True)) > 39_000
    running.close()


def test_a_script_that_is_stopped_may_tidy_up(tmp_path: Path) -> None:
    code = (
        "import signal\n"
        "def tidy(*_): open('tidied', 'w'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, tidy)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    running = script(tmp_path, code)
    printed(running)
    running.stop()
    running.close()
    assert (tmp_path / "tidied").exists()
    assert not (tmp_path / "exit").exists(), "its end was not its own"


@pytest.mark.parametrize("delay", [i * 5e-5 for i in range(20)])
def test_killed_while_its_guard_is_stopped_it_has_not_ended_well(
    tmp_path: Path, delay: float
) -> None:
    """A shutdown kills both at about the same time; one guard in four said 0 of such a script."""
    running = script(tmp_path, "print(os.getpid(), os.getppid(), flush=True)\ntime.sleep(60)")
    process, guard = map(int, printed(running).split())
    os.kill(process, signal.SIGKILL)
    until = time.perf_counter() + delay
    while time.perf_counter() < until:
        pass
    os.kill(guard, signal.SIGTERM)
    end_of(running)
    assert read_exit(tmp_path / "exit") in (None, Ended(-signal.SIGKILL))


def test_a_script_may_be_interrupted_and_stopped_as_any_other(tmp_path: Path) -> None:
    """Signals that the guard keeps from itself are not kept from the script."""
    code = (
        "import signal\n"
        "print(signal.getsignal(2) is signal.default_int_handler,"
        " signal.getsignal(15) == signal.SIG_DFL, signal.pthread_sigmask(0, []), flush=True)"
    )
    running = script(tmp_path, code)
    assert printed(running) == "True True set()\n"
    end_of(running)


def test_half_a_line_waits_for_the_rest(tmp_path: Path) -> None:
    running = script(tmp_path, "print('one', flush=True); print('tw', end='', flush=True)")
    assert printed(running) == "one\n"
    end_of(running)
    again = script(tmp_path, "print('one'); print('tw', end='')")
    while again.poll() is None:
        again.wait(0.05)
    assert again.lines() == ["one\n"]
    assert again.lines(rest=True) == ["tw"]
    again.close()


def test_a_damaged_exit_file_says_nothing(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"code": null}', '{"code": "x"}'):
        (tmp_path / "exit").write_text(text)
        assert read_exit(tmp_path / "exit") is None


def test_the_users_variables_win_over_the_engines() -> None:
    found = environment_of("cpu", {"CUDA_VISIBLE_DEVICES": "1", "A": "b"}, {"A": "job", "C": "d"})
    assert (found["CUDA_VISIBLE_DEVICES"], found["A"], found["C"]) == ("1", "b", "d")
    assert found["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
