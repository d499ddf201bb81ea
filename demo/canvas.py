"""Writes graphs as ComfyUI's frontend saves them: workflow templates, and blueprints of sub-graphs.

What inputs and outputs a node has is read from the server, so a graph that is written again knows the new ones.
"""

import uuid
from dataclasses import dataclass, field
from typing import Any

from .workflows import is_widget, settings_of, widgets_after

SUBGRAPH_INPUTS, SUBGRAPH_OUTPUTS = -10, -20  # ids of the two sides of a sub-graph

# Pixels. A node's position is that of its body; the title lies above.
TITLE, ROW, WIDGET, TEXT, PICTURE = 30, 20, 26, 90, 240
GAP = 30
WIDTHS = {"UniGSSampler": 350, "UniGSCoarseMaskFromBox": 360, "UniGSDichotomyDecode": 350, "UniGSEntityMaskSplit": 350}
WIDTH, PICTURE_WIDTH = 330, 260
SHOWS_PICTURES = {"LoadImage", "PreviewImage", "MaskPreview", "SaveImage"}
SHOWS_PICTURES |= {"UniGSSampler", "UniGSCoarseMaskFromBox", "UniGSSaveEntities"}
COLORS = {
    "MarkdownNote": ("#432", "#653"),
    "UniGSLoader": ("#223", "#335"),
    "UniGSSampler": ("#223", "#335"),
    **dict.fromkeys(
        ("UniGSCoarseMaskFromBox", "UniGSColormapEncode", "UniGSDichotomyDecode", "UniGSEntityMaskSplit"),
        ("#232", "#353"),
    ),
}


@dataclass(frozen=True)
class Output:
    """An output of a node, or an input of the sub-graph around it."""

    node: int
    slot: int
    type: str


@dataclass
class Node:
    """A node on a canvas; `node["masks"]` is its output of this name.

    Attributes:
        id: from 1 on.
        kind: its class at the server.
        title: one of its own, or empty.
        given: input -> a value, or an `Output`.
        size: width and height in pixels.
        declared: input -> what the server says of it; required ones first.
        outputs: names and types, in their order.
        pos: where it stands.
    """

    id: int
    kind: str
    title: str
    given: dict[str, Any]
    declared: dict[str, list[Any]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    outputs: list[tuple[str, str]] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    pos: tuple[int, int] = (0, 0)

    def __getitem__(self, name: str) -> Output:
        slot = [called for called, _ in self.outputs].index(name)
        return Output(self.id, slot, self.outputs[slot][1])

    def wide(self, pixels: int) -> "Node":
        """The node itself, of another width than is usual for its kind."""
        self.size = (pixels, self.size[1])
        return self

    def sockets(self) -> list[str]:
        """The inputs in the frontend's order: those without a widget come first."""
        return sorted(self.declared, key=lambda name: is_widget(self.declared[name]))


class Canvas:
    """A graph in the making: `add` nodes, `arrange` them in columns, then take it as `template` or `blueprint`.

    Args:
        name: of the file; the identifier of the graph follows from it.
        object_info: what the server says of its nodes (`Client.object_info`).
    """

    def __init__(self, name: str, object_info: dict[str, Any]):
        self.name = name
        self.object_info = object_info
        self.nodes: list[Node] = []
        self.inputs: list[tuple[str, str]] = []  # of the sub-graph: name and type
        self.outputs: list[tuple[str, Output]] = []

    def add(self, kind: str, title: str = "", /, **given: Any) -> Node:
        """A new node.

        Args:
            given: input -> a value, or an output of another node; inputs that are not given have their defaults.

        Raises ValueError for a node or an input that the server lacks, or for an input of another type than its output.
        """
        if kind not in self.object_info:
            raise ValueError(f"{self.name}: the server has no node {kind!r}")
        info = self.object_info[kind]
        declared = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        for name, value in given.items():
            if name not in declared:
                raise ValueError(f"{self.name}: {kind} has no input {name!r}, it has {', '.join(declared)}")
            if isinstance(value, Output) and value.type != _type_of(declared[name]):
                raise ValueError(f"{self.name}: {kind}.{name} is {declared[name][0]}, it was given {value.type}")
        node = Node(
            len(self.nodes) + 1,
            kind,
            title,
            given,
            declared,
            frozenset(info["input"].get("optional", {})),
            list(zip(info["output_name"], info["output"], strict=True)),
        )
        pictures = kind in SHOWS_PICTURES
        usual = PICTURE_WIDTH if pictures and not node.outputs else WIDTHS.get(kind, WIDTH)
        node.size = (usual, _height(node) + PICTURE * pictures)
        self.nodes.append(node)
        return node

    def note(self, text: str, height: int) -> Node:
        """A note in Markdown, called "Read me"."""
        node = Node(len(self.nodes) + 1, "MarkdownNote", "Read me", {"": text}, size=(WIDTH, height))
        self.nodes.append(node)
        return node

    def input(self, name: str, type: str) -> Output:
        """A new input of the sub-graph, to be given to nodes."""
        self.inputs.append((name, type))
        return self._ends()[-1]

    def output(self, name: str, source: Output) -> None:
        """A new output of the sub-graph."""
        self.outputs.append((name, source))

    def arrange(self, *columns: list[Node]) -> None:
        """Puts the columns side by side, the nodes of each below each other; no two can overlap.

        Raises ValueError if a node is left out.
        """
        if missing := {node.id for node in self.nodes} - {node.id for column in columns for node in column}:
            raise ValueError(f"{self.name}: the nodes {sorted(missing)} have no place")
        x = 0
        for column in columns:
            y = 0
            for node in column:
                node.pos = (x, y)
                y += node.size[1] + TITLE + GAP
            x += max(node.size[0] for node in column) + GAP

    def template(self) -> dict[str, Any]:
        """The workflow, in format 0.4."""
        links = self._links()
        return {
            "id": self._identifier(),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(links),
            "nodes": [self._written(node, links) for node in self.nodes],
            "links": [
                [number, source.node, source.slot, target, slot, source.type]
                for number, (source, target, slot) in enumerate(links, 1)
            ],
            "groups": [],
            "config": {},
            "extra": {"ds": {"scale": 0.8, "offset": [80, 80]}},
            "version": 0.4,
        }

    def blueprint(self, title: str, description: str) -> dict[str, Any]:
        """A workflow of one node, in which the graph is a sub-graph."""
        links = self._links()
        left, right = -2 * GAP - 120, max(node.pos[0] + node.size[0] for node in self.nodes) + 2 * GAP
        sides = [
            ("inputNode", SUBGRAPH_INPUTS, left, self.inputs),
            ("outputNode", SUBGRAPH_OUTPUTS, right, self.outputs),
        ]
        numbered = list(enumerate(links, 1))
        leaving = [[n for n, (source, _, _) in numbered if source == end] for end in self._ends()]
        arriving = [
            [n for n, (_, target, place) in numbered if (target, place) == (SUBGRAPH_OUTPUTS, slot)]
            for slot in range(len(self.outputs))
        ]
        widgets = self._outer_widgets()
        subgraph = {
            "id": self._identifier(),
            "version": 1,
            "state": {
                "lastGroupId": 0,
                "lastNodeId": len(self.nodes),
                "lastLinkId": len(links),
                "lastRerouteId": 0,
            },
            "revision": 0,
            "config": {},
            "name": title,
            **{side: {"id": id, "bounding": [x, 0, 120, 40 + ROW * len(ends)]} for side, id, x, ends in sides},
            "inputs": [
                {"id": self._identifier(f"in/{name}"), "name": name, "type": type, "linkIds": leaving[slot]}
                for slot, (name, type) in enumerate(self.inputs)
            ],
            "outputs": [
                {
                    "id": self._identifier(f"out/{name}"),
                    "name": name,
                    "type": source.type,
                    "linkIds": arriving[slot],
                }
                for slot, (name, source) in enumerate(self.outputs)
            ],
            "widgets": [],
            "nodes": [self._written(node, links) for node in self.nodes],
            "groups": [],
            "links": [
                {
                    "id": number,
                    "origin_id": source.node,
                    "origin_slot": source.slot,
                    "target_id": target,
                    "target_slot": slot,
                    "type": source.type,
                }
                for number, (source, target, slot) in numbered
            ],
            "extra": {},
        }
        node = {
            "id": 1,
            "type": self._identifier(),
            "pos": [0, 0],
            "size": [WIDTH, ROW * max(len(self.inputs), len(self.outputs)) + TEXT * len(widgets)],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [
                {"name": name, "type": type, **({"widget": {"name": name}} if name in widgets else {}), "link": None}
                for name, type in self.inputs
            ],
            "outputs": [{"name": name, "type": source.type, "links": []} for name, source in self.outputs],
            "title": title,
            "properties": {"proxyWidgets": [["-1", name] for name in widgets]},
            "widgets_values": [],
        }
        return {
            "id": self._identifier("outside"),
            "revision": 0,
            "last_node_id": 1,
            "last_link_id": 0,
            "nodes": [node],
            "links": [],
            "version": 0.4,
            "definitions": {"subgraphs": [subgraph]},
            "extra": {"BlueprintDescription": description},
        }

    def _ends(self) -> list[Output]:
        """The inputs of the sub-graph, as outputs for the nodes in it."""
        return [Output(SUBGRAPH_INPUTS, slot, type) for slot, (_, type) in enumerate(self.inputs)]

    def _outer_widgets(self) -> list[str]:
        """The inputs of the sub-graph that lead to widgets."""
        led = {
            value
            for node in self.nodes
            for name, value in node.given.items()
            if isinstance(value, Output) and is_widget(node.declared[name])
        }
        return [name for end, (name, _) in zip(self._ends(), self.inputs, strict=True) if end in led]

    def _identifier(self, part: str = "") -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(filter(None, ("unigs", self.name, part)))))

    def _links(self) -> list[tuple[Output, int, int]]:
        """(output, id of the node it leads to, place of the input there) of every link; the first has the number 1."""
        inside = [
            (node.given[name], node.id, slot)
            for node in self.nodes
            for slot, name in enumerate(node.sockets())
            if isinstance(node.given.get(name), Output)
        ]
        return inside + [(source, SUBGRAPH_OUTPUTS, slot) for slot, (_, source) in enumerate(self.outputs)]

    def _written(self, node: Node, links: list[tuple[Output, int, int]]) -> dict[str, Any]:
        """The node as the frontend saves it."""
        taken = {(target, slot): number for number, (_, target, slot) in enumerate(links, 1)}
        numbered = [(number, source) for number, (source, _, _) in enumerate(links, 1)]
        color, ground = COLORS.get(node.kind, (None, None))
        return {
            "id": node.id,
            "type": node.kind,
            "pos": list(node.pos),
            "size": list(node.size),
            "flags": {},
            "order": node.id - 1,
            "mode": 0,
            "inputs": [
                {
                    "name": name,
                    "type": _type_of(node.declared[name]),
                    **({"widget": {"name": name}} if is_widget(node.declared[name]) else {}),
                    "link": taken.get((node.id, slot)),
                    **({"shape": 7} if name in node.optional else {}),
                }
                for slot, name in enumerate(node.sockets())
            ],
            "outputs": [
                {
                    "name": name,
                    "type": type,
                    "links": [number for number, source in numbered if (source.node, source.slot) == (node.id, slot)],
                }
                for slot, (name, type) in enumerate(node.outputs)
            ],
            "properties": {} if node.kind == "MarkdownNote" else {"Node name for S&R": node.kind},
            "widgets_values": _widget_values(node),
            **({"title": node.title} if node.title else {}),
            **({"color": color, "bgcolor": ground} if color else {}),
        }


def _type_of(declared: list[Any]) -> str:
    return "COMBO" if isinstance(declared[0], list) else declared[0]


def _height(node: Node) -> int:
    """What the rows of a node need."""
    widgets = [declared for declared in node.declared.values() if is_widget(declared)]
    rows = max(len(node.declared) - len(widgets), len(node.outputs))
    texts = sum(settings_of(declared).get("multiline", False) for declared in widgets)
    below = sum(len(widgets_after(name, node.declared[name])) for name in node.declared)
    return 20 + ROW * rows + WIDGET * (len(widgets) - texts + below) + TEXT * texts


def _widget_values(node: Node) -> list[Any]:
    """What the frontend keeps of the widgets: a bare list in the order of the inputs."""
    if node.kind == "MarkdownNote":
        return [node.given[""]]
    values = []
    for name, declared in node.declared.items():
        if not is_widget(declared):
            continue
        value = node.given.get(name)
        if value is None or isinstance(value, Output):
            value = _default(declared)
        values += [value, *widgets_after(name, declared)]
    return values


def _default(declared: list[Any]) -> Any:
    options = settings_of(declared)
    if "default" in options:
        return options["default"]
    choices = declared[0] if isinstance(declared[0], list) else options.get("options")
    return choices[0] if choices else ""
