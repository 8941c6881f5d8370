"""How the two sides of a language model are compared: the same random tokens, both logits."""

from typing import Any


def end_of_text(config: Any) -> int | None:
    """The id that ends a text, where the number of tokens tells that they are GPT-2's."""
    from data_pipelines.gpt2 import GPT2Tokenizer

    gpt2 = config.tokens == GPT2Tokenizer.vocab_size
    return GPT2Tokenizer.end_of_text if gpt2 else None


def example(config: Any) -> Any:
    """Random inputs to compare models on: int32 token ids [2, t], the same at every call."""
    import numpy as np

    size = (2, min(config.context, 32))
    return np.random.default_rng(0).integers(0, config.vocab, size, np.int32)


def jax_outputs(model: Any, tokens: Any) -> Any:
    """float32 logits [b, t, v] of the nnx module, as numpy."""
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    forward = nnx.jit(lambda model, tokens: model(tokens)[0])
    return np.asarray(forward(model, jnp.asarray(tokens)))


def torch_outputs(module: Any, tokens: Any) -> Any:
    """float32 logits [b, t, v] of the PyTorch module, as numpy."""
    import torch

    with torch.no_grad():
        return module(torch.from_numpy(tokens).long()).logits.numpy()
