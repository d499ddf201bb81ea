"""The shipped workflows, as ComfyUI's frontend saves them, turned into prompts that its server runs.

One file a workflow serves the template browser, the demonstration and the tests.
"""

import json
from pathlib import Path
from typing import Any

from .client import Prompt

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"
INPUTS = WORKFLOWS / "inputs"
_WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
# Nodes of the frontend alone: the server never hears of them.
_NOTES = {"Note", "MarkdownNote"}


def names() -> list[str]:
    """Names of the shipped workflows, in the order of the template browser."""
    return sorted(path.stem for path in WORKFLOWS.glob("*.json"))


def read(name: str) -> dict[str, Any]:
    """The workflow `workflows/<name>.json` in the frontend's format."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def titles(workflow: dict[str, Any]) -> dict[str, str]:
    """Title -> id of every node that was given a title of its own."""
    return {node["title"]: str(node["id"]) for node in workflow["nodes"] if node.get("title")}


def node_titled(workflow: dict[str, Any], title: str) -> str:
    """Id of the node with this title."""
    return titles(workflow)[title]


def picture_names(workflow: dict[str, Any]) -> list[str]:
    """Names of the pictures that the workflow loads."""
    return [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "LoadImage"]


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> Prompt:
    """A workflow in the frontend's format as the prompt that the frontend would send.

    Args:
        workflow: format version 0.4, without sub-graphs, reroutes or muted nodes.
        object_info: what the server says of its nodes (`Client.object_info`).

    Raises ValueError for a node that the server lacks, and for widget values that do not fit its inputs.
    """
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt: Prompt = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in _NOTES:
            continue
        if kind not in object_info:
            raise ValueError(f"node {node['id']}: the server has no node {kind!r}")
        inputs = _widgets(node, object_info[kind]["input"])
        for socket in node.get("inputs", []):
            if socket.get("link") is not None:
                inputs[socket["name"]] = sources[socket["link"]]
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt


def settings_of(declared: list[Any]) -> dict[str, Any]:
    """The options of an input, as the server declares it: `[type, options]`, or the type alone."""
    return declared[1] if len(declared) > 1 else {}


def is_widget(declared: list[Any]) -> bool:
    """Whether an input is set on the node itself; it may be linked all the same."""
    kind = declared[0]
    return (isinstance(kind, list) or kind in _WIDGET_TYPES) and not settings_of(declared).get("forceInput")


def widgets_after(name: str, declared: list[Any]) -> list[str]:
    """Values of the widgets behind an input that are no inputs: what happens to a seed afterwards, an upload button."""
    settings = settings_of(declared)
    is_seed = settings.get("control_after_generate") or (declared[0] == "INT" and name in ("seed", "noise_seed"))
    return ["fixed"] * bool(is_seed) + ["image"] * bool(settings.get("image_upload"))


def _widgets(node: dict[str, Any], declared: dict[str, Any]) -> dict[str, Any]:
    """Input name -> value of the node's widgets, which a workflow stores as a bare list in the order of the inputs."""
    values = list(node.get("widgets_values", []))
    optional = declared.get("optional", {})
    found = {}
    try:
        for name, one in {**declared.get("required", {}), **optional}.items():
            if not is_widget(one):
                continue
            if not values and name in optional and "default" in settings_of(one):
                found[name] = settings_of(one)["default"]  # the node got this input after the workflow was saved
                continue
            found[name] = values.pop(0)
            for _ in widgets_after(name, one):
                values.pop(0)
    except IndexError:
        raise ValueError(
            f"node {node['id']} ({node['type']}): too few widget values {node['widgets_values']}"
        ) from None
    if values:
        raise ValueError(f"node {node['id']} ({node['type']}): widget values {values} are left over")
    return found
