"""`python -m demo.requirements [extra ...]`: what the project needs, one requirement a line.

Read from pyproject.toml, so that the set-up of demo and tests has no list of its own to keep in step.
"""

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib  # every environment that this runs in has pip


def requirements(extras: list[str]) -> list[str]:
    """The dependencies and those of the extras, extras of the project itself followed. KeyError for an unknown one."""
    pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    found = list(project["dependencies"])
    todo = list(extras)
    while todo:
        for requirement in project["optional-dependencies"][todo.pop()]:
            own = re.fullmatch(rf"{project['name']}\[([\w, -]+)\]", requirement)
            if own:
                todo += [extra.strip() for extra in own[1].split(",")]
            else:
                found.append(requirement)
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
