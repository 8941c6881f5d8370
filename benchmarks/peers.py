"""The PyTorch twins as peers: the same sizes, weights, batches and number of threads."""

from typing import Any

import numpy as np

from benchmarks.harness import cores


def twin_with(arch: str, config: Any, params: dict[str, Any]) -> Any:
    """The PyTorch twin of a model with these parameters (path → array), in eval mode.

    Sets torch's threads to the cores at hand, the number that XLA takes.
    """
    import torch

    from bridge.torch import state_dict, twin

    torch.set_num_threads(cores())
    tensors = {path: _tensor(path, np.asarray(leaf)) for path, leaf in params.items()}
    module = twin(arch).build(config)
    module.load_state_dict(state_dict(arch, config, tensors), strict=True)
    return module.eval()


def _tensor(path: str, array: np.ndarray) -> Any:
    from bridge.tensors import Tensor

    return Tensor(path, array.shape, array.dtype, lambda: array)
