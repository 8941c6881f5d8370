"""What the twins of language models share: how both sides are compared, by the logits of tokens.

A twin takes all of it by `LIKE = "bridge.torch.language"`, and defines what differs.
"""

from typing import Any

# How the model card loads the directory.
AUTO_CLASS = "AutoModelForCausalLM"


def end_of_text(config: Any) -> int | None:
    """The id that ends a text, if the number of tokens is GPT-2's."""
    from data_pipelines.gpt2 import GPT2Tokenizer

    gpt2 = config.tokens == GPT2Tokenizer.vocab_size
    return GPT2Tokenizer.end_of_text if gpt2 else None


def example(config: Any) -> Any:
    """Random inputs to compare models on: int32 token ids [2, t], the same at every call."""
    import numpy as np

    size = (2, min(config.context, 32))
    return np.random.default_rng(0).integers(0, config.vocab, size, np.int32)


def given(config: Any, ids: Any) -> Any:
    """The ids of a text as inputs: int32 [1, t], the last ones if they are too many."""
    import numpy as np

    return np.asarray(ids, np.int32)[None, -config.context :]


def jax_forward(model: Any, tokens: Any) -> Any:
    """float32 logits [b, t, v] of the nnx module."""
    import jax.numpy as jnp

    return model(jnp.asarray(tokens))[0]


def jax_outputs(model: Any, tokens: Any) -> Any:
    """`jax_forward`, compiled, as numpy."""
    import numpy as np
    from flax import nnx

    return np.asarray(nnx.jit(jax_forward)(model, tokens))


def torch_forward(module: Any, tokens: Any) -> Any:
    """float32 logits [b, t, v] of the PyTorch module."""
    import torch

    return module(torch.from_numpy(tokens).long()).logits


def torch_outputs(module: Any, tokens: Any) -> Any:
    """`torch_forward` as numpy, without gradients."""
    import torch

    with torch.no_grad():
        return torch_forward(module, tokens).numpy()
