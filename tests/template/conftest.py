import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fakes import site  # noqa: F401
