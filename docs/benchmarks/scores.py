"""Scores of several seeds, printed as one table: mean, least and largest."""

import statistics


class Scores:
    """Values of named rows, one for each seed, in the order in which rows were first noted."""

    def __init__(self):
        self.rows = {}

    def note(self, name, value):
        """Add the value of one more seed to the row ``name``."""
        self.rows.setdefault(name, []).append(value)

    def show(self):
        """Print the table."""
        width = max(map(len, self.rows))
        print(f"{'':{width}}    mean     min     max")
        for name, values in self.rows.items():
            mean = statistics.mean(values)
            print(f"{name:{width}}  {mean:6.2f}  {min(values):6.2f}  {max(values):6.2f}")
