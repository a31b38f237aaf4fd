"""A quantized chain of linear layers and ReLU as one C header."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.export import Exporter, Refused, Source, SourceLayer

_CALL = """\
  {{
    const float *in = {source};
    float *out = {target};
    for (int r = 0; r < {rows}; r++) {{
      float sum = 0;
      for (int c = 0; c < {columns}; c++) sum += {name}_w[r * {columns} + c] * in[c];
      out[r] = sum * {name}_s[r] + {name}_b[r];
      {relu}
    }}
  }}
"""


class CHeaderExporter(Exporter):
    """Writes int8 weights, scales and biases, and a function ``void f(const float*, float*)``.

    The model is an ``nn.Sequential`` of ``nn.Linear``, every one quantized, and ``nn.ReLU``.

    Args:
        function: the name of the function.
    """

    def __init__(self, function: str = "network") -> None:
        self.function = function

    def refusals(self, source: Source) -> Iterator[Refused]:
        """Refuse whatever is no chain of quantized linear layers and ReLU."""
        if not isinstance(source.model, nn.Sequential):
            yield Refused("", f"is a {type(source.model).__name__}; it writes nn.Sequential")
            return
        for name, module in source.model.named_children():
            if isinstance(module, nn.Linear):
                if name not in source.quantized:
                    yield Refused(name, "is not quantized; each nn.Linear has to be")
            elif not isinstance(module, nn.ReLU):
                yield Refused(
                    name, f"is a {type(module).__name__}; it writes nn.Linear and nn.ReLU"
                )

    def write(self, source: Source, path: Path) -> None:
        """Write the header."""
        names = [name for name, _ in source.model.named_children()]
        relus = {n for n, m in source.model.named_children() if isinstance(m, nn.ReLU)}
        layers = [source.quantized[name] for name in names if name not in relus]
        text = [f"/* {self.function}: int8 weights, a scale for each row */", "#include <stdint.h>"]
        calls, place = [], "input"
        for number, layer in enumerate(layers):
            name = f"{self.function}_{number}"
            text += _arrays(name, layer)
            behind = names[names.index(layer.name) + 1 :][:1]
            target = "output" if layer is layers[-1] else f"between_{number}"
            if target != "output":
                calls.append(f"  float {target}[{layer.shape[0]}];\n")
            relu = "if (out[r] < 0) out[r] = 0;" if relus.intersection(behind) else ""
            rows, columns = layer.shape
            calls.append(
                _CALL.format(
                    source=place, target=target, rows=rows, columns=columns, name=name, relu=relu
                )
            )
            place = target
        head = f"static void {self.function}(const float *input, float *output) {{\n"
        path.write_text("\n".join([*text, f"{head}{''.join(calls)}}}", ""]), encoding="utf-8")

    def read(self, path: Path, source: Source) -> Callable[[Tensor], Tensor]:
        """Return the network with the numbers that the header's text holds."""
        text = path.read_text(encoding="utf-8")
        model = source.plain_copy()
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        for number, layer in enumerate(linear):
            weight, scale, bias = (
                torch.tensor(_numbers(text, f"{self.function}_{number}_{part}")) for part in "wsb"
            )
            with torch.no_grad():
                layer.weight.copy_(weight.reshape(layer.weight.shape) * scale[:, None])
                if layer.bias is not None:
                    layer.bias.copy_(bias)
        return model


def example() -> tuple[nn.Module, Tensor]:
    """Return a network that the format holds, for ``engine check``, and inputs for it."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)), torch.randn(4, 64)


def _arrays(name: str, layer: SourceLayer) -> Iterator[str]:
    integers, form = layer.integers()
    rows = layer.shape[0]
    bias = layer.module.bias
    zeros = torch.zeros(rows)
    yield _array("int8_t", f"{name}_w", integers.flatten().tolist())
    yield _array("float", f"{name}_s", form.scale.reshape(-1).expand(rows).tolist())
    yield _array("float", f"{name}_b", (zeros if bias is None else bias.detach()).tolist())


def _array(kind: str, name: str, values: Iterable[float]) -> str:
    return f"static const {kind} {name}[] = {{{', '.join(map(repr, values))}}};"


def _numbers(text: str, name: str) -> list[float]:
    found = re.search(rf" {name}\[\] = {{(.*)}};", text)
    return [float(number) for number in found[1].split(",")] if found else []
