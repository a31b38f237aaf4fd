"""Small random language models, quantized, for tests of what they are deployed in."""

import engine
from engine.testing.networks import language_model


def quantized(
    bits=4, scheme="per_group_symmetric", group=32, layers=1, head=False, types=("Linear",), **model
):
    """Return the quantizer of a random language model, and tokens for it."""
    made, tokens = language_model(layers, **model)
    return attached(made, bits, scheme, group, head=head, types=types), tokens


def attached(model, bits=4, scheme="per_group_symmetric", group=32, *, head=False, types, more=()):
    entry = {"quant_types": ["weight"], "quant_bits": bits, "quant_scheme": scheme}
    if "group" in scheme:
        entry["quant_group_size"] = group
    entries = [{"op_types": list(types), **entry}, *more]
    if not head:
        entries.append({"op_names": ["lm_head"], "exclude": True})
    config = {"compressor": "naive", "config_list": entries}
    quantizer = engine.create_compressor(model, config)
    quantizer.compress()
    return quantizer
