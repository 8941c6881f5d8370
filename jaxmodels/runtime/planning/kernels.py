"""The kernels of libraries in a compiled program: which, how often, and the work in cuDNN's."""

import re
from math import prod

from jaxmodels.runtime.planning.program import computations, runs

_TARGET = re.compile(r'custom_call_target="([^"]+)"')
_TRITON = re.compile(r'"kind":"(__triton[^"]*)"')
_SCORES = re.compile(r'"intermediate_tensor_shape":\s*\{.*?"dimensions":\s*\[([^\]]*)\]')
_HEADS = re.compile(r"operand_layout_constraints=\{\w+\[([\d,]+)\]")

# Beginning of XLA's name → ours.
_NAMES = {
    "tpu_custom_call": "Pallas",
    "__cudnn$fmhaSoftmaxBackward": "cuDNN attention, backward",
    "__cudnn$fmha": "cuDNN attention",
    "__cudnn$conv": "cuDNN convolution",
    "__cudnn": "cuDNN",
    "__cublas": "cuBLAS product",
    "__triton_nested_gemm": "Triton product",
    "__triton_gemm": "Triton product",
    "__triton": "Triton fusion",
}


def kernels(text: str) -> dict[str, int]:
    """Kernel → how often a step runs it, those that it runs most first.

    Args:
        text: the module as `Compiled.as_text()` gives it.
    """
    found: dict[str, int] = {}
    for line, times in _lines(text):
        if name := kernel(line):
            found[name] = found.get(name, 0) + times
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def kernel(line: str) -> str:
    """The kernel that a line calls; empty if it is none of those named here."""
    named = _TARGET.search(line) or _TRITON.search(line)
    known = (ours for theirs, ours in _NAMES.items() if named and named[1].startswith(theirs))
    return next(known, "")


def attention_flops(text: str) -> int:
    """Operations of a step in cuDNN's attention on one device, of which XLA knows no cost.

    Forward has two products over all pairs of positions, backward five; a causal mask skips half.
    """
    total = 0
    for line, times in _lines(text):
        if "__cudnn$fmha" not in line or not (scores := _SCORES.search(line)):
            continue
        heads = _HEADS.search(line)
        width = int(heads[1].rpartition(",")[2]) if heads else 0
        products = 5 if "Backward" in line else 2
        pairs = prod(int(size) for size in re.findall(r"\d+", scores[1]))
        work = products * 2 * pairs * width
        total += times * (work // 2 if '"CAUSAL"' in line else work)
    return total


def _lines(text: str) -> list[tuple[str, int]]:
    bodies, entry = computations(text)
    return [(line, times) for name, times in runs(bodies, entry).items() for line in bodies[name]]
