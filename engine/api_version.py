"""The version of the contract between engine and plugins, where listing can read it cheaply."""

from __future__ import annotations

#: (major, minor): a plugin written for the same major and no later minor works.
API_VERSION = (1, 1)
