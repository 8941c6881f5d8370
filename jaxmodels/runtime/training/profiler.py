"""Traces a window of training steps with JAX's profiler."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxmodels.cli import say
from jaxmodels.errors import USAGE, Problem


@dataclass
class TracedSteps:
    """The steps from `first` to `last`, both included, counted as in the log."""

    first: int
    last: int
    folder: Path
    """The trace's folder, for TensorBoard's profile plugin (xprof) and Perfetto."""
    running: bool = False
    done: bool = False

    def before(self, step: int) -> None:
        """Starts the trace if the next step is in the window."""
        if not self.running and not self.done and self.first <= step <= self.last:
            import jax

            with self._harmless():
                jax.profiler.start_trace(self.folder, create_perfetto_trace=True)
                self.running = True

    def ends(self, step: int) -> bool:
        """Whether this step, once computed, is the last of a running window."""
        return self.running and step >= self.last

    def stop(self) -> bool:
        """Writes the trace if the window is running; returns whether it was written."""
        if not self.running:
            return False
        import jax

        self.running, self.done = False, True
        with self._harmless():
            jax.profiler.stop_trace()
            return True
        return False

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Within its block errors are printed: a failed trace must not end the training."""
        try:
            yield
        except Exception as error:
            self.done = True
            why = (str(error).splitlines() or [type(error).__name__])[0]
            say(f"--profile: no trace was written to {self.folder}: {why}")


def parse_window(text: str, folder: Path, steps: int) -> TracedSteps:
    """The window of "10:20".

    Raises:
        Problem: (usage) it cannot be read, or does not lie within the run's steps.
    """
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= steps):
        raise Problem(
            f"--profile {text} is not a range of steps",
            why=f"the form is FIRST:LAST, two of the steps from 1 to {steps}",
            fix="for example --profile 10:20",
            exit_code=USAGE,
        )
    return TracedSteps(int(first), int(last), folder)
