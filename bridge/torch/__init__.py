"""The PyTorch side: a package for each architecture, and loading into its module.

A package `bridge/torch/<architecture>` says `FILES` (what travels with a model directory),
`AUTO_CLASS`, `keys(config)` (transformers' part of config.json), `build(config)` (the module),
and how the two sides are compared: `example(config)` (random inputs), `jax_outputs(model,
inputs)`, `torch_outputs(module, inputs)`; where it can, `given(config, ids)` (a text's ids as
inputs) and, for gradients, `jax_forward(model, inputs)` and `torch_forward(module, inputs)`;
`whole(config)` where its class has parameters that a model may lack; `unlike(config)` where it may
compute otherwise, and says so; `BESIDE`, further JSON files of a model directory. Code that lies
beside a checkpoint is never run: the module is always our own class, or transformers'.
"""

from jaxmodels.lazy import lazy

__all__ = ["load"]

__getattr__ = lazy(__name__, {"load": "loading"})
