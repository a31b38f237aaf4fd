"""The site: ``sphinx-build -W -n docs OUT``."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import generate  # noqa: E402  (it lies beside this file)

project = "engine"
author = "The engine authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
exclude_patterns = ["examples", "benchmarks/zoo", "_build"]
napoleon_use_ivar = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
myst_heading_anchors = 3
# Types in docstrings are words for people, not links.
nitpick_ignore_regex = [("py:.*", ".*")]

generate.write_algorithms(HERE / "algorithms")
generate.write_exporters(HERE / "exporters")
