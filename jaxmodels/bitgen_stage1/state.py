"""What the model remembers and no gradient changes: PyTorch's buffers."""

from flax import nnx


class Buffer(nnx.Variable):
    """State that is not trained, and goes into checkpoints: queues, counters, scales."""
