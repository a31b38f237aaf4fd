"""Exporters that break one promise each: the code is installed as text by tests of the checks."""

import os

import torch

from engine.export import Exporter


class Right(Exporter):
    """Writes the tensors, and reads them into a copy."""

    def write(self, source, path):
        torch.save(dict(source.tensors()), path)

    def read(self, path, source):
        model = source.plain_copy()
        model.load_state_dict(torch.load(path))
        return model


class ReadsSomethingElse(Right):
    """Loses the smallest integers."""

    def read(self, path, source):
        model = super().read(path, source)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        return model


class ChangesTheModel(Right):
    """Leaves the model in evaluation mode."""

    def write(self, source, path):
        super().write(source, path)
        source.model.eval()


class ChangesAWeight(Right):
    """Rounds what it was only shown."""

    def write(self, source, path):
        super().write(source, path)
        with torch.no_grad():
            next(source.model.parameters()).mul_(0.5)


class WritesBeside(Right):
    """Leaves a second file where nobody has asked for one."""

    def write(self, source, path):
        super().write(source, path)
        with open("notes.txt", "w", encoding="utf-8") as stream:
            stream.write("made by me")


class WritesNothing(Right):
    """Forgets to write."""

    def write(self, source, path):
        path.touch()


class WritesInPlace(Right):
    """Finds out what the file will be called and overwrites it at once."""

    def write(self, source, path):
        super().write(source, path)
        with open(os.path.join(os.getcwd(), path.name), "wb") as stream:
            stream.write(b"half")
