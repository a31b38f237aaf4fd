"""Virtual environments for a test: their own packages, and everything else from this one's."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Environment:
    """A new environment that finds what this one has installed; with or without the engine."""

    def __init__(self, folder: Path, *, engine: bool = True) -> None:
        venv.create(folder, with_pip=False)
        self.python = folder / "bin" / "python"
        name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        self.packages = folder / "lib" / name / "site-packages"
        paths = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
        lines = [*paths, *([str(ROOT)] if engine else [])]
        (self.packages / "around.pth").write_text("\n".join(lines) + "\n")
        self._variables = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("ENGINE_", "PYTHON"))},
            "OMP_NUM_THREADS": "1",
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def install(self, *what: Path | str) -> None:
        """Install without network: no dependencies, and the build tools of this environment."""
        options = ["--no-deps", "--no-build-isolation", "--quiet", "--force-reinstall"]
        command = [sys.executable, "-m", "pip", "--python", self.python, "install", *options]
        done = subprocess.run(
            [*map(str, command), *map(str, what)],
            env=self._variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def run(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python in a folder that nothing is imported from."""
        return subprocess.run(
            [str(self.python), "-P", *arguments],
            env=self._variables,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
        )

    def engine(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a command of the engine's."""
        return self.run("-m", "engine", *arguments, cwd=cwd)
