"""A model class of transformers: its config.json and our Config as one two-way table.

The twin of an architecture whose PyTorch class is transformers' own declares
`TRANSFORMERS = TransformersClass(...)`. Reading a config.json, writing one and building the module
all follow from it; nothing else has to be said about the class.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from jaxmodels.errors import MISMATCH, Problem

Fields = dict[str, Any]
"""Field of our Config → value."""

# Keys that change no output: transformers writes them into any config.json, or once did.
_IDLE = frozenset(
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


def _no_fields(said: Mapping[str, Any], where: Path) -> Fields:
    return {}


def _no_keys(config: Any) -> dict[str, Any]:
    return {}


def _no_notes(said: Mapping[str, Any], names: Iterable[str], where: Path) -> list[str]:
    return []


def _none_other(said: Mapping[str, Any], where: Path) -> tuple[Fields, list[str]] | None:
    return None


@dataclass(frozen=True)
class TransformersClass:
    """How the config.json of a class of transformers and our Config say the same."""

    format: str
    """The format's name, as in `jaxmodels convert --to`."""
    types: Mapping[str, ModelType]
    """`model_type` → what is special about it. The first whose implied fields fit is written."""
    head: str
    """How the name of the class ends: "LMHeadModel" of GPT2LMHeadModel."""
    rows: tuple[Key, ...]
    """The table."""
    only: Mapping[str, Only] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    """Fields without a key of transformers', kept under our name, which it passes over → what a
    missing one means, or a function of the known fields. Written where they are not that."""
    settled: Mapping[str, Any] = field(default_factory=dict)
    """Key → its value in what is written again, whatever the source's config.json had."""
    known: frozenset[str] | None = None
    """Patterns of further keys: those that change no output, and those that the functions below
    read. Any other key is refused unless the config names transformers' own class, which then
    passes over it, too. None: no key is refused."""
    reads: Callable[[Mapping[str, Any], Path], Fields] = _no_fields
    """Further fields of our Config that a config.json (and where it is) sets."""
    writes: Callable[[Any], dict[str, Any]] = _no_keys
    """Further keys for a Config."""
    check: Callable[[Mapping[str, Any], Iterable[str], Path], list[str]] = _no_notes
    """Further checks of a config.json, given the names of the tensors; returns notes."""
    other: Callable[[Mapping[str, Any], Path], tuple[Fields, list[str]] | None] = _none_other
    """Reads a config.json that another program wrote for the same weights, without a model_type:
    fields and notes; None where it is not one."""

    @property
    def of_text(self) -> bool:
        """Whether it is a language model."""
        return any(key.ours == "vocab" for key in self.rows)

    def type_of(self, config: Any) -> str:
        """The `model_type` for a Config of ours."""
        for name, kind in self.types.items():
            implied = ((n, value) for n, value in kind.implies.items() if n not in self.own)
            if all(getattr(config, n) == value for n, value in implied):
                return name
        raise ValueError(f"no model_type of {self.format} for {config}")

    def keys(self, config: Any) -> dict[str, Any]:
        """config.json for a Config of ours.

        Raises:
            Problem: (mismatch) the class cannot hold these sizes.
        """
        fields = dataclasses.asdict(config)
        name = self.type_of(config)
        kind = self.types[name]
        keys = {"model_type": name, "architectures": [kind.stem + self.head]}
        for key in self.rows:
            if key.ours not in kind.implies:
                value = _theirs(key, fields[key.ours])
                keys |= dict.fromkeys((key.theirs, *key.copies), value)
        keys |= {name: only.value for name, only in self.only.items() if only.written}
        keys |= self.writes(config)
        usual = {**self._own_defaults(fields), **kind.implies}
        return keys | {n: fields[n] for n in self.own if fields[n] != usual.get(n)}

    def build(self, config: Any) -> Any:
        """The module, a `torch.nn.Module` of transformers, its parameters not yet loaded."""
        import transformers

        keys = self.keys(config)
        stem = self.types[keys.pop("model_type")].stem
        (name,) = keys.pop("architectures")
        return getattr(transformers, name)(getattr(transformers, f"{stem}Config")(**keys))

    def read(self, said: Mapping[str, Any], where: Path) -> Fields:
        """The fields of our Config that a config.json sets.

        Args:
            said: the parsed config, with a `model_type` among `types`.
            where: its path, for errors.

        Raises:
            Problem: (mismatch) it asks for what is not computed here; the key is named.
        """
        said = self._by_own_keys(said, where)
        self._check_only(said, where)
        implied = self.types[said["model_type"]].implies
        fields = dict(implied)
        derived = []
        for key in self.rows:
            if key.theirs not in said or key.ours in implied:
                continue
            value = said[key.theirs]
            if value is None and callable(key.default):
                derived.append(key)
            else:
                fields[key.ours] = _ours(key, value, where)
        for key in derived:
            if (value := key.default(fields)) is not None:
                fields[key.ours] = value
        fields |= {name: said[name] for name in self.own if name in said}
        return fields | self.reads(said, where)

    def defaults(self, fields: Fields) -> Fields:
        """What transformers' class takes for the fields that a config.json does not set."""
        missing = {key.ours: key.default for key in self.rows if key.ours not in fields}
        return _resolved(missing, fields)

    def written(
        self, keys: Mapping[str, Any], was: Mapping[str, Any], where: Path
    ) -> dict[str, Any]:
        """config.json of a folder in transformers' own form.

        Args:
            keys: as `keys` gives them.
            was: the config.json that the model came with, or nothing. It is written again as it
                was where it still says the same, and else with the keys that changed.
            where: the path, for errors.
        """
        if was.get("model_type") not in self.types:
            return dict(keys)
        was = self._by_own_keys(was, where)
        was |= {key: value for key, value in self.settled.items() if key in was}
        changed = {**was, **keys}
        return was if self._meaning(changed, where) == self._meaning(was, where) else changed

    def notes(self, said: Mapping[str, Any], where: Path, named: bool) -> list[str]:
        """What to report about a config.json: keys that are not read.

        Args:
            said: the parsed config.
            where: its path, for errors.
            named: whether it names its model_type or class itself.

        Raises:
            Problem: (mismatch) a key whose effect nobody knows.
        """
        notes = []
        for key in self.rows:
            values = {name: said.get(name, key.default) for name in (key.theirs, *key.copies)}
            if any(value != values[key.theirs] for value in values.values()):
                notes.append(f"{key.ours} is that of {key.theirs}; the config has {values}")
        unknown = self._unknown(said)
        name = class_named(said)
        if unknown and not (named and (name is None or self.is_class(name))):
            whose = f"nor the class {name[:80]!r}" if name else "nor whose config this is"
            why = f"what it does is not known, {whose}"
            raise unsupported(unknown[0], said[unknown[0]], why, where)
        if unknown:
            stem = self.types[said["model_type"]].stem
            some = ", ".join(unknown)[:200]
            notes.append(f"transformers' {stem} does not read these keys: {some}")
        return notes

    def is_class(self, name: str) -> bool:
        """Whether this is the name of one of transformers' classes for the model."""
        ends = r"((LMHead|DoubleHeads)?Model|PreTrainedModel|Backbone|For\w+)"
        return any(re.fullmatch(kind.stem + ends, name) for kind in self.types.values())

    def _own_defaults(self, fields: Fields) -> Fields:
        return _resolved(self.own, fields)

    def _meaning(self, said: Mapping[str, Any], where: Path) -> Fields:
        """All fields, also those that the config leaves to transformers' defaults."""
        fields = self.read(said, where)
        fields = self.defaults(fields) | fields
        return self._own_defaults(fields) | fields

    def _by_own_keys(self, said: Mapping[str, Any], where: Path) -> dict[str, Any]:
        """The config without aliases."""
        names = {alias: key.theirs for key in self.rows for alias in key.aliases}
        result = {key: value for key, value in said.items() if key not in names}
        for alias in names.keys() & said.keys():
            key = names[alias]
            if result.setdefault(key, said[alias]) != said[alias]:
                other = f"{key}, which is the same, is {str(result[key])[:80]}"
                raise unsupported(alias, said[alias], other, where)
        return result

    def _check_only(self, said: Mapping[str, Any], where: Path) -> None:
        for key, only in self.only.items():
            value = said.get(key, only.value if only.default is ... else only.default)
            near = isinstance(value, float) and isinstance(only.value, float)
            near = near and math.isclose(value, only.value, rel_tol=1e-6)  # as float32 kept it
            if value != only.value and not near:
                why = f"{only.value} is the only value that is computed"
                raise unsupported(key, value, why, where)

    def _unknown(self, said: Mapping[str, Any]) -> list[str]:
        if self.known is None:
            return []
        known = {*self.only, *self.own, *self.settled, *_IDLE, *self.known}
        for key in self.rows:
            known |= {key.theirs, *key.aliases, *key.copies}
        return [key for key in said if not any(fnmatchcase(key, each) for each in known)]


def unsupported(key: str, value: Any, why: str, where: Path) -> Problem:
    """The problem with a key that asks for what is not computed here."""
    return Problem(
        f"the config says {key} = {str(value)[:80]}, which is not supported",
        where=str(where),
        why=why,
        fix="convert another checkpoint of the model; the numbers of this one would be wrong",
        exit_code=MISMATCH,
    )


def class_named(said: Mapping[str, Any]) -> str | None:
    """The class that a config.json names under `architectures`."""
    classes = said.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    return name if isinstance(name, str) else None


def _ours(key: Key, value: Any, where: Path) -> Any:
    if key.values is None:
        return value
    try:
        return key.values[value]
    except (KeyError, TypeError):  # TypeError: of a type that is no key of a dict
        known = ", ".join(map(str, key.values))
        raise unsupported(key.theirs, value, f"known are {known}", where) from None


def _theirs(key: Key, value: Any) -> Any:
    if key.values is None:
        return value
    return next(theirs for theirs, ours in key.values.items() if ours == value)


def _resolved(defaults: Mapping[str, Any], fields: Fields) -> Fields:
    """The defaults, those that are functions called; without those that are None."""
    values = {name: d(fields) if callable(d) else d for name, d in defaults.items()}
    return {name: value for name, value in values.items() if value is not None}
