"""State without gradients, like PyTorch's buffers."""

from flax import nnx


class Buffer(nnx.Variable):
    """State that is not trained, but saved in checkpoints: queues, counters, scales."""
