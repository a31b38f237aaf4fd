"""Compression inside other people's training loops: one line for each trainer.

Each is imported where it is used, as ``engine.integrations.transformers``.
"""
