"""What the actions of `jaxmodels memory` do. Each returns the object for `--json`, and lines."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from jaxmodels.bitgen import closeness
from jaxmodels.bitgen.closeness import Found
from jaxmodels.bitgen.record import Closeness, Item, Record
from jaxmodels.cli import say
from jaxmodels.commands.lock import changing
from jaxmodels.commands.memory_facts import Fact, facts_of
from jaxmodels.commands.memory_model import Memorable
from jaxmodels.commands.memory_options import Forget, List, Read, Write
from jaxmodels.commands.memory_pairs import SHAPES, measured
from jaxmodels.errors import NO_SPACE, USAGE, Problem

NEVER = "never written"

Answer = tuple[dict[str, Any], list[str]]


def write(options: Write) -> Answer:
    """Runs `memory write`."""
    facts = facts_of(options)
    with _changing(options.path):
        memorable = Memorable(options.path)
        _refuse_full(memorable, len(facts))
        after = memorable.record.with_items(_items(memorable, facts))
        after = _with_closeness(memorable, after, options.data)
        memorable.save(after)
    new = after.items[len(after.items) - len(facts) :]
    held, slots = len(after.items) + memorable.unrecorded, memorable.config.slots
    lines = [_line(item) for item in new]
    if after.closeness is not None and memorable.record.closeness != after.closeness:
        lines += _measured_lines(after.closeness)
    lines.append(f"the memory holds {held} of {slots} items")
    return {"written": [_entry(item) for item in new], "items": held, "slots": slots}, lines


def read(options: Read) -> Answer:
    """Runs `memory read`."""
    if (options.text is None) == (options.image is None):
        raise Problem("give --text or --image to ask by", exit_code=USAGE)
    memorable = Memorable(options.path)
    if options.image is not None:
        feature = memorable.images(memorable.read_images([options.image]))[0]
    else:
        feature = memorable.texts([options.text or ""]).features[0]
    kinds = memorable.closeness()
    found = closeness.nearest(memorable.record, kinds, feature, options.image is not None)
    if memorable.record.items and not kinds.data:
        say(
            "how near a query must be was not measured for this model: "
            "`jaxmodels memory write PATH --data SPEC` does it"
        )
    known = found is not None and found.close
    result = {
        "written": known,
        "text": found.item.text if found and known else None,
        "nearest": found and _compared(memorable, found),
        "measured_on": kinds.data or None,
    }
    return result, _answer(memorable, found)


def forget(options: Forget) -> Answer:
    """Runs `memory forget`."""
    chosen = sum([bool(options.items), options.source is not None, options.all])
    if chosen != 1:
        raise Problem(
            "say what to forget: numbers of items, --source or --all",
            fix="`jaxmodels memory list PATH` shows the numbers",
            exit_code=USAGE,
        )
    with _changing(options.path):
        memorable = Memorable(options.path)
        gone = _chosen(memorable.record, options)
        after = memorable.record.without(item.number for item in gone)
        memorable.save(after, empty=options.all)
    left = len(after.items) + (0 if options.all else memorable.unrecorded)
    lines = [f"forgotten: {_line(item)}" for item in gone]
    if options.all and memorable.unrecorded:
        lines.append(f"forgotten: {memorable.unrecorded} more, written without a record")
    lines.append(f"the memory holds {left} of {memorable.config.slots} items")
    return {"forgotten": [_entry(item) for item in gone], "items": left}, lines


def list_(options: List) -> Answer:
    """Runs `memory list`."""
    memorable = Memorable(options.path)
    items, slots = memorable.record.items, memorable.config.slots
    lines = [_line(item) for item in items]
    if memorable.unrecorded:
        lines.append(_unrecorded(memorable))
    held = len(items) + memorable.unrecorded
    lines.append(f"the memory holds {held} of {slots} items")
    if memorable.record.closeness is not None:
        lines += _measured_lines(memorable.record.closeness)
    result = {
        "items": [_entry(item) for item in items],
        "unrecorded": memorable.unrecorded,
        "slots": slots,
        "closeness": memorable.record.closeness and asdict(memorable.record.closeness),
    }
    return result, lines


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    """One process changes a model directory at a time."""
    if not path.is_dir():  # the reader says what is wrong with it
        Memorable(path)
    with changing(path):
        yield


def _refuse_full(memorable: Memorable, more: int) -> None:
    held, slots = len(memorable.record.items) + memorable.unrecorded, memorable.config.slots
    if held + more > slots:
        raise Problem(
            "the memory is full",
            where=str(memorable.path),
            why=f"it has {slots} slots and holds {held} items; {more} more do not fit",
            fix="forget some (`jaxmodels memory forget`), or use a model with more --model.slots",
            exit_code=NO_SPACE,
        )


def _items(memorable: Memorable, facts: Sequence[Fact]) -> list[Item]:
    """The facts as the model sees them; `with_items` gives them their numbers."""
    if not facts:
        return []
    files = [fact.image for fact in facts if fact.image is not None]
    pixels = memorable.read_images(files) if files else np.zeros((0, 1, 1, 3), np.uint8)
    images = iter(memorable.images(pixels) if files else ())
    pictured = [fact for fact in facts if fact.image is not None]
    mute = [i for i, fact in enumerate(pictured) if fact.text is None]
    own = iter(memorable.captions(pixels[mute]) if mute else ())
    words = [next(own) if fact.text is None else fact.text for fact in facts]
    texts = memorable.texts(words)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return [
        Item(
            number=0,
            kind="text" if fact.image is None else "image" if fact.text is None else "caption",
            text=text,
            source=fact.source,
            written=now,
            key=feature if fact.image is None else next(images),
            text_key=feature,
            code=code,
        )
        for fact, text, feature, code in zip(facts, words, texts.features, texts.codes, strict=True)
    ]


def _with_closeness(memorable: Memorable, after: Record, spec: str | None) -> Record:
    """The record with thresholds: measured on the data if they are given, or if the model was
    trained on drawn shapes and nothing was measured yet."""
    if spec is None and (after.closeness is not None or memorable.data != SHAPES):
        return after
    return replace(after, closeness=measured(memorable, spec or SHAPES))


def _chosen(record: Record, options: Forget) -> tuple[Item, ...]:
    """The items to forget.

    Raises:
        Problem: (usage) one of them is not there.
    """
    if options.all:
        return record.items
    there = {item.number: item for item in record.items}
    if options.source is not None:
        found = tuple(i for i in record.items if i.source == options.source)
        missing = "" if found else f"nothing came from {options.source!r}"
    else:
        found = tuple(there[n] for n in dict.fromkeys(options.items) if n in there)
        lacking = [str(n) for n in options.items if n not in there]
        missing = f"there is no item {', '.join(lacking)}" if lacking else ""
    if missing:
        raise Problem(
            missing,
            where=str(options.path),
            why=f"{len(there)} items are there" if there else "nothing was written",
            fix="`jaxmodels memory list PATH` shows what is there",
            exit_code=USAGE,
        )
    return found


def _compared(memorable: Memorable, found: Found) -> dict[str, Any]:
    """The nearest item for `--json`."""
    return {
        **_entry(found.item),
        "similarity": found.similarity,
        "threshold": found.least,
        "held": memorable.held(found.item),
    }


def _answer(memorable: Memorable, found: Found | None) -> list[str]:
    """The answer of `memory read`, with its reasons."""
    more = [f"  {_unrecorded(memorable)}"] if memorable.unrecorded else []
    if found is None:
        return [NEVER, *more]
    item, needed = found.item, f"{found.least:.4f} is needed"
    if not found.close:
        near = f"  the nearest is item {item.number}, {item.text!r}"
        return [NEVER, f"{near}: similarity {found.similarity:.4f}, {needed}", *more]
    return [
        item.text,
        f"  item {item.number}, {_came(item)}, written {item.written}",
        f"  similarity {found.similarity:.4f}, {needed}; "
        f"the memory holds it to {memorable.held(item):.3f}",
        *more,
    ]


def _entry(item: Item) -> dict[str, Any]:
    """An item for `--json`."""
    return {
        "item": item.number,
        "kind": item.kind,
        "text": item.text,
        "source": item.source,
        "written": item.written,
    }


def _line(item: Item) -> str:
    return f"{item.number:>4}  {item.text}  ({_came(item)})"


def _came(item: Item) -> str:
    what = {"text": "from", "image": "the model's words for", "caption": "caption of"}[item.kind]
    return f"{what} {item.source}"


def _unrecorded(memorable: Memorable) -> str:
    return f"{memorable.unrecorded} more were written without a record, and cannot be listed"


def _measured_lines(found: Closeness) -> list[str]:
    """What was measured, in a table."""
    rows = (("text", found.text), ("image", found.image), ("image by text", found.cross))
    head = f"measured on {found.pairs} pairs of {found.data}:"
    return [
        f"{head:<48} {'threshold':>9} {'unwritten answered':>19} {'written refused':>16}",
        *(
            f"  {name:<46} {each.least:>9.4f} {each.answered:>19.1%} {each.refused:>16.1%}"
            for name, each in rows
        ),
    ]
