"""The forms of `--data`, and how their text is opened."""

import difflib
from pathlib import Path
from typing import Any

from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.reading import Progress, Reading, Source

SPECS = {
    "pydoc": "English prose of the Python reference; comes with every Python (465,000 characters)",
    "text:PATH": "UTF-8 text: a file, a folder (all *.txt below it) or a glob pattern",
    "jsonl:PATH#FIELD": "JSON lines with text in FIELD (text): file, folder or glob",
    "parquet:PATH#COLUMN": "rows with text in COLUMN (text): file, folder or glob",
    "tfds:NAME[/CONFIG][:SPLIT][#FIELD]": "a TFDS dataset on disk in array_record, streamed",
    "wikipedia": "tfds:wikipedia/20230601.en",
    "c4": "tfds:c4/en",
    "bin:PATH": "a folder written by `data prepare`, or a raw token file (?dtype=uint32)",
    "mix:WEIGHT*SPEC,WEIGHT*SPEC": "texts mixed by weight, row by row: mix:3*text:books,1*pydoc",
    "shapes[:SIDE]": "images with captions: 10,256 drawn scenes, SIDE (56) pixels wide",
    "images:FOLDER[#FILE[:SPLIT]]": "images with captions in COCO's or Karpathy's JSON, JSON lines "
    "or a CSV (file,caption)",
    "questions:shapes[:SIDE]": "the drawn scenes with questions: colour, shape, count, relation",
    "questions:FOLDER[#FILE[#ANSWERS]]": "images with questions in the JSON files of VQAv2",
    "coco_captions[:SPLIT]": "tfds:coco_captions; or any TFDS dataset with an image and captions",
}
"""Form of a spec → its description."""

NOT_TEXT = {
    "bin": "tokens already",
    "shapes": "images with captions",
    "images": "images with captions",
    "coco_captions": "images with captions",
    "questions": "images with questions",
}
"""Kind of a spec → what it is, if not text."""

MIX = "mix"
"""Kind of a mixture's spec."""


def fingerprint(source: Source, progress: Progress | None = None) -> dict[str, Any]:
    """Identity of a source, JSON-able; `sha256` changes when, and only when, its documents do.

    It is the digest of the text; of files of records, that of the files and the field; of a TFDS
    dataset, that of its name, version, split and number of examples.
    """
    if not source.records:
        reading = Reading(source, "checking the text", progress)
        for _ in reading:
            pass
        return {"sha256": reading.sha256(), "files": source.files}
    from data_pipelines.records import digest_of

    return {"sha256": digest_of(source, progress), "files": source.files, **source.records}


def open_text(spec: str) -> Source:
    """Opens the documents of a spec of text, any form but `bin:` and `mix:`.

    Raises:
        DataProblem: (usage) the spec has no known form; (corrupt) nothing is found.
    """
    from data_pipelines import parquet, records, text_files, tfds

    kind, _, path = spec.partition(":")
    if spec == "pydoc":
        return text_files.open_pydoc()
    if kind in tfds.NAMES:
        kind, path = "tfds", tfds.NAMES[kind] + (f":{path}" if path else "")
    opened = {
        "text": text_files.open_files,
        "jsonl": records.open_jsonl,
        "parquet": parquet.open_parquet,
        "tfds": tfds.open_tfds,
    }
    if kind == MIX:
        raise DataProblem(
            "a mixture can only be trained on",
            where=spec,
            fix="give one of its sources; `jaxmodels train --data` takes the mixture",
            exit_code=USAGE,
        )
    if kind in NOT_TEXT and (path or kind in ("shapes", "coco_captions")):
        raise DataProblem(
            f"text is needed here, and {spec} is {NOT_TEXT[kind]}",
            fix="give a text, such as text:PATH; `jaxmodels data list` shows all forms",
            exit_code=USAGE,
        )
    if kind not in opened or not path:
        raise unknown_spec(spec)
    return opened[kind](spec, path)


def unknown_spec(spec: str) -> DataProblem:
    """The error for a spec of no known form; suggests similar ones."""
    forms = {form.replace("[", ":").partition(":")[0]: form for form in SPECS}
    kind = spec.partition(":")[0]
    near = difflib.get_close_matches(kind, forms, n=2) or ([kind] if kind in forms else [])
    if spec and Path(spec).exists():
        fix = f"did you mean text:{spec}?"
    elif near:
        fix = f"did you mean {' or '.join(forms[name] for name in near)}?"
    else:
        fix = "see `jaxmodels data list`"
    return DataProblem(
        f"unknown data: {spec!r}", why=f"known: {', '.join(SPECS)}", fix=fix, exit_code=USAGE
    )
