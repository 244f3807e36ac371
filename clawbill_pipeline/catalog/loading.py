"""Reads a catalogue file: YAML without loss of digits, and errors that name file and line. Models are in ``models``."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from clawbill_pipeline.catalog.customers import with_customers
from clawbill_pipeline.catalog.models import Catalog, CatalogError

# Longer whole numbers stay text, as those with a point do.
_WHOLE = re.compile(r"[+-]?\d{1,30}", re.ASCII)

Lines = dict[tuple[str | int, ...], int]


def load(path: Path | str) -> Catalog:
    """The checked catalogue in the YAML file ``path``. Raises CatalogError with all faults at once."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path}: can't be read: {error}; set CLAWBILL_CATALOG or pass --catalog") from None
    catalog = parse(text, name=str(path)).at(path.resolve().parent)
    return with_customers(catalog, catalog.folder / catalog.customers) if catalog.customers else catalog


# A run asks for the catalogue several times, and a daemon's sensors do so every minute: the same text is read once.
@lru_cache(maxsize=4)
def parse(text: str, name: str = "catalog.yaml") -> Catalog:
    """The checked catalogue in ``text``; ``name`` is what errors call it."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: Lines = {}
        data = _value(node, (), lines, name) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise CatalogError(f"{name}:{line}: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise CatalogError(f"{name}:{line}: {error.reason} (U+{error.character:04X}); remove it") from None
    except RecursionError:
        raise CatalogError(f"{name}:1: an alias (*name) stands inside its own anchor (&name); write it out") from None
    try:
        return Catalog.model_validate(data)
    except ValidationError as error:
        faults = sorted(_fault(lines, fault) for fault in error.errors(include_url=False))
        raise CatalogError("\n".join(f"{name}:{line}: {fault}" for line, fault in faults)) from None


# Where pydantic's own words don't say what to do.
_MESSAGES = {
    "extra_forbidden": "is no key that the catalogue knows here; mend its spelling, or remove it",
    "missing": "is missing; add it",
}


def _fault(lines: Lines, fault: ErrorDetails) -> tuple[int, str]:
    where: tuple[str | int, ...] = getattr(fault.get("ctx", {}).get("error"), "where", fault["loc"])
    # pydantic puts union tags and key markers into the path: the line is that of the longest prefix that exists.
    known: tuple[str | int, ...] = ()
    for part in where:
        if (*known, part) in lines:
            known = (*known, part)
    dotted = ".".join(str(part) for part in where if part != "[key]")
    message = _MESSAGES.get(fault["type"], fault["msg"].removeprefix("Value error, "))
    return lines.get(known, 1), f"{dotted}: {message}" if dotted else message


def _value(node: yaml.Node, where: tuple[str | int, ...], lines: Lines, name: str) -> Any:
    lines[where] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        _refuse_twins(node, name)
        yaml.constructor.SafeConstructor().flatten_mapping(node)
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            mapping[key] = _value(value_node, (*where, key), lines, name)
            lines[(*where, key)] = key_node.start_mark.line + 1
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*where, index), lines, name) for index, item in enumerate(node.value)]
    # Numbers with a point and dates stay text: a YAML float would lose digits of a price.
    if node.tag == "tag:yaml.org,2002:null":
        return None
    if node.tag == "tag:yaml.org,2002:bool":
        return yaml.constructor.SafeConstructor.bool_values[node.value.lower()]
    if node.tag == "tag:yaml.org,2002:int" and _WHOLE.fullmatch(node.value):
        return int(node.value)
    return node.value


def _refuse_twins(node: yaml.MappingNode, name: str) -> None:
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise CatalogError(f"{name}:{line}: a key must be a plain word, not a list or a mapping")
        if key_node.value in seen and key_node.value != "<<":
            raise CatalogError(
                f"{name}:{line}: {key_node.value!r} is there twice (first on line {seen[key_node.value]}); keep one"
            )
        seen[key_node.value] = line
