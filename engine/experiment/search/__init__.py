"""Automatic experiments: many trials of one script, proposed by Optuna, that survive a kill.

``plan`` says what is searched, ``folder`` where everything of an experiment is, ``study`` talks to
Optuna, ``executors`` start trials, ``recovery`` picks up what a dead runner left, and ``runner``
holds them together. ``report`` shows what came out. Optuna is imported when a search runs, torch
only where the experiment names a model.
"""
