"""Automatic experiments: what the runner costs, what two trials at a time save, what is found.

    python docs/benchmarks/search.py overhead [--trials 20] [--parameters 10]
    python docs/benchmarks/search.py parallel [--rounds 3]
    python docs/benchmarks/search.py digits [--seeds 5] [--first-seed 0] [--trials 20]

Times are ratios or differences within one run, since machines are shared. ``digits`` compares the
best of a search with one value per layer with the best of as many values for all layers alike, by
the score of docs/examples/experiment/search.py; and looks for the smallest searched network that is
as accurate as the best uniform one, within half a point.
"""

import argparse
import importlib.util
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
LAYERS = ["conv1", "conv2", "conv3", "fc1"]
RANGE = [0.05, 0.95]
#: Points of accuracy that count as equal.
WITHIN = 0.5


def write(folder, code, **changes):
    script = folder / "script.py"
    script.write_text(f"#!{sys.executable}\nimport sys, time, json\n{code}")
    script.chmod(0o755)
    data = {"name": "bench", "script": "script.py", "resource": "cpu", "proposer": "tpe"}
    names = [f"layer{index}" for index in range(changes.pop("parameters", 2))]
    space = {"range": [0.1, 0.9], "type": "float"}
    entries = [{"op_names": names, "sparsity": space}]
    data["compression"] = {"compressor": "level", "config_list": entries}
    (folder / "experiment.json").write_text(json.dumps({**data, **changes}))
    return folder / "experiment.json"


def run(file):
    """Return the seconds that ``engine run`` takes."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "engine", "run", str(file), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def processor():
    """Return the processor's seconds of all children so far, theirs included."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def overhead(options):
    """Seconds per trial beyond those of its script, which is timed by itself after the run.

    The processor's seconds are told, too: other work on the machine does not change them as much.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = write(
            folder,
            "print('#Auptimizer:0.5')\n",
            parameters=options.parameters,
            n_samples=options.trials,
        )
        run(file)  # fills caches
        shutil.rmtree(folder / "bench.exp")
        marks = [processor()]
        whole = run(file)
        marks.append(processor())
        start = run(file)  # has nothing left to do: starting and ending alone
        marks.append(processor())
        config = str(folder / "bench.exp" / "jobs" / "0.json")
        alone = []
        for _ in range(options.trials):
            begun = time.perf_counter()
            subprocess.run([folder / "script.py", config], stdout=subprocess.DEVNULL, check=True)
            alone.append(time.perf_counter() - begun)
        marks.append(processor())
    of_run, of_start, of_scripts = (b - a for a, b in itertools.pairwise(marks))
    script = statistics.mean(alone)
    each = (whole - start) / options.trials
    busy = (of_run - of_start - of_scripts) / options.trials
    print(f"{options.parameters} parameters, {options.trials} trials")
    print(f"start and end of the runner {start:.2f} s")
    print(f"each trial {each:.3f} s, its script alone {script:.3f} s")
    print(f"overhead {each - script:.3f} s per trial, of the processor {busy:.3f} s")


def parallel(options):
    """Two trials at a time against one after the other, in turn."""
    code = (
        "import math\nbegun = time.process_time()\n"
        "while time.process_time() - begun < 2.0: math.sqrt(2.0)\n"
        "print('#Auptimizer:0.5')\n"
    )
    ratios = []
    for turn in range(options.rounds):
        seconds = {}
        for n_parallel in (1, 2) if turn % 2 else (2, 1):
            with tempfile.TemporaryDirectory() as name:
                file = write(Path(name), code, n_samples=6, n_parallel=n_parallel)
                seconds[n_parallel] = run(file)
        ratios.append(seconds[2] / seconds[1])
        print(f"one {seconds[1]:.1f} s, two {seconds[2]:.1f} s, ratio {ratios[-1]:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}")


def digits(options):
    rows = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        with tempfile.TemporaryDirectory() as name:
            shutil.copytree(EXAMPLES, name, dirs_exist_ok=True)
            folder = Path(name) / "experiment"
            uniform = best_uniform(folder, seed, options.trials)
            trials = searched(folder, seed, options)
        best = max(trials, key=lambda trial: trial[0])
        as_good = [trial for trial in trials if trial[1] >= uniform[1] - WITHIN]
        smallest = min(as_good, key=lambda trial: trial[2], default=None)
        rows.append((uniform, best, smallest))
        print(f"seed {seed}: uniform {told(uniform)}; searched {told(best)}")
        shown = told(smallest) if smallest else "none"
        print(f"  smallest searched within {WITHIN} points of uniform: {shown}", flush=True)
    gains = [smallest[2] / uniform[2] for uniform, _, smallest in rows if smallest]
    scores = [best[0] - uniform[0] for uniform, best, _ in rows]
    print(f"score, searched - uniform: {spread(scores, '+.1f')}")
    print(f"parameters, as accurate / uniform: {spread(gains, '.2f')}; {len(gains)} of {len(rows)}")


def best_uniform(folder, seed, trials):
    """Return score, accuracy and parameters of the best of one sparsity for all layers."""
    spec = importlib.util.spec_from_file_location("search_script", folder / "search.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    before = os.getcwd()
    os.chdir(folder)
    try:
        results = []
        for index in range(trials):
            sparsity = RANGE[0] + (RANGE[1] - RANGE[0]) * index / (trials - 1)
            entries = [{"op_names": LAYERS, "sparsity": sparsity}]
            config = {"compressor": "l1_filter", "config_list": entries}
            results.append(script.main.__wrapped__(config=config, seed=seed))
    finally:
        os.chdir(before)
    return max(results, key=lambda result: result[0])


def searched(folder, seed, options):
    """Return score, accuracy and parameters of each trial of an automatic experiment."""
    import yaml

    data = yaml.safe_load((folder / "search.yaml").read_text())
    data |= {
        "name": f"seed {seed}",
        "random_seed": seed,
        "n_samples": options.trials,
        "runtime_args": {"env": {"DIGITS_SEED": str(seed), "OMP_NUM_THREADS": "1"}},
    }
    if options.proposer:
        data["proposer"] = options.proposer
    file = folder / "bench.json"
    file.write_text(json.dumps(data))
    run(file)
    subprocess.run(
        [sys.executable, "-m", "engine", "report", str(file)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    report = json.loads((folder / f"seed-{seed}.exp" / "report.json").read_text())
    return [
        (t["values"][0], t["measures"]["accuracy"], t["measures"]["parameters"])
        for t in report["trials"]
        if t["values"] is not None
    ]


def told(result):
    return f"{result[1]:.1f} %, {result[2]:,.0f} parameters (score {result[0]:.1f})"


def spread(values, form):
    rest = f" +- {statistics.stdev(values):{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{rest}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["overhead", "parallel", "digits"])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--parameters", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--proposer")
    options = parser.parse_args()
    globals()[options.what](options)


if __name__ == "__main__":
    main()
