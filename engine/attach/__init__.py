"""One algorithm on one model: chosen layers, hooks, what is kept for them, saved and taken away."""
