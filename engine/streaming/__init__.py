"""A model larger than memory: read, compressed and written block by block."""

from engine.streaming.compress import CompressedFolder, compress_folder

__all__ = ["CompressedFolder", "compress_folder"]
