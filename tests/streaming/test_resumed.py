"""A call that was killed goes on behind the last block that was finished."""

import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from decoders import Decoder, decoder, tokens
from folders import loaded, saved

import engine
from engine.files import whole
from engine.streaming import compress_folder

pytest.importorskip("safetensors", reason="needs engine[safetensors]")

CONFIG = {
    "compressor": "sparse_gpt",
    "config_list": [
        {"sparsity": 0.5, "op_types": ["Linear"]},
        {"exclude": True, "op_names": ["head"]},
    ],
}
SCRIPT = """
    import os, signal, sys
    sys.path += {path!r}
    import torch
    torch.set_num_threads(1)
    from decoders import Decoder, tokens
    from engine.streaming import compress_folder
    from test_resumed import CONFIG

    def told(name, number, count):
        if name == {last!r}:
            os.kill(os.getpid(), signal.SIGKILL)

    compress_folder(
        "dense", CONFIG, "small", batches=tokens(), model=lambda: Decoder(depth=4), told=told
    )
"""


class StoppedError(BaseException):
    pass


def compressed(folder, out, **more):
    more = {"batches": tokens(), "model": lambda: Decoder(depth=4), **more}
    return compress_folder(folder, CONFIG, out, **more)


@pytest.fixture
def dense(tmp_path):
    return saved(decoder(depth=4), tmp_path / "dense")


@pytest.fixture
def expected(dense, tmp_path):
    return loaded(compressed(dense, tmp_path / "at once").path)


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_killed_by_the_system(dense, expected, tmp_path):
    here = Path(__file__).parent
    script = SCRIPT.format(path=[str(here), str(here.parent / "calibration")], last="layers.1")
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "small").exists()
    seen = []
    made = compressed(dense, tmp_path / "small", told=lambda name, *_: seen.append(name))
    same(loaded(made.path), expected)


@pytest.mark.slow
@pytest.mark.parametrize("skip", [False, True])
def test_stopped_at_every_write(skip, tmp_path, monkeypatch):
    """Each file that is written may be the last one; nothing is there under a name by halves."""
    folder = saved(decoder(depth=4, skip=skip), tmp_path / "dense")
    build = {"model": lambda: Decoder(depth=4, skip=skip), "batches": tokens(2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = loaded(compressed(folder, tmp_path / "at once", **build).path)
        own, stops = whole.write_whole, 0
        left = 0

        def write(path, writer):
            nonlocal left
            left -= 1
            if not left:
                raise StoppedError
            return own(path, writer)

        for module in ("engine.calibration.states", "engine.streaming.shards"):
            monkeypatch.setattr(f"{module}.write_whole", write)
        monkeypatch.setattr("engine.files.progress.write_whole", write)
        while True:
            # The observation writes more than five files before anything is finished.
            left = 40 if stops % 2 else 5
            try:
                compressed(folder, tmp_path / "small", **build)
                break
            except StoppedError:
                stops += 1
                assert not (tmp_path / "small").exists()
            if stops > 100:
                pytest.fail("it does not come forward")
    same(loaded(tmp_path / "small"), expected)


def test_blocks_that_are_finished_do_not_run_again(dense, expected, tmp_path):
    def stop(name, number, count):
        if name == "layers.2":
            raise StoppedError

    with pytest.raises(StoppedError):
        compressed(dense, tmp_path / "small", told=stop)
    partial = tmp_path / "small.partial"
    assert len(list((partial / "model").glob("*.safetensors"))) == 4
    states = {
        path.name: sum(f.stat().st_size for f in path.iterdir())
        for path in (partial / "states").iterdir()
    }
    ran = []

    def forward(model, batch):
        hooks = [
            model.layers[n].q.register_forward_hook(lambda *_, n=n: ran.append(n)) for n in range(4)
        ]
        try:
            model(batch)
        finally:
            for hook in hooks:
                hook.remove()

    made = compressed(dense, tmp_path / "small", forward=forward)
    same(loaded(made.path), expected)
    assert set(ran) == {3}
    assert not partial.exists()
    # Of what lies before the last block that was finished, the shapes alone are kept.
    assert max(states, key=states.get) == "3"


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"batches": tokens(seed=1)}, "batches"),
        ({"to": "safetensors"}, "to"),
    ],
)
def test_another_call_is_refused(dense, tmp_path, more, word):
    def stop(*_):
        raise StoppedError

    with pytest.raises(StoppedError):
        compressed(dense, tmp_path / "small", told=stop)
    with pytest.raises(engine.CheckpointError) as caught:
        compressed(dense, tmp_path / "small", **more)
    lines = str(caught.value).splitlines()
    partial = tmp_path / "small.partial"
    assert lines[0] == f"{partial / 'progress.json'} belongs to another call of compress_folder"
    assert lines[1].startswith(f"  {word}: ")
    assert lines[2] == f"  remove {partial}, or choose another name"


@pytest.mark.slow
def test_a_full_disk(dense, expected, tmp_path, monkeypatch):
    from engine.streaming import shards

    own, count = shards.write_safetensors, 0

    def write(*arguments):
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(28, "No space left on device")
        own(*arguments)

    monkeypatch.setattr(shards, "write_safetensors", write)
    with pytest.raises(engine.ExportError) as caught:
        compressed(dense, tmp_path / "small")
    partial = tmp_path / "small.partial"
    assert str(caught.value) == (
        f"cannot write {partial / 'model' / 'model-00003-of-00007.safetensors'}: [Errno 28] No "
        "space left on device; no file was left there\n"
        f"  blocks that are finished stay in {partial}: the same call goes on behind them"
    )
    assert not (tmp_path / "small").exists()
    monkeypatch.undo()
    same(loaded(compressed(dense, tmp_path / "small").path), expected)


def test_states_that_were_damaged_are_refused(dense, tmp_path):
    def stop(name, number, count):
        if name == "layers.1":
            raise StoppedError

    with pytest.raises(StoppedError):
        compressed(dense, tmp_path / "small", told=stop)
    (file,) = (tmp_path / "small.partial" / "states" / "2").glob("0")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(engine.CheckpointError, match="it is cut off"):
        compressed(dense, tmp_path / "small")
