"""Optional packages: which extra of pyproject.toml installs each, and the error without it.

`require` checks before work begins. An import that fails all the same ends in the same message
(`jaxmodels/explain.py`).
"""

from importlib.util import find_spec

from jaxmodels.errors import USAGE, Problem

EXTRAS = {
    "torch": "torch",
    "transformers": "torch",
    "gguf": "gguf",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "libtpu": "tpu",
    "jax_cuda13_plugin": "plan-gpu",
    "lm_eval": "lm-eval",
    "wandb": "wandb",
    "trackio": "trackio",
}
"""Module → extra."""


def installed(module: str) -> bool:
    """Whether a module can be imported; does not import it."""
    return find_spec(module) is not None


def require(module: str, purpose: str) -> None:
    """Checks that an optional package is installed.

    Args:
        module: one of EXTRAS.
        purpose: what needs it, as the subject of a sentence: "writing a GGUF file".

    Raises:
        Problem: (usage) it is not.
    """
    if not installed(module):
        raise missing(module, purpose)


def missing(module: str, purpose: str = "this") -> Problem:
    """The error that names the extra."""
    return Problem(
        f"{purpose} needs the package {module}, which is not installed",
        fix=f"pip install 'jaxmodels[{EXTRAS[module]}]'",
        exit_code=USAGE,
    )
