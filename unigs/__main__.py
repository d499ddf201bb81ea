"""The command line: `python -m unigs {demo,inpaint,synthesize,refer,segment,decode,convert}`.

Every picture gets a folder of its own with what the model painted (picture.png) and its colormap (colormap.png), where
a model is at work, one PNG for each entity (mask_001.png, white is the entity), all of them in one (labels.png, whose
pixels are their numbers), an overlay, entities.json (boxes, areas, scores, colours, COCO run-length codes) and
coco.json, the same as a COCO data set. Wrong input gives one line on standard error and the exit code 2.
"""

import argparse
import io
import json
import logging
import re
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

import numpy as np
from PIL import Image

from .boxes import Box, parse_boxes, prompt_of
from .checkpoints import PICKLES, Kind, bundled_model_dir, open_checkpoint
from .coarse_mask import check_boxes, coarse_mask
from .dichotomy import background_radius_of, decode_colormap, dichotomy
from .entities import Entities
from .palette import LocationAwarePalette
from .pictures import check_depth, upright
from .saving import save_entities, write_json
from .splitting import Criterion
from .tasks import WITH_STUFF, Task
from .visualize import contact_sheet, dichotomy_tree, overlay

if TYPE_CHECKING:  # torch and diffusers take seconds to load, and `--help` and `decode` need neither
    from .pipeline import UniGSPipeline

# The example pictures, their prompts and boxes: the templates for ComfyUI, in a checkout beside this package.
WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"
EXAMPLES = ("entity_segmentation", "multi_region_inpainting", "referring_segmentation", "synthesis")
OUTPUT = Path("unigs-output")
GALLERY = WORKFLOWS.parent / "docs" / "gallery"
# What not every run writes into the folder of a picture.
EXTRAS = ("picture", "colormap", "tree", "coarse_mask", "given_colormap", "given", "where")


class Painted(NamedTuple):
    """What the pipeline made of one picture, the settings it was decoded with, and the seconds it took."""

    picture: Image.Image
    colormap: Image.Image
    entities: Entities
    decoder: dict[str, Any]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, or 2 for wrong input, or 130 if interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for index in reversed(range(len(given) - 1)):  # a box that begins left of the picture is no option
        if given[index] == "--boxes" and re.match(r"-[\d.]", given[index + 1]):
            given[index : index + 2] = [f"--boxes={given[index + 1]}"]
    options = _parser().parse_args(given)
    for stream in (sys.stdout, sys.stderr):  # not every console can print the name of every file
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s")
    try:
        options.run(options)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "diffusers", "transformers"):
            raise
        print(f"unigs {options.command}: error: this needs {error.name}: `pip install {error.name}`", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"unigs {options.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def inpaint(options: argparse.Namespace) -> None:
    """Paint new entities into a region of each picture."""
    _run_on_pictures(Task.INPAINTING, options)


def refer(options: argparse.Namespace) -> None:
    """Find what the prompt names in each picture."""
    _run_on_pictures(Task.REFERRING, options)


def segment(options: argparse.Namespace) -> None:
    """Find every entity of each picture."""
    _run_on_pictures(Task.ENTITY, options)


def synthesize(options: argparse.Namespace) -> None:
    """Paint a picture for each colormap, or for one set of masks."""
    given = _named(options.colormap or [])
    masks = [_read_mask(path) for path in options.masks or []]
    if len({mask.size for mask in masks}) > 1:
        raise ValueError(f"the masks must have one size, got {sorted({mask.size for mask in masks})} (width, height)")
    _check_places(options, [*given, *(["masks"] if masks else [])], [*given.values(), *(options.masks or [])])
    pipe = _load_pipeline(options)
    limit, nearest = _limit(options, pipe), Image.Resampling.NEAREST
    colormaps = {name: _fit(_read_picture(path, "black"), limit, nearest) for name, path in given.items()}
    if masks:
        layout = [np.asarray(_fit(mask, limit, nearest)) > 127 for mask in masks]
        if lost := [str(path) for path, mask in zip(options.masks, layout, strict=True) if not mask.any()]:
            raise ValueError(f"{lost[0]!r} is too thin to be seen at {limit} pixels: give a larger --size, or 0")
        colormaps["masks"] = Image.fromarray(pipe.palette.encode(layout))
    for name, colormap in colormaps.items():
        painted = _call(pipe, Task.SYNTHESIS, options, colormap=colormap)
        _save(options, name, painted, _facts(Task.SYNTHESIS, options), {"given_colormap": colormap})


def decode(options: argparse.Namespace) -> None:
    """Decode colormaps into entities, without a model."""
    pictures = _named(options.pictures)
    _check_places(options, pictures, [*pictures.values(), *(options.image or [])])
    images = [_read_picture(path) for path in options.image or []]
    if options.snap and len(images) != len(options.pictures):
        raise ValueError(
            f"--snap {options.snap} needs the picture of each of the {len(options.pictures)} colormaps, got "
            f"{len(images)}: give --image once for each"
        )
    if images and not options.snap:
        raise ValueError("--image means nothing without --snap: give both, or neither")
    for index, (name, path) in enumerate(pictures.items()):
        colormap = _read_picture(path, "black")
        start = time.perf_counter()
        found = dichotomy(colormap, options.delta, options.criterion, options.palette, options.denoise)
        radius = background_radius_of(options.palette)
        given = options.keep_background, options.min_area, options.components, radius
        entities = found.entities(*given, images[index] if images else None, options.snap)
        seconds = time.perf_counter() - start
        _save_entities(options, name, colormap, path.name, entities, {"task": "decode", "source": str(path)}, seconds)
        dichotomy_tree(colormap, found=found, entities=entities).save(options.out / name / "tree.png")


def convert(options: argparse.Namespace) -> None:
    """Make an untrained UniGS of a Stable Diffusion inpainting model, or put a UniGS into one file or a folder.

    The result is one file if its name ends in .safetensors, else a pipeline folder.
    """
    from .pipeline import UniGSPipeline

    if options.result.suffix in PICKLES:
        raise ValueError(f"the result is a folder or a .safetensors file, got {str(options.result)!r}")
    _quiet_libraries()
    kind = open_checkpoint(options.model).kind
    load = UniGSPipeline.from_pretrained if kind is Kind.UNIGS else UniGSPipeline.from_inpainting
    pipe = load(options.model, torch_dtype=_dtype(options))
    save = pipe.save_single_file if options.result.suffix == ".safetensors" else pipe.save_pretrained
    save(options.result)
    print(f"{kind.value} {options.model} -> UniGS {options.result}")


def demo(options: argparse.Namespace) -> None:
    """All four tasks on the example pictures that come with the project, on one sheet; or the gallery."""
    if options.gallery is not None:
        return _gallery(options)
    examples = _examples()
    pipe = _load_pipeline(options)
    rows, captions = [], []
    for task, path, prompt, boxes in examples:
        picture = _fit(_read_picture(path), _limit(options, pipe))
        inputs: dict[str, Any] = {"image": picture}
        options.prompt, where = prompt, None
        if task is Task.SYNTHESIS:  # the layout of the example picture, as the model itself sees it
            found = _call(pipe, Task.ENTITY, options, image=picture)
            decoder = dict(found.decoder, image=picture, keep_background=False)
            things = decode_colormap(found.colormap, **decoder)
            where = Image.fromarray(pipe.palette.encode(things.masks))
            inputs = {"colormap": where}
        elif boxes:
            region = coarse_mask(boxes, (picture.height, picture.width), "curve", options.seed)
            inputs["coarse_mask"], where = region, Image.fromarray(region)
        painted = _call(pipe, task, options, **inputs)
        _save(options, task.value, painted, _facts(task, options), {"given": picture, "where": where})
        rows.append([picture, where, painted.picture, painted.colormap, overlay(painted.picture, painted.entities)])
        captions.append(f"{task.value}: {prompt}" if prompt else task.value)
    sheet = options.out / "contact_sheet.png"
    contact_sheet(rows, ["given", "where", "picture", "colormap", "entities"], captions).save(sheet)
    print(f"all of it on one sheet: {sheet}")


def _gallery(options: argparse.Namespace) -> None:
    if options.gallery == GALLERY and not WORKFLOWS.is_dir():
        raise ValueError(
            "outside a checkout of the project the gallery has no folder of its own: name one, like "
            "`unigs demo --gallery pictures`"
        )
    from .gallery import Model, make_gallery

    own = ("size", "delta", "min_area", "use_palette", "snap")
    if given := [name for name in own if getattr(options, name) is not None]:
        raise ValueError(f"--gallery shows the checkpoint's own settings: leave out --{given[0].replace('_', '-')}")
    if options.out != OUTPUT or options.tree or options.cutouts:
        raise ValueError("--gallery writes figures alone, to its own folder: leave out --out, --tree and --cutouts")
    model = Model(_load_pipeline(options), options.steps, options.guidance, options.seed)
    for path in make_gallery(model, options.gallery):
        print(path, flush=True)


def _run_on_pictures(task: Task, options: argparse.Namespace) -> None:
    pictures = _named(options.pictures)
    masks = getattr(options, "mask", None) or []
    if getattr(options, "shape", None) is not None and not options.boxes:
        raise ValueError(f"--shape {options.shape} is about boxes: give --boxes, or leave it out")
    if len(masks) not in (0, 1, len(pictures)):
        raise ValueError(f"expected one mask, or one for each of the {len(pictures)} pictures; got {len(masks)}")
    _check_places(options, pictures, [*pictures.values(), *masks])
    pipe = _load_pipeline(options)
    for index, (name, path) in enumerate(pictures.items()):
        original = _read_picture(path)
        picture = _fit(original, _limit(options, pipe))
        region = None
        if masks:
            mask = _read_mask(masks[index % len(masks)])
            if mask.size != original.size:
                raise ValueError(
                    f"the mask {masks[index % len(masks)]} has {mask.width} x {mask.height} pixels, "
                    f"the picture {path} {original.width} x {original.height} (width x height)"
                )
            white = Image.fromarray((np.asarray(mask) > 127).astype(np.float32))
            region = np.asarray(white.resize(picture.size, Image.Resampling.BOX)) > 0  # thin strokes stay
        elif getattr(options, "boxes", None):
            check_boxes(options.boxes, original.height, original.width)
            boxes = np.array(options.boxes) * np.tile(np.array(picture.size) / original.size, 2)
            region = coarse_mask(boxes, (picture.height, picture.width), options.shape or "curve", options.seed)
        painted = _call(pipe, task, options, image=picture, coarse_mask=region)
        where = None if region is None else Image.fromarray(region)
        _save(options, name, painted, {**_facts(task, options), "source": str(path)}, {"coarse_mask": where})


def _quiet_libraries() -> None:
    """What they tell is for people who write pipelines."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _dtype(options: argparse.Namespace) -> Any:
    import torch

    known = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "auto": "auto"}
    return known[options.dtype]


def _load_pipeline(options: argparse.Namespace) -> "UniGSPipeline":
    import torch

    from .pipeline import UniGSPipeline

    _quiet_libraries()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        pipe = UniGSPipeline.from_pretrained(options.checkpoint, torch_dtype=_dtype(options))
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {error}") from error


def _call(pipe: "UniGSPipeline", task: Task, options: argparse.Namespace, **inputs: Any) -> Painted:
    """One picture through the pipeline. The seed starts anew, whatever ran before."""
    import torch

    start = time.perf_counter()
    result = pipe(
        task,
        prompt=_prompt(task, options),
        negative_prompt=getattr(options, "negative", None),
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        ensemble=getattr(options, "ensemble", 1) if task.spec.segments else 1,
        delta=options.delta,
        min_area=options.min_area,
        use_palette=options.use_palette,
        snap=options.snap,
        generator=torch.Generator().manual_seed(options.seed),
        **inputs,
    )
    picture, colormap = cast(Image.Image, result.images[0]), cast(Image.Image, result.colormaps[0])
    seconds = time.perf_counter() - start
    given = options.delta, options.min_area, options.use_palette, options.snap
    decoder = pipe.decoder_settings(task, picture.width * picture.height, *given)
    return Painted(picture, colormap, result.entities[0], decoder, seconds)


def _limit(options: argparse.Namespace, pipe: "UniGSPipeline") -> int:
    """Longest side in pixels to work at; 0 for no limit."""
    return pipe.default_size if options.size is None else options.size


def _fit(picture: Image.Image, limit: int, method: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """The picture, shrunk if its longest side is above the limit."""
    scale = limit / max(picture.size)
    if not limit or scale >= 1:
        return picture
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), method)


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Paths by the name of the folder for their results; a name that occurs again gets a number."""
    named: dict[str, Path] = {}
    for path in paths:
        name, number = path.stem, 2
        while name in named:
            name, number = f"{path.stem}_{number}", number + 1
        _check_file(path)
        named[name] = path
    return named


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder: name the pictures in it")
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}")


def _open(path: Path) -> Image.Image:
    _check_file(path)
    try:
        with Image.open(path) as picture:
            picture.load()
            return upright(picture)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's for a damaged PNG
        raise ValueError(f"{str(path)!r} cannot be read as a picture: {error}") from error


def _read_picture(path: Path, ground: str = "white") -> Image.Image:
    """An RGB picture; where it is transparent, the ground shows."""
    picture = _open(path)
    check_depth(picture, repr(str(path)))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture)
    return picture.convert("RGB")


def _check_places(options: argparse.Namespace, names: Iterable[str], given: Iterable[Path]) -> None:
    """Raises ValueError for a given file that lies where results are written: it would be lost."""
    written = {(options.out / name).resolve() for name in names}
    for path in given:
        if path.resolve().parent in written:
            raise ValueError(f"{str(path)!r} lies in a folder that the results replace: give another --out, or move it")


def _read_mask(path: Path) -> Image.Image:
    mask = _read_picture(path, "black").convert("L")
    if not (np.asarray(mask) > 127).any():
        raise ValueError(f"the mask {str(path)!r} is empty: white marks the region")
    return mask


def _prompt(task: Task, options: argparse.Namespace) -> str | None:
    if task.spec.needs_prompt:
        return options.prompt
    return WITH_STUFF if getattr(options, "stuff", False) else None


def _facts(task: Task, options: argparse.Namespace) -> dict[str, Any]:
    facts = {"task": task.value, "prompt": _prompt(task, options), "seed": options.seed}
    return {**facts, "checkpoint": None if options.checkpoint is None else str(options.checkpoint)}


def _save(
    options: argparse.Namespace,
    name: str,
    painted: Painted,
    facts: dict[str, Any],
    given: dict[str, Image.Image | None],
) -> None:
    _save_entities(options, name, painted.picture, "picture.png", painted.entities, facts, painted.seconds)
    pictures = {"picture": painted.picture, "colormap": painted.colormap, **given}
    if options.tree:
        found = dichotomy(painted.colormap, painted.decoder["delta"], palette=painted.decoder["palette"])
        pictures["tree"] = dichotomy_tree(painted.colormap, found=found, entities=painted.entities)
    for kind, image in pictures.items():
        if image is not None:
            image.save(options.out / name / f"{kind}.png")


def _save_entities(
    options: argparse.Namespace,
    name: str,
    picture: Image.Image,
    file_name: str,
    entities: Entities,
    facts: dict[str, Any],
    seconds: float,
) -> None:
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in _written_before(folder):
        (folder / old).unlink(missing_ok=True)
    paths = save_entities(entities, picture, f"{folder}/", file_name, masks=True, cutouts=options.cutouts)
    data = {**facts, **entities.to_dict()}
    for kind in ("mask", "cutout"):
        for path, entity in zip(paths[kind], data["entities"], strict=False):  # one each, or none were asked for
            entity[kind] = Path(path).name
    write_json(folder / "entities.json", data)
    count = f"{len(entities)} entit{'y' if len(entities) == 1 else 'ies'}"
    print(f"{name}: {count} in {seconds:.2f} s -> {folder}", flush=True)


def _written_before(folder: Path) -> list[str]:
    """The names of files that an earlier run, which may have found more, or drawn more, wrote into this folder."""
    try:
        entities = json.loads((folder / "entities.json").read_text(encoding="utf-8"))["entities"]
        names = [entity[kind] for entity in entities for kind in ("mask", "cutout") if kind in entity]
        return [Path(name).name for name in names if Path(name).suffix == ".png"] + [f"{kind}.png" for kind in EXTRAS]
    except (OSError, ValueError, LookupError, TypeError):  # nothing of ours is there
        return []


def _examples() -> list[tuple[Task, Path, str, list[Box]]]:
    """Task, picture, prompt and boxes of an example for each task: those of the ComfyUI templates."""
    examples = []
    for file in (WORKFLOWS / f"{name}.json" for name in EXAMPLES):
        if not file.is_file():
            raise ValueError(
                f"the example pictures are not installed (looked in {WORKFLOWS}): run the demo from a checkout of the "
                "project, or try `unigs segment` on a picture of your own"
            )
        settings: dict[str, list[list[Any]]] = {}
        for node in json.loads(file.read_text(encoding="utf-8"))["nodes"]:
            settings.setdefault(node["type"], []).append(node.get("widgets_values"))
        # The template for synthesis makes its layout by segmenting a picture, in a sampler before the one it is about.
        task, prompt = max((values[:2] for values in settings["UniGSSampler"]), key=lambda v: v[0] != Task.ENTITY.value)
        boxes = parse_boxes(settings.get("UniGSCoarseMaskFromBox", [[""]])[0][0])
        picture = WORKFLOWS / "inputs" / settings["LoadImage"][0][0]
        examples.append((Task.parse(task), picture, prompt or prompt_of(boxes), [box for box, _ in boxes]))
    return examples


def _boxes(text: str) -> list[Box]:
    try:
        found = parse_boxes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not found or prompt_of(found):
        raise argparse.ArgumentTypeError(
            f"expected boxes like 'x1,y1,x2,y2;x1,y1,x2,y2' in pixels, their labels in --prompt; got {text!r}"
        )
    return [box for box, _ in found]


def _side(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of pixels, 0 for no limit; got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^63 - 1, got {text!r}")
    return int(text)


def _palette(text: str) -> LocationAwarePalette:
    """The default palette with a grid, or that of a checkpoint. Only its settings are read."""
    try:
        if text.isdecimal():
            return LocationAwarePalette(int(text))
        settings = open_checkpoint(bundled_model_dir() if text == "bundled" else text).settings
        return LocationAwarePalette.from_config(settings.get("palette") or {})
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(
            f"expected a grid like 11, a checkpoint or 'bundled', got {text!r}: {error}"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unigs",
        description="One diffusion model that paints pictures and the masks of their entities, and segments pictures.",
        epilog="`unigs COMMAND --help` tells the options of a command. Results go to one folder a picture.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument(
        "--out",
        type=Path,
        default=OUTPUT,
        metavar="DIR",
        help="folder for results (default: %(default)s)",
    )
    output.add_argument("--cutouts", action="store_true", help="also cut each entity out, transparent around it")
    model = argparse.ArgumentParser(add_help=False, parents=[output])
    model.add_argument("--tree", action="store_true", help="also draw how the colormap was split into entities")
    group = model.add_argument_group("model")
    group.add_argument(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="a UniGS pipeline folder or .safetensors file (default: the bundled model)",
    )
    group.add_argument(
        "--dtype",
        choices=("fp32", "fp16", "bf16"),
        default="fp32",
        help="precision of the model (default: %(default)s)",
    )
    group.add_argument(
        "--steps", type=int, metavar="N", help="denoising steps (default: the checkpoint's, for the task)"
    )
    group.add_argument(
        "--guidance",
        type=float,
        metavar="S",
        help="guidance scale, 1 is none (default: the checkpoint's, for the task)",
    )
    group.add_argument(
        "--delta",
        type=float,
        metavar="D",
        help="split the colormap while the mean distance of colours is above this (default: the checkpoint's)",
    )
    group.add_argument(
        "--min-area",
        type=int,
        metavar="PIXELS",
        help="smaller entities go to what surrounds them (default: the checkpoint's)",
    )
    group.add_argument(
        "--use-palette",
        action=argparse.BooleanOptionalAction,
        help="whether clusters nearest to one colour of the palette are one (default: the checkpoint's)",
    )
    group.add_argument(
        "--snap",
        type=int,
        metavar="PIXELS",
        help="borders move to edges of the picture by up to so much; 0: not at all (default: the checkpoint's)",
    )
    group.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the noise and of curves (default: 0)")
    group.add_argument(
        "--size",
        type=_side,
        metavar="PIXELS",
        help="shrink pictures whose longest side is above this; 0: never (default: what the checkpoint was trained on)",
    )
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: cuda where there is one)")
    voted = {"type": int, "default": 1, "metavar": "N"}
    voted_help = (
        "run this often with other noise, and let the runs (3 or more) vote on each pixel of the colormap (default: 1)"
    )
    words = {"required": True, "metavar": "TEXT"}
    shape_help = "what boxes become: a blob or a larger box (default: curve)"
    boxes_help = "regions in pixels of the picture, two corners each: 'x1,y1,x2,y2;x1,y1,x2,y2'"
    mask_help = "picture of the region, white inside; for several pictures, one for all or one each in turn"

    def add(run: Any, summary: str, example: str, parent: argparse.ArgumentParser = model) -> argparse.ArgumentParser:
        name = run.__name__
        epilog = f"example: unigs {name} {example}"
        command = commands.add_parser(name, parents=[parent], help=summary, description=run.__doc__, epilog=epilog)
        command.set_defaults(run=run)
        return command

    command = add(
        demo, "all four tasks on the example pictures, on one contact sheet; or the gallery", "--out pictures"
    )
    command.add_argument(
        "--gallery",
        nargs="?",
        type=Path,
        const=GALLERY,
        metavar="DIR",
        help="instead, run every task on 24 held-out scenes and write figures of the best and the worst to this folder "
        "(in a checkout: docs/gallery if none is named)",
    )

    command = add(
        inpaint,
        "paint new entities into regions of a picture",
        "photo.png --prompt 'dog and cat' --boxes '20,30,70,90;80,40,120,99'",
    )
    command.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    command.add_argument("--prompt", help="what to paint, from left to right: 'dog and cat'", **words)
    command.add_argument("--negative", metavar="TEXT", help="what guidance leads away from")
    region = command.add_mutually_exclusive_group(required=True)
    region.add_argument("--boxes", type=_boxes, metavar="BOXES", help=boxes_help)
    region.add_argument("--mask", action="append", type=Path, metavar="FILE", help=mask_help)
    command.add_argument("--shape", choices=("curve", "box"), help=shape_help)

    command = add(
        synthesize, "paint a picture from a layout of entities", "--prompt 'dog and cat' --masks dog.png cat.png"
    )
    command.add_argument("--prompt", help="what the entities are, from left to right: 'dog and cat'", **words)
    command.add_argument("--negative", metavar="TEXT", help="what guidance leads away from")
    layout = command.add_mutually_exclusive_group(required=True)
    layout.add_argument("--masks", nargs="+", type=Path, metavar="FILE", help="one mask an entity, white inside")
    layout.add_argument(
        "--colormap", nargs="+", type=Path, metavar="FILE", help="in colours of the checkpoint's palette"
    )

    command = add(refer, "find what a text names", "photo.png --prompt dog")
    command.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    command.add_argument("--prompt", help="what to find: 'dog', or 'dog and cat'", **words)
    region = command.add_mutually_exclusive_group()
    region.add_argument("--boxes", type=_boxes, metavar="BOXES", help=f"look only near these {boxes_help}")
    region.add_argument("--mask", action="append", type=Path, metavar="FILE", help=f"look only here: {mask_help}")
    command.add_argument("--shape", choices=("curve", "box"), help=shape_help)
    command.add_argument("--ensemble", help=voted_help, **voted)

    command = add(segment, "find every entity", "photo.png another.png --out found")
    command.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    command.add_argument(
        "--stuff",
        action="store_true",
        help="ask for sky, ground and the like too; for checkpoints trained to be asked, as the bundled one was",
    )
    command.add_argument("--ensemble", help=voted_help, **voted)

    command = add(decode, "decode a colormap into entities, without a model", "colormap.png", output)
    command.add_argument("pictures", nargs="+", type=Path, metavar="COLORMAP")
    command.add_argument("--keep-background", action="store_true", help="black is an entity too")
    command.add_argument(
        "--delta",
        type=float,
        default=10.0,
        metavar="D",
        help="split while the mean distance is above this (default: 10)",
    )
    command.add_argument(
        "--min-area",
        type=int,
        default=0,
        metavar="PIXELS",
        help="smaller entities go to what surrounds them (default: 0)",
    )
    command.add_argument(
        "--criterion",
        choices=get_args(Criterion),
        default="mean",
        help="what is compared with delta: the mean distance, or the mean squared one; 'nearest' splits nothing and "
        "takes the nearest colour of the palette (default: %(default)s)",
    )
    command.add_argument(
        "--palette",
        type=_palette,
        metavar="GRID|PATH",
        help="the colours that the map was painted with: a grid like 11, a checkpoint, or 'bundled' (default: "
        "any colours)",
    )
    command.add_argument(
        "--components", action="store_true", help="parts of one colour that lie apart are two entities"
    )
    command.add_argument(
        "--no-denoise", dest="denoise", action="store_false", help="the plain dichotomy: nothing is done about noise"
    )
    command.add_argument(
        "--snap",
        type=int,
        default=0,
        metavar="PIXELS",
        help="borders move to edges of the picture, --image, by up to so much (default: 0)",
    )
    command.add_argument(
        "--image",
        action="append",
        type=Path,
        metavar="FILE",
        help="with --snap: the picture that the colormap belongs to, once for each colormap",
    )

    command = add(
        convert,
        "widen a Stable Diffusion inpainting model to UniGS, or put a UniGS into one file",
        "sd-v1-5-inpainting.safetensors unigs-untrained.safetensors",
        argparse.ArgumentParser(add_help=False),
    )
    command.add_argument("model", type=Path, metavar="MODEL", help="a pipeline folder or a .safetensors file")
    command.add_argument("result", type=Path, metavar="RESULT", help="a folder, or a name that ends in .safetensors")
    command.add_argument(
        "--dtype",
        choices=("auto", "fp32", "fp16", "bf16"),
        default="auto",
        help="precision of the result; auto: as it is (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
