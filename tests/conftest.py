"""The tiers: everything under tests/host needs a real ComfyUI, and is skipped with a reason where there is none."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from demo.comfyui import place_of, version_wanted

settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
settings.load_profile("no deadline")

HOST_TESTS = Path(__file__).resolve().parent / "host"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    there = "COMFYUI_PATH" in os.environ or place_of(version_wanted()).is_dir()
    for item in items:
        if HOST_TESTS in item.path.parents:
            item.add_marker(pytest.mark.host)
            if not there:
                item.add_marker(pytest.mark.skip(reason="no ComfyUI: `make setup` fetches one"))
