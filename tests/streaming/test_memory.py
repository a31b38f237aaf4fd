"""In memory is a block, not the model."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from folders import saved
from torch import nn

SIZE, DEPTH = 1448, 48  # 48 layers of 8 MB: 400 MB

SCRIPT = """
    import json, sys
    import torch
    from torch import nn
    torch.set_num_threads(1)
    import engine

    def status(key):
        with open("/proc/self/status") as stream:
            return next(int(line.split()[1]) / 1024 for line in stream if line.startswith(key))

    def build():
        return nn.Sequential(*(nn.Sequential(nn.Linear({size}, {size}), nn.ReLU())
                               for _ in range({depth})))

    batches = [torch.randn(2, 16, {size}) for _ in range(4)]
    warm = nn.Linear(64, 64)
    entry = {{"op_types": ["Linear"], "sparsity": 0.5}}
    config = {{"compressor": sys.argv[1], "config_list": [entry]}}
    if sys.argv[1] == "sparse_gpt":
        config["damping"] = [0.01]
    engine.create_compressor(warm, config, batches=[torch.randn(8, 64)] * 4).compress()
    before = status("VmRSS")
    engine.compress_folder("dense", config, "small-" + sys.argv[1], batches=batches, model=build)
    print(json.dumps([before, status("VmHWM")]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["wanda", "sparse_gpt"])
def test_a_process_takes_some_blocks_more_however_many_there_are(name, tmp_path):
    torch.manual_seed(0)
    layers = (nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU()) for _ in range(DEPTH))
    folder = saved(nn.Sequential(*layers), tmp_path / "dense", shards=5)
    model = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    assert model > 380
    script = textwrap.dedent(SCRIPT.format(size=SIZE, depth=DEPTH))
    done = subprocess.run(
        [sys.executable, "-c", script, name],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    before, peak = json.loads(done.stdout.splitlines()[-1])
    # A block is 8 MB; what sums, factors and scores take of a layer is ten to twenty times that.
    assert peak - before < model / 2
