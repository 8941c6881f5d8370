"""The rows of a table between a config.json of transformers and our Config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxmodels.errors import MISMATCH, Problem

Fields = dict[str, Any]
"""Field of our Config → value."""

# Keys that change no output: transformers writes them into any config.json, or once did.
IDLE = frozenset(
    "model_type architectures transformers_version dtype torch_dtype use_cache initializer_range "
    "bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id prefix "
    "id2label label2id num_labels problem_type finetuning_task return_dict torchscript "
    "use_bfloat16 is_decoder is_encoder_decoder cross_attention_hidden_size "
    "tie_encoder_decoder chunk_size_feed_forward tokenizer_class task_specific_params "
    "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty "
    "temperature top_k top_p typical_p repetition_penalty encoder_no_repeat_ngram_size "
    "length_penalty no_repeat_ngram_size bad_words_ids num_return_sequences "
    "forced_bos_token_id forced_eos_token_id remove_invalid_values suppress_tokens "
    "begin_suppress_tokens exponential_decay_length_penalty gradient_checkpointing "
    "_* output_* tf_*".split()
)


class Key(NamedTuple):
    """A key of config.json, and the field of our Config that it sets."""

    theirs: str
    ours: str
    default: Any = None
    """Our value where the key is missing, as transformers' class has it. A function of the fields
    known so far gives it for null too (GPT-2's `n_inner`, Llama's `num_key_value_heads`)."""
    values: Mapping[Any, Any] | None = None
    """Their value → ours, where these differ. Of several with one meaning the first is written."""
    aliases: tuple[str, ...] = ()
    """Other names that transformers reads for the key."""
    copies: tuple[str, ...] = ()
    """Further keys, written with the same value and not read."""
    side: bool = False
    """Whether it is the side of a square, of which transformers also takes height and width."""


class Only(NamedTuple):
    """A key that changes what is computed, of which one value is supported."""

    value: Any
    default: Any = ...
    """What a missing key means; by default the supported value."""
    written: bool = False
    """Whether config.json gets the key although it says what is usual."""


class ModelType(NamedTuple):
    """One `model_type` of a class."""

    stem: str
    """How transformers' names for it begin: "GPT2" of GPT2Config and GPT2LMHeadModel."""
    implies: Mapping[str, Any] = {}
    """Fields of our Config that follow from the type; those in `own` may be set otherwise."""
    mark: str = ""
    """How the name of a tensor ends that only this type has, for files without a config."""


def unsupported(key: str, value: Any, why: str, where: Path) -> Problem:
    """The problem with a key that needs what is not computed here."""
    return Problem(
        f"the config says {key} = {str(value)[:80]}, which is not supported",
        where=str(where),
        why=why,
        fix="convert another checkpoint of the model; the numbers of this one would be wrong",
        exit_code=MISMATCH,
    )


def class_named(config_json: Mapping[str, Any]) -> str | None:
    """The class that a config.json names under `architectures`."""
    classes = config_json.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    return name if isinstance(name, str) else None


def to_ours(key: Key, value: Any, where: Path) -> Any:
    """Our value for one in a config.json (which is at `where`).

    Raises:
        Problem: (mismatch) it is not in the table, or no square.
    """
    if key.side and isinstance(value, list) and len(value) == 2:
        if value[0] != value[1]:
            raise unsupported(key.theirs, value, "height and width are the same here", where)
        value = value[0]
    if key.values is None:
        return value
    try:
        return key.values[value]
    except (KeyError, TypeError):  # TypeError: of a type that is no key of a dict
        known = ", ".join(map(str, key.values))
        raise unsupported(key.theirs, value, f"known are {known}", where) from None


def to_theirs(key: Key, value: Any) -> Any:
    """What is written for a value of ours."""
    if key.values is None:
        return value
    return next(theirs for theirs, ours in key.values.items() if ours == value)


def resolved(defaults: Mapping[str, Any], fields: Fields) -> Fields:
    """The defaults, those that are functions called; without those that are None."""
    values = {name: d(fields) if callable(d) else d for name, d in defaults.items()}
    return {name: value for name, value in values.items() if value is not None}
