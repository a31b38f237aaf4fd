"""Files: written whole or not at all, loaded without running code from them.

``whole`` writes and loads, ``progress`` keeps what a long measurement has measured, ``job`` knows
where a script that a runner started leaves its files, ``table`` prints rows or writes them.
"""

from engine.files.whole import PathLike, load_tensors, save_tensors, write_whole

__all__ = ["PathLike", "load_tensors", "save_tensors", "write_whole"]
