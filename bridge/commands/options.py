"""What the verbs of checkpoints share: options, and the numbers of a comparison."""

from dataclasses import replace
from typing import Annotated, Any

from tyro.conf import arg

from jaxmodels.cli import show

Settings = Annotated[tuple[str, ...], arg(metavar="NAME=VALUE")]


def with_weights(options: Any) -> Any:
    """Options whose `set` says what --weights does."""
    from bridge.checkpoint.averages import CHOICE

    if not options.weights:
        return options
    return replace(options, set=(*options.set, f"{CHOICE}={options.weights}"))


def show_agreement(report: Any) -> None:
    """Shows how far JAX and PyTorch (or onnxruntime), or a model and its source, are apart."""
    if report.max_abs_logit_diff is None:
        return
    if report.argmax_agreement is None:
        show(f"largest difference, JAX against onnxruntime: {report.max_abs_logit_diff:.3g}")
        return
    show(f"largest logit difference, JAX against PyTorch: {report.max_abs_logit_diff:.3g}")
    if report.max_abs_logit_diff_on_text is not None:
        show(f"on the text: {report.max_abs_logit_diff_on_text:.3g}")
    show(f"the largest logit is the same at {report.argmax_agreement:.2%} of positions")
    if report.max_gradient_diff is not None:
        show(f"largest relative difference of gradients: {report.max_gradient_diff:.3g}")
    if report.max_abs_logit_diff_to_source is not None:
        largest, same = report.max_abs_logit_diff_to_source, report.argmax_agreement_with_source
        show(f"largest logit difference to the source: {largest:.3g}")
        show(f"the source's largest logit is the same at {same:.2%} of positions")
