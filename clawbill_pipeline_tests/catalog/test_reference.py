"""docs/catalogue.md against the models: every key is there with an example that is accepted, and defaults are true."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from clawbill_pipeline.catalog import Catalog, parse

DOC = Path(__file__).parents[2] / "docs" / "catalogue.md"
BLOCKS = re.findall(r"^```(yaml[^\n]*)\n(.*?)^```", DOC.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
WHOLE = next(text for kind, text in BLOCKS if kind == "yaml")
PRICES = [text for kind, text in BLOCKS if kind == "yaml price"]

Path_ = tuple[str | int, ...]


def with_price(text: str) -> str:
    """A catalogue whose only price is ``text``."""
    dimensions = "band" if "time_of_use" in text else "provider, model"
    indented = "".join(f"              {line}\n" for line in text.splitlines())
    return (
        "start: 2026-01-01T00:00:00Z\n"
        f"services: {{compute: {{unit: second, dimensions: [{dimensions}]}}}}\n"
        "rate_cards:\n  c:\n    currency: USD\n    versions:\n"
        f"      - effective_from: 2026-01-01T00:00:00Z\n        prices:\n          compute:\n{indented}"
    )


DOCUMENTS = [WHOLE, *map(with_price, PRICES)]


def models(value: object, path: Path_ = ()) -> Iterator[tuple[BaseModel, Path_]]:
    """All models in ``value``, each with its path in the YAML."""
    if isinstance(value, BaseModel):
        yield value, path
        for name, field in type(value).model_fields.items():
            yield from models(getattr(value, name), (*path, field.alias or name))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from models(item, (*path, key))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from models(item, (*path, index))


def reachable(annotation: Any, found: set[type[BaseModel]]) -> set[type[BaseModel]]:
    """All model classes that ``annotation`` speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in found:
        found.add(annotation)
        for field in annotation.model_fields.values():
            reachable(field.annotation, found)
    for part in get_args(annotation):
        reachable(part, found)
    return found


def owner(model: type[BaseModel], field: str) -> tuple[str, str]:
    """The class that brings ``field`` in: a key that many inherit is explained once."""
    return next(base.__name__ for base in model.__mro__ if field in inspect.get_annotations(base)), field


def written(text: str) -> dict[Path_, str]:
    """Path of every key that stands first on its line, with that line."""
    lines = text.splitlines()
    found: dict[Path_, str] = {}

    def visit(node: yaml.Node, path: Path_) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                line = lines[key.start_mark.line]
                if re.match(r"[ -]*$", line[: key.start_mark.column]):
                    found[(*path, key.value)] = line
                visit(value, (*path, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                visit(item, (*path, index))

    visit(yaml.compose(text, Loader=yaml.SafeLoader), ())
    return found


def test_every_example_is_accepted():
    assert len(PRICES) >= 11
    for document in DOCUMENTS:
        parse(document, name="docs/catalogue.md")


def test_every_key_has_an_example():
    shown = {
        owner(type(model), field)
        for document in DOCUMENTS
        for model, _ in models(parse(document))
        for field in model.model_fields_set
    }
    every = {owner(model, field) for model in reachable(Catalog, set()) for field in model.model_fields}
    events = {("Percentage", key) for key in ("fixed_per_event", "free_events", "min_per_event", "max_per_event")}
    # multiply_by excludes divide_by, whose comment names it; what is by the event is refused, and said in the text.
    assert every - shown == {("Conversion", "multiply_by"), *events}
    assert all(f"`{key}`" in DOC.read_text(encoding="utf-8") for _, key in events)


@pytest.mark.parametrize("text", DOCUMENTS, ids=lambda text: text.splitlines()[-1 if "compute" in text else 0][:40])
def test_what_is_said_of_defaults_is_true(text: str):
    lines = written(text)
    for model, path in models(parse(text)):
        for name, field in type(model).model_fields.items():
            line = lines.get((*path, field.alias or name), "")
            comment = line.partition("#")[2].strip()
            where = ".".join(map(str, (*path, name)))
            if field.is_required() or name in ("model", "kind"):
                assert not comment.startswith("default"), f"{where} has no default"
            elif re.match(r"default(\.|$)", comment):
                default = field.get_default(call_default_factory=True)
                assert getattr(model, name) == default, f"the default of {where} is {default}"
            elif comment and not line.partition("#")[0].rstrip().endswith(":"):
                assert "default: " in comment, f"{where} has a default that its line doesn't tell"
