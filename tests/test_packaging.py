"""What the project declares: one version, requirements that replace nothing in a ComfyUI, every import covered."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

import unigs
from demo.artwork import banner, icon
from demo.requirements import requirements, tomllib

REPO = Path(__file__).resolve().parent.parent
IMPORT_NAMES = {"pillow": "PIL", "scikit-image": "skimage", "scikit-learn": "sklearn", "pyyaml": "yaml"}


def lines(path: str) -> list[Requirement]:
    text = (REPO / path).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in text if line.strip() and not line.startswith("#")]


def third_party_imports(folder: str) -> set[str]:
    names = set()
    for path in (REPO / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"unigs", "training"}


def imported_by_nodes() -> set[str]:
    """Third-party packages that using the nodes loads: their imports, and those of the engine at module level."""
    names: set[str] = set()
    todo, done = sorted((REPO / "nodes").glob("*.py")), set()
    while todo:
        path = todo.pop()
        done.add(path)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # The engine imports what only the pipeline needs inside the functions that need it.
        for node in ast.walk(tree) if path.parent.name == "nodes" else tree.body:
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add((node.module or "").split(".")[0])
            elif isinstance(node, ast.ImportFrom):
                target = path.parents[node.level - 1].joinpath(*(node.module or "").split(".")).with_suffix(".py")
                if target.is_file() and target not in done:
                    todo.append(target)
    return names - set(sys.stdlib_module_names)


def import_names(found: list[Requirement]) -> set[str]:
    return {IMPORT_NAMES.get(one.name, one.name) for one in found}


def test_the_version_is_the_same_everywhere():
    pyproject = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.+?)"', pyproject, re.MULTILINE)[1] == unigs.__version__
    citation = (REPO / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == unigs.__version__
    assert f"## [{unigs.__version__}]" in (REPO / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("source", ["requirements.txt", "pyproject.toml"])
def test_runtime_requirements_leave_a_host_as_it_is(source: str):
    found = lines(source) if source.endswith(".txt") else [Requirement(line) for line in requirements([])]
    assert {operator.operator for one in found for operator in one.specifier} <= {">="}
    # torch and its companions are built for one hardware; bezier needs a newer numpy than many hosts have
    assert not {one.name for one in found} & {"torch", "torchvision", "torchaudio", "bezier", "accelerate", "xformers"}


def test_nodes_need_nothing_that_the_library_does_not():
    assert set(map(str, lines("requirements.txt"))) <= set(requirements([]))


def test_nodes_import_only_what_requirements_txt_brings():
    host = {"torch", "comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview"}
    assert imported_by_nodes() <= import_names(lines("requirements.txt")) | host


@pytest.mark.parametrize("folder, extras", [("unigs", ["curves"]), ("training", ["train", "parquet", "evaluate"])])
def test_every_import_is_declared(folder: str, extras: list[str]):
    declared = import_names([Requirement(line) for line in requirements(extras)])
    by_everyone_himself = {"torch", "bitsandbytes"}  # builds for a GPU, which no installer must choose
    assert third_party_imports(folder) <= declared | by_everyone_himself


def test_an_unknown_extra_is_an_error():
    with pytest.raises(KeyError, match="nonsense"):
        requirements(["nonsense"])


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize(("publisher", "expected"), [({}, "some-owner"), ({"PUBLISHER_ID": "somebody"}, "somebody")])
def test_what_the_registry_is_told_when_a_version_is_published(tmp_path, publisher, expected):
    (tmp_path / ".github").mkdir()
    for file in ("pyproject.toml", ".github/publishing.sh"):
        shutil.copy(REPO / file, tmp_path / file)
    named = {"GITHUB_REPOSITORY": "some-owner/some-name", "GITHUB_REF_NAME": "v1.2.3", "PATH": os.environ["PATH"]}
    subprocess.run([tmp_path / ".github" / "publishing.sh"], env={**named, **publisher}, check=True)
    before = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    after = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))
    assert after["project"].pop("urls") == {
        "Repository": "https://github.com/some-owner/some-name",
        "Documentation": "https://github.com/some-owner/some-name#readme",
        "Issues": "https://github.com/some-owner/some-name/issues",
    }
    docs = "https://raw.githubusercontent.com/some-owner/some-name/v1.2.3/docs"
    assert after["tool"]["comfy"] == {
        "PublisherId": expected,
        "DisplayName": "UniGS",
        "Icon": f"{docs}/icon.png",
        "Banner": f"{docs}/banner.png",
        "requires-comfyui": ">=0.3.75",
        "Models": [],
    }
    assert {**after, "tool": {**after["tool"], "comfy": before["tool"]["comfy"]}} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".github", "pyproject.toml"]


@pytest.mark.parametrize("draw", [icon, banner])
def test_icon_and_banner_are_what_their_command_draws_and_the_registry_takes(draw):
    """Icons up to 800 x 400 pixels, banners of 21:9."""
    with Image.open(REPO / "docs" / f"{draw.__name__}.png") as file:
        width, height = file.size
        assert (width == height <= 400) if draw is icon else (width * 9 == height * 21)
        drawn = draw()
        assert file.mode == drawn.mode and file.size == drawn.size
        different = (np.asarray(file) != np.asarray(drawn)).any(axis=-1)
    assert different.mean() < 0.05  # letters and edges: another Pillow may round otherwise


def test_the_archive_of_the_registry_holds_all_that_the_nodes_need():
    left_out = (REPO / ".comfyignore").read_text(encoding="utf-8").splitlines()
    left_out = {line.strip("/") for line in left_out if not line.startswith("#")}
    needed = {"__init__.py", "nodes", "unigs", "web", "locales", "workflows", "subgraphs", "pyproject.toml"}
    needed |= {"requirements.txt", "README.md", "LICENSE", "NOTICE", "CHANGELOG.md", "docs", "training"}
    assert not left_out & needed
    assert all((REPO / one).exists() for one in left_out | needed)


def test_the_wheel_holds_every_file_of_the_engine():
    declared = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = ["*.py", *declared["package-data"]["unigs"]]
    packed = {path for pattern in patterns for path in (REPO / "unigs").glob(pattern)}
    listed = subprocess.run(["git", "ls-files", "unigs"], cwd=REPO, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert declared["packages"] == ["unigs"]
    assert {REPO / name for name in listed.stdout.splitlines()} <= packed
    assert REPO / "unigs" / "gallery_scenes" / "scenes.json" in packed
