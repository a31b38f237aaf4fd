"""A job's output is kept in bounded size, and a flood of it keeps nobody waiting."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.experiment.one_time import run_once
from engine.experiment.output import Output, limit_of
from engine.experiment.process import Script
from engine.experiment.read import read_experiment

KIB = 1 << 10
SECTION = {
    "framework": "torch",
    "type": "pruning",
    "compressor": "level",
    "config_list": [{"op_types": ["Linear"], "sparsity": 0.5}],
}


def numbered(count: int) -> str:
    return "".join(f"line {number}\n" for number in range(count))


def left_out(text: str) -> int:
    notices = [line for line in text.splitlines() if line.startswith("[engine: ")]
    return sum(int(line.split()[1].replace(",", "")) for line in notices)


def without_notices(text: str) -> str:
    return "".join(
        line for line in text.splitlines(keepends=True) if not line.startswith("[engine: ")
    )


@pytest.mark.parametrize("count", [10, 20_000, 400_000])
def test_the_file_keeps_beginning_and_end(tmp_path: Path, count: int) -> None:
    path, text = tmp_path / "0.out", numbered(count)
    path.write_text(text)
    output = Output(path, 64 * KIB)
    output.close(ended=True)
    kept = path.read_text()
    if len(text) <= 64 * KIB:
        assert kept == text
        return
    head, notice, tail = kept.partition("[engine: ")
    tail = tail.partition("\n")[2]
    assert notice
    assert text.startswith(head)
    assert text.endswith(tail)
    assert head.endswith("\n")
    assert 64 * KIB - 40 < len(head) + len(tail) <= 64 * KIB
    assert left_out(kept) == len(text) - len(head) - len(tail)


def test_a_reader_that_is_far_behind_is_told_how_much_it_missed(tmp_path: Path) -> None:
    path = tmp_path / "0.out"
    path.write_text("begin")
    output = Output(path, 64 * KIB)
    assert output.lines() == []
    with path.open("a") as file:
        file.write("ning\n" + numbered(50_000))
    seen = "".join(iter(lambda: "".join(output.lines()), ""))
    text = path.read_text()[len(without_notices(seen)) * -1 :]
    assert without_notices(seen) == text
    assert left_out(seen) == len("beginning\n" + numbered(50_000)) - len(text)
    assert seen.endswith("line 49999\n")


def test_all_is_kept_if_asked_for(tmp_path: Path) -> None:
    path, text = tmp_path / "0.out", numbered(50_000)
    path.write_text(text)
    assert limit_of({"output_limit": None}) is None
    output = Output(path, None)
    assert "".join(iter(lambda: "".join(output.lines()), "")) == text
    output.close(ended=True)
    assert path.read_text() == text


def test_the_middle_of_a_flood_leaves_the_disk_while_it_goes_on(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux takes the middle out of a file")
    path = tmp_path / "0.out"
    code = "import sys\nfor _ in range(400): sys.stdout.write(('x' * 99 + '\\n') * 1000)\ninput()"
    script = Script(
        [sys.executable, "-c", code], tmp_path, dict(os.environ), path, tmp_path / "exit", 256 * KIB
    )
    deadline = time.monotonic() + 30
    while script.poll() is None:
        assert time.monotonic() < deadline
        script.lines()
        script.wait(0.01)
    while script.lines():
        pass
    stat = path.stat()
    assert stat.st_size >= 400 * 100_000
    assert stat.st_blocks * 512 < 4 << 20
    script.close()
    assert path.stat().st_size < 257 * KIB


def experiment(folder: Path, code: str, **arguments: object):
    script = folder / "job.py"
    script.write_text(f"#!{sys.executable}\nimport sys, time\n{code}\n")
    script.chmod(0o755)
    data = {"name": "n", "script": "job.py", "resource": "cpu", "compression": SECTION}
    (folder / "e.json").write_text(json.dumps({**data, "resource_args": arguments}))
    return read_experiment(folder / "e.json")


@pytest.mark.parametrize(
    "code",
    [
        "print('#Auptimizer:1')\ntime.sleep(0.3)\nprint('#Auptimizer:2')\ntime.sleep(0.5)\n"
        "sys.stdout.write(('x' * 99 + '\\n') * 3000)",
        "sys.stdout.write(('x' * 99 + '\\n') * 3000)\nprint('#Auptimizer:2')",
    ],
    ids=["before", "after"],
)
def test_the_result_is_found_on_both_sides_of_a_flood(tmp_path: Path, code: str) -> None:
    outcome = run_once(experiment(tmp_path, code, output_limit=0.03))
    assert outcome.result == [2.0]
    text = outcome.output.read_text()
    assert len(text) < 33 * KIB
    assert left_out(text) > 200_000


@pytest.mark.slow
def test_a_timeout_holds_in_a_flood(tmp_path: Path) -> None:
    code = "block = ('x' * 99 + '\\n') * 10000\nwhile True: sys.stdout.write(block)"
    experiment(tmp_path, code, timeout=2)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "engine", "run", str(tmp_path / "e.json")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "did not end within 2 s" in done.stderr
    assert time.monotonic() - began < 15
    assert (tmp_path / "jobs" / "0.out").stat().st_size < (16 << 20) + 200
