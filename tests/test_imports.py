"""The direction of imports: nodes -> unigs <- training, and what an import must not load."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent

# ComfyUI's modules. Any file of `nodes` may use the first group, which the host's own nodes are written with.
HOST_INTERFACE = {
    "comfy_api",
    "comfy_execution",
    "folder_paths",
    "latent_preview",
    "comfy.cli_args",
    "comfy.model_management",
    "comfy.sample",
    "comfy.samplers",
    "comfy.utils",
}
HOST = {"comfy", "comfy_api", "comfy_config", "comfy_execution", "comfy_extras", "execution", "folder_paths"}
HOST |= {"latent_preview", "node_helpers", "server"}
OURS = {"unigs", "nodes", "training", "demo", "tests", "benchmarks"}


def sources(folder: str) -> list[Path]:
    return sorted((REPO / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Every import in a file, inside functions too: `(as written, absolute name)`; relative ones begin with a dot."""
    package = path.relative_to(REPO).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, alias.name
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = package[: len(package) - node.level + 1]
                names = [module] if module else [alias.name for alias in node.names]
                for name in names:
                    yield "." * node.level + name, ".".join([*base, name])
            else:
                # `from comfy import sd` imports comfy.sd; nothing else here is split over packages like that.
                names = [alias.name for alias in node.names] if module == "comfy" else []
                yield from ((f"{module}.{name}", f"{module}.{name}") for name in names)
                yield from [] if names else [(module, module)]


def found(folder: str) -> list[tuple[Path, str, str]]:
    return [(path.relative_to(REPO), *names) for path in sources(folder) for names in imports(path)]


def within(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def test_the_engine_imports_neither_comfyui_nor_the_shells():
    wrong = [row for row in found("unigs") if within(row[2], (OURS - {"unigs"}) | HOST)]
    assert not wrong


def test_the_engine_imports_itself_relatively():
    # Inside ComfyUI it is `<pack>.unigs`; an absolute import would load a second copy or none.
    wrong = [row for row in found("unigs") if within(row[1], {"unigs"})]
    assert not wrong


def test_training_imports_the_engine_only():
    wrong = [row for row in found("training") if within(row[2], {"nodes", "demo", "tests", "benchmarks"} | HOST)]
    assert not wrong


def test_the_demo_leaves_comfyui_to_the_server():
    wrong = [row for row in found("demo") if within(row[2], {"nodes", "training", "tests"} | HOST)]
    assert not wrong


def test_nodes_import_ours_relatively_and_only_the_engine():
    rows = found("nodes")
    assert not [row for row in rows if within(row[1], OURS)]
    assert not [row for row in rows if row[1].startswith(".") and not within(row[2], {"nodes", "unigs"})]


def test_only_native_touches_the_internals_of_comfyui():
    wrong = [
        row
        for row in found("nodes")
        if row[0].name != "native.py" and within(row[2], HOST) and not within(row[2], HOST_INTERFACE)
    ]
    assert not wrong


def test_the_root_imports_nothing_before_comfyui_asks():
    tree = ast.parse((REPO / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


def run(code: str, tmp_path: Path) -> str:
    """Standard output of a fresh interpreter that finds this repository's packages, and runs outside it."""
    environment = {"PYTHONPATH": str(REPO), "PATH": "", "SYSTEMROOT": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEAVY = ("torch", "diffusers", "transformers", "comfy", "comfy_api", "training", "scipy", "sklearn", "matplotlib")


def loaded(code: str, tmp_path: Path) -> set[str]:
    """Which of the heavy modules a fresh interpreter has loaded after running `code`."""
    return set(run(f"{code}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])", tmp_path).split())


def test_importing_the_engine_is_cheap(tmp_path: Path):
    assert loaded("import unigs", tmp_path) == set()


@pytest.mark.parametrize(
    "code",
    [
        "unigs.Task.parse('entity')",
        "unigs.LocationAwarePalette()",
        "unigs.coarse_mask([[1, 1, 9, 9]], (16, 16))",
        "unigs.decode_colormap(unigs.LocationAwarePalette().encode(numpy.ones((1, 8, 8), bool)))",
    ],
)
def test_masks_and_colormaps_need_no_torch(code: str, tmp_path: Path):
    assert loaded(f"import numpy, unigs\n{code}", tmp_path) == set()


def test_public_names_are_listed_and_an_unknown_one_is_an_attribute_error(tmp_path: Path):
    code = "import unigs; print(set(unigs.__all__) <= set(dir(unigs)), hasattr(unigs, 'nothing_of_this_name'))"
    out = run(code, tmp_path)
    assert out == "True False"


def test_the_pack_can_be_imported_without_comfyui(tmp_path: Path):
    code = f"""
import importlib.util, inspect, sys
spec = importlib.util.spec_from_file_location("a pack-name", {str(REPO / "__init__.py")!r})
pack = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = pack
spec.loader.exec_module(pack)
# A pack that exports NODE_CLASS_MAPPINGS is never asked for its comfy_entrypoint.
print(inspect.iscoroutinefunction(pack.comfy_entrypoint), hasattr(pack, "NODE_CLASS_MAPPINGS"))
print([name for name in sys.modules if name.startswith("a pack-name.")])
"""
    assert run(code, tmp_path).splitlines() == ["True False", "[]"]
