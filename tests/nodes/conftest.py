"""The node pack as ComfyUI sees it, a package whose root is this repository, but without ComfyUI."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parents[2]
PACKAGE = "unigs_pack_under_test"


@pytest.fixture(scope="session")
def pack() -> Callable[[str], ModuleType]:
    """`pack("nodes.types")` imports a module of the pack by its relative name."""
    spec = importlib.util.spec_from_file_location(PACKAGE, REPO / "__init__.py", submodule_search_locations=[str(REPO)])
    assert spec and spec.loader
    root = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = root
    spec.loader.exec_module(root)
    return lambda name: importlib.import_module(f"{PACKAGE}.{name}")
