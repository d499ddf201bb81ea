"""Translations: of every string, of nothing else, as ComfyUI serves them. English has no file: it is the schemas'."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from PIL import Image

from demo.comfyui import PACK_NAME, REPO

PAGES = REPO / "web" / "docs"
ZH = json.loads((REPO / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
HOST_NAMES = {
    "MODEL": "模型",
    "CLIP": "CLIP",
    "VAE": "VAE",
    "LATENT": "Latent",
    "SEGS": "SEGS",
}  # in the frontend's own Chinese


@pytest.fixture(scope="module")
def ours(object_info):
    return {name: node for name, node in object_info.items() if name.startswith("UniGS")}


def sentences(name: str) -> list[str]:
    """Every sentence of a node."""
    slots = [*ZH[name]["inputs"].values(), *ZH[name]["outputs"].values()]
    return [ZH[name]["description"], *(slot["tooltip"] for slot in slots)]


def shape(page: Path) -> list[str]:
    """The headings, rows, items and paragraphs of a page, in order."""
    kinds = []
    for paragraph in page.read_text(encoding="utf-8").split("\n\n"):
        begins = [re.match(r"#+ |\||- |", line)[0] for line in paragraph.splitlines()]
        kinds += [begin for begin in begins if begin] or ["text"]
    return kinds


def rows(page: Path, heading: str) -> set[str]:
    """The names in the first column of the table with this heading."""
    table = re.search(rf"^\| {heading} \|.*\n\|-.*\n((?:\|.*\n)+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {name for row in table[1].splitlines() for name in row.split("|")[1].strip().split("、")} if table else set()


def test_the_server_gives_the_translations_to_the_frontend(server):
    served = server.client.get("/i18n")
    assert served == {place.name: {"nodeDefs": ZH} for place in (REPO / "locales").iterdir()} == {"zh": served["zh"]}


def test_every_node_input_and_output_is_translated_and_nothing_else(ours):
    assert ZH.keys() == ours.keys()
    for name, node in ours.items():
        assert ZH[name].keys() == {"display_name", "description", "inputs", "outputs"}
        inputs = {one for kind in ("required", "optional") for one in node["input"].get(kind, {})}
        assert {one: slot.keys() for one, slot in ZH[name]["inputs"].items()} == {
            one: {"name", "tooltip"} for one in inputs
        }
        # An output that is called by its type has the frontend's own name of the type.
        assert {slot: found.keys() for slot, found in ZH[name]["outputs"].items()} == {
            str(slot): {"tooltip"} if called == kind else {"name", "tooltip"}
            for slot, (called, kind) in enumerate(zip(node["output_name"], node["output"], strict=True))
        }


@pytest.mark.parametrize("name", ZH)
def test_translations_are_chinese_and_hold_nothing_that_the_frontend_would_take_for_syntax(name):
    for sentence in sentences(name):
        assert re.search("[一-鿿]", sentence) and sentence.endswith("。")
    assert re.search("[一-鿿]", ZH[name]["display_name"] + ZH[name]["description"])
    assert not re.search(r"[{}@|]", json.dumps(list(walk(ZH[name])), ensure_ascii=False))


def walk(value: object) -> Iterator[str]:
    """Every string in nested dicts."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from walk(inner)
    else:
        yield str(value)


@pytest.mark.parametrize("name", ZH)
def test_tooltips_call_options_what_the_list_calls_them(ours, name):
    """The frontend does not translate options."""
    for one, (_, settings) in (
        item for kind in ("required", "optional") for item in ours[name]["input"].get(kind, {}).items()
    ):
        if one in ("task", "hold", "kind", "order", "box_format"):
            assert all(option in ZH[name]["inputs"][one]["tooltip"] for option in settings["options"])


def test_every_node_has_its_pages_and_there_are_no_others(ours):
    pages = {page.relative_to(PAGES).as_posix() for page in PAGES.rglob("*.md")}
    assert pages == {f"{name}.md" for name in ours} | {f"{name}/zh.md" for name in ours}


@pytest.mark.parametrize("name", ZH)
def test_every_page_shows_a_picture_that_the_server_has(server, name):
    """The frontend looks for a page's pictures beside the English pages, whichever language the page is in."""
    shown = [
        re.findall(r"!\[.+?\]\((.+?)\)", page.read_text("utf-8"))
        for page in (PAGES / f"{name}.md", PAGES / name / "zh.md")
    ]
    assert shown[0] and shown[0] == shown[1]
    for file in shown[0]:
        assert (PAGES / file).stat().st_size < 100_000
        with urlopen(f"{server.url}/extensions/{PACK_NAME}/docs/{file}", timeout=30) as answer:
            assert Image.open(io.BytesIO(answer.read())).width <= 1000


@pytest.mark.parametrize("name", ZH)
def test_pages_are_served_where_the_frontend_looks(server, ours, name):
    for page, title in ((f"{name}/zh.md", ZH[name]["display_name"]), (f"{name}.md", ours[name]["display_name"])):
        with urlopen(f"{server.url}/extensions/{PACK_NAME}/docs/{page}", timeout=30) as answer:
            text = answer.read().decode("utf-8")
        assert text == (PAGES / page).read_text(encoding="utf-8")
        assert text.startswith(f"# {title}\n")


@pytest.mark.parametrize("name", ZH)
def test_chinese_pages_say_what_the_english_ones_say(ours, name):
    english, chinese = PAGES / f"{name}.md", PAGES / name / "zh.md"
    assert shape(chinese) == shape(english)
    inputs = {slot["name"] for slot in ZH[name]["inputs"].values()}
    outputs = {slot.get("name") or HOST_NAMES[ours[name]["output"][int(i)]] for i, slot in ZH[name]["outputs"].items()}
    assert rows(chinese, "输入") == (inputs if rows(english, "input") else set())
    assert rows(chinese, "输出") == (outputs if rows(english, "output") else set())
