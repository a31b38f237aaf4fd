"""Runs a file without what the system lacks: for the guard, which reads no sitecustomize.

python -I -S guarded.py FILE ARGUMENTS...
"""

import os
import runpy
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import removal

del sys.path[0]
removal.apply()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
