"""Checks that constraints.txt pins every dependency of pyproject.toml, to a version that pyproject.toml allows."""

import sys
import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parent.parent


def faults() -> list[str]:
    """One line a dependency that is not pinned, or pinned to what pyproject.toml forbids."""
    written = (line.partition("#")[0].strip() for line in (PROJECT / "constraints.txt").read_text().splitlines())
    pins = {canonicalize_name(pin.name): pin for pin in map(Requirement, filter(None, written))}
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    found = []
    for text in chain(project["dependencies"], *project["optional-dependencies"].values()):
        wanted = Requirement(text)
        if wanted.name == project["name"]:
            continue  # an extra that takes in another one
        pin = pins.get(canonicalize_name(wanted.name))
        versions = [spec.version for spec in pin.specifier if spec.operator == "=="] if pin else []
        if not versions:
            found.append(f"constraints.txt does not pin {wanted.name} to one version")
        elif not wanted.specifier.contains(versions[0], prereleases=True):
            found.append(f"constraints.txt pins {pin}, but pyproject.toml wants {wanted}")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(faults()) or None)
