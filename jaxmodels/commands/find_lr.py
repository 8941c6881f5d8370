"""`jaxmodels train --find-lr`: tries learning rates and suggests one."""

from collections.abc import Callable, Iterator
from typing import Any

from jaxmodels.cli import emit, say
from jaxmodels.commands.train_options import Request, repeated
from jaxmodels.errors import DONE
from jaxmodels.runtime.stop import Stop


def try_rates(
    request: Request, data: Any, stop: Stop, begin: Callable[[Any], Any] | None = None
) -> int:
    """Writes find_lr.json and find_lr.png, and prints the command to train at the suggested rate.

    Args:
        request: the command.
        data: the run's.
        stop: polled between steps.
        begin: turns a fresh state into the initial one.
    """
    from jaxmodels.files import write_bytes, write_json
    from jaxmodels.runtime.reporting.pictures import picture
    from jaxmodels.runtime.training.find_lr import find_lr, plot

    def batches() -> Iterator[dict[str, Any]]:
        for batch in data.train():
            stop.check()
            yield batch

    run, start = request.run, begin or (lambda state: state)
    result = find_lr(request.package, request.config, request.recipe, batches(), begin=start)
    write_json(run / "find_lr.json", result)
    if png := picture("the learning rates", lambda: plot(result), dpi=120):
        write_bytes(run / "find_lr.png", png)
        say(f"plot: {run / 'find_lr.png'}")
    rate = f"{result['suggestion']:.1e}"
    again = repeated(request.argv, "--optim.peak-lr", rate, without=("--find-lr", "--json"))
    say(f"the loss falls fastest at a learning rate of {rate}", f"train:     {again}")
    if request.options.json:
        emit(result)
    return DONE
