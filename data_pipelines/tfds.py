"""Documents of a TFDS dataset on disk in array_record; TensorFlow is not needed."""

import json
import os
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.file_search import path_of
from data_pipelines.ids import without_surrogates
from data_pipelines.reading import Part, Source

NAMES = {"wikipedia": "wikipedia/20230601.en", "c4": "c4/en"}
"""Short names of common datasets."""

_EXAMPLES = 4096  # in a part


def open_tfds(spec: str, rest: str) -> Source:
    """`tfds:NAME[/CONFIG][/VERSION][:SPLIT][#FIELD]`; the split is train, the field text.

    The newest version of the dataset in $TFDS_DATA_DIR, else in ~/tensorflow_datasets, is taken.

    Raises:
        DataProblem: (corrupt) it is missing, or not in array_record; (usage) it has no such split
            or field of text.
    """
    rest, _, field = rest.partition("#")
    name, _, split = rest.partition(":")
    split, field = split or "train", field or "text"
    folder = folder_of(name)
    _refuse_no_text(folder, field)
    examples = data_source(str(folder), split, (field,))
    info = builder_of(str(folder)).info
    count = len(examples)
    if count:  # by the metadata, which may be wrong
        example(examples, count - 1, f"{folder}, {split}")
    full = info.splits[split.partition("[")[0]]
    each = full.num_bytes / max(1, full.num_examples)
    parts = [
        Part(
            round(each * min(_EXAMPLES, count - at)),
            partial(_read, str(folder), split, field, at, min(count, at + _EXAMPLES)),
        )
        for at in range(0, count, _EXAMPLES)
    ]
    records = {"dataset": info.full_name, "split": split, "examples": count, "field": field}
    return Source(spec, tuple(parts), {}, (), records)


def texts(source: Source) -> "Texts":
    """Random access to the documents of a source opened by `open_tfds`."""
    read = source.parts[0].read
    assert isinstance(read, partial)
    return Texts(*read.args[:3])


class Texts:
    """A sequence of documents, picklable: each process opens the files itself."""

    def __init__(self, folder: str, split: str, field: str):
        self._where = folder, split, field

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> str:
        folder, split, field = self._where
        return text_of(example(self._source, int(index), f"{folder}, {split}")[field])

    @property
    def _source(self) -> Any:
        folder, split, field = self._where
        return data_source(folder, split, (field,))


@cache
def data_source(folder: str, split: str, fields: tuple[str, ...]) -> Any:
    """TFDS's random access to a split; images and fields not asked for stay encoded.

    Raises:
        DataProblem: (corrupt) it is not in array_record; (usage) there is no such split.
    """
    import tensorflow_datasets as tfds

    builder = builder_of(folder)
    features = builder.info.features
    nested = tfds.features.Sequence, tfds.features.FeaturesDict  # TFDS cannot skip these
    skipped = {
        name: tfds.decode.SkipDecoding()
        for name, feature in features.items()
        if isinstance(feature, tfds.features.Image)
        or (name not in fields and not isinstance(feature, nested))
    }
    try:
        return builder.as_data_source(split=split, decoders=skipped)
    except NotImplementedError as error:
        raise DataProblem(
            "the dataset has no random access",
            where=folder,
            why=str(error),
            fix=_how_to_prepare(Path(folder).parent.name),
        ) from None
    except (ValueError, AssertionError) as error:
        raise _unusable(folder, f"the dataset has no split {split!r}", str(error)) from None


def _refuse_no_text(folder: Path, field: str) -> None:
    import tensorflow_datasets as tfds

    found = builder_of(str(folder)).info.features
    features = dict(found.items()) if isinstance(found, tfds.features.FeaturesDict) else {}
    if not isinstance(features.get(field), tfds.features.Text):
        have = ", ".join(f"{name} ({type(f).__name__})" for name, f in features.items())
        raise _unusable(str(folder), f"the dataset has no text {field!r}", f"features: {have}")


@cache
def builder_of(folder: str) -> Any:
    """TFDS's builder for the folder of a dataset's version."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # damaged JSON may raise anything
        raise DataProblem(
            "this is not an intact TFDS dataset",
            where=folder,
            why=f"{type(error).__name__}: {str(error)[:200]}",
            fix="prepare or fetch the dataset again",
        ) from None


def _read(
    folder: str, split: str, field: str, start: int, stop: int, _: int
) -> Iterator[tuple[str, bool]]:
    documents = Texts(folder, split, field)
    yield from ((documents[i], True) for i in range(start, stop))


def example(source: Any, index: int, where: str) -> Any:
    """Example `index` of a `data_source`.

    Raises:
        DataProblem: (corrupt) it cannot be read; `where` names the dataset.
    """
    try:
        return source[index]
    except IndexError:
        raise  # the end of a sequence
    except Exception as error:  # array_record and TFDS may raise anything for damaged files
        raise DataProblem(
            "an example of the dataset cannot be read",
            where=f"{where}, example {index}",
            why=f"{type(error).__name__}: {str(error)[:200]}",
            fix="prepare or fetch the dataset again",
        ) from None


def text_of(value: Any) -> str:
    """A feature as text: invalid UTF-8 becomes U+FFFD, None an empty text."""
    if value is None:
        return ""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return without_surrogates(text)


def folder_of(name: str) -> Path:
    """The folder of a dataset's newest version, of its only configuration unless one is named."""
    root = path_of(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    folder = root / name
    for _ in range(3):
        if (folder / "dataset_info.json").is_file():
            return folder
        below = [path for path in folder.glob("[!.]*") if path.is_dir()]
        versions = [path for path in below if _version(path)]
        if versions:
            folder = max(versions, key=_version)
        elif len(below) == 1:
            folder = below[0]
        else:
            why = f"configurations: {', '.join(sorted(p.name for p in below))}"
            raise _missing(name, root, why if below else "there is no such folder")
    raise _missing(name, root, f"{folder} has no dataset_info.json")


def _version(path: Path) -> list[int]:
    numbers = path.name.split(".")
    return list(map(int, numbers)) if len(numbers) == 3 and all(map(str.isdigit, numbers)) else []


def _missing(name: str, root: Path, why: str) -> DataProblem:
    return DataProblem(
        f"the dataset {name} is not on this disk",
        where=str(root / name),
        why=why,
        fix=_how_to_prepare(name) + "\nor set TFDS_DATA_DIR to the folder that has it",
    )


def _how_to_prepare(name: str) -> str:
    call = f"tfds.builder({json.dumps(name)}, file_format='array_record').download_and_prepare()"
    return f"prepare it once, with network access: import tensorflow_datasets as tfds; {call}"


def _unusable(folder: str, what: str, why: str) -> DataProblem:
    return DataProblem(
        what, where=folder, why=why, fix="tfds:NAME[/CONFIG][:SPLIT][#FIELD]", exit_code=USAGE
    )
