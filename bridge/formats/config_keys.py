"""Keys of a config.json of transformers that change what is computed, and what is said of them."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmodels.errors import MISMATCH, Problem

# The classes of transformers itself.
ITS_CLASS = re.compile(
    r"(GPT2|Dinov2(WithRegisters)?)((LMHead|DoubleHeads)?Model|PreTrainedModel|Backbone|For\w+)"
)


def check_only(config: Mapping[str, Any], only: Mapping[str, Any], arch: str, where: Path) -> None:
    """Checks keys of which one value is computed here; a key that is missing has that value.

    Raises:
        Problem: (mismatch) one has another.
    """
    for key, value in only.items():
        said = config.get(key, value)
        near = isinstance(said, float) and isinstance(value, float)
        near = near and math.isclose(said, value, rel_tol=1e-6)  # as float32 kept it
        if said != value and not near:
            raise unsupported(key, said, f"{arch} computes {value} only", where)


def unsupported(key: str, value: Any, why: str, where: Path) -> Problem:
    """The problem with a key that asks for what is not computed here."""
    return Problem(
        f"the config says {key} = {str(value)[:80]}, which is not supported",
        where=str(where),
        why=why,
        fix="convert another checkpoint of the model; the numbers of this one would be wrong",
        exit_code=MISMATCH,
    )


def named_class(config: Mapping[str, Any]) -> str | None:
    """The class that a config says the model is of."""
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    return name if isinstance(name, str) else None
