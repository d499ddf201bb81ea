"""Measure a checkpoint: `python -m training.evaluate [CHECKPOINT] [--data FILE.toml] [--output FOLDER]`.

Without --data on held-out composed scenes. docs/evaluation.md tells every measure, and where the weights come from that
FID, LPIPS and CLIP score need. Numbers stand with their 95 % interval, by bootstrap over the pictures.
"""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from training.checks import one_line_errors
from training.config import from_table, parse_settings, read_toml
from training.datasets import Record, RecordSet
from training.datasets.pictures import BadPicture, BadPictures, TooManyBadPictures
from training.datasets.scenes import SPRITE_FOLDER, Scenes
from training.geometry import Geometry
from training.joint import Example, NothingToSee, make_example
from training.metrics import Measures
from training.perceptual import Networks, one_line, open_networks
from training.protocols import measure_entity, measure_inpainting, measure_referring, measure_synthesis
from training.questions import Model
from training.sources import SourceConfig, open_source
from training.validation import validation_grid
from unigs.pipeline import UniGSPipeline
from unigs.splitting import Criterion
from unigs.tasks import Task

SCENES = 512  # pictures of composed scenes, of which there is no end
SHEET_COLUMNS = 8  # examples of each task on a contact sheet


@dataclass
class EvaluateConfig:
    """What to measure."""

    checkpoint: Annotated[Path | None, tyro.conf.Positional] = None
    """folder of a saved pipeline, or a single .safetensors file; the bundled model if not given"""
    data: str = "scenes"
    """"scenes" for held-out composed scenes, or a TOML file: a table for each data set, or a training configuration,
    whose [data.validation.*] is taken. What a data set is measured on are its `tasks`"""
    tasks: tuple[Task, ...] = tuple(Task)
    """tasks to measure"""
    count: int | None = None
    """pictures of each data set, its first ones; all if not given, of scenes 512"""
    batch_size: int = 16
    """pictures at a time"""
    steps: int | None = None
    """denoising steps of every task; the checkpoint's own if not given"""
    short_side: int | None = None
    """resize pictures to this short side, in pixels, instead of to as many pixels as the checkpoint's own size has"""
    max_side: int | None = None
    """with --short-side: unless the long side would be longer than this"""
    criterion: Criterion = "mean"
    """of the decoder: what is compared with its delta, the "mean" distance of colours or the "mean_squared" one; or
    "nearest", the nearest colours of the palette without any splitting"""
    delta: float | None = None
    """of the decoder, see `unigs.decode_colormap`; the checkpoint's own for the task if not given"""
    min_area: int | None = None
    """of the decoder: entities of fewer pixels, at the size that the model gets, go to what surrounds them; the
    checkpoint's own if not given"""
    use_palette: bool | None = None
    """of the decoder: whether to go by the colours of the palette; the checkpoint's own for the task if not given"""
    snap: int | None = None
    """of the decoder: borders move to edges of the picture by up to so many pixels, at the size that the model gets;
    the checkpoint's own for the task if not given"""
    segmenter: Path | None = None
    """the checkpoint that looks at what is painted; the same one if not given"""
    inception_weights: Path | None = None
    """FID: weights-inception-2015-12-05-6726825d.pth of torch-fidelity"""
    lpips_weights: Path | None = None
    """LPIPS: alexnet-owt-7be5be79.pth of torchvision"""
    clip_model: Path | None = None
    """CLIP score: folder of a CLIP model as transformers saves it"""
    sprites: Path = SPRITE_FOLDER
    """folder of the sprites of --data scenes"""
    stuff: bool = False
    """ask the entity task for stuff too ("panoptic: all entities and stuff."), of a checkpoint that was trained to be
    asked; of composed scenes, where it is the sky and the ground, only that task is measured then"""
    seed: int = 0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """precision of the checkpoint's weights"""
    output: Path | None = None
    """folder for metrics.json, metrics.md and a contact sheet of each data set"""


@dataclass
class DataSet:
    """One that is measured on."""

    name: str
    records: RecordSet | Scenes
    tasks: list[Task]
    count: int
    bad_pictures: dict[str, str] = field(default_factory=dict)
    """of all tasks: which -> what was wrong"""


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    config = parse_settings(EvaluateConfig, argv, "training.evaluate", description=__doc__)
    # 1. Everything that may be wrong, before the first picture
    with one_line_errors():
        check(config)
        model = open_model(config.checkpoint, config)
        segmenter = model if config.segmenter is None else open_segmenter(config.segmenter, config)
        datasets = open_data(config, model.pipeline.default_size)
        check_use(config, datasets)
        networks = open_networks(
            config.inception_weights, config.lpips_weights, config.clip_model, torch.device(config.device)
        )
        if config.output is not None:
            config.output.mkdir(parents=True, exist_ok=True)

    # 2. Measure, and keep what is done if it is stopped
    results: dict[str, dict[Task, Measures]] = {dataset.name: {} for dataset in datasets}
    stopped, unexpected = "", None
    dataset, task = datasets[0], datasets[0].tasks[0]
    try:
        for dataset in datasets:
            for task in dataset.tasks:
                results[dataset.name][task] = measure(task, dataset, model, segmenter, networks, config)
            draw_sheet(dataset, model, config)
    except KeyboardInterrupt:
        stopped = f"stopped in {task.value} of {dataset.name}: what follows is what was done before"
    except TooManyBadPictures as error:
        stopped = f"stopped in {task.value} of {dataset.name}: {error}"
    except torch.OutOfMemoryError:
        stopped = f"stopped in {task.value} of {dataset.name}: out of memory, give a smaller --batch-size"
    except Exception as error:  # told below with its traceback, when what was done is kept
        stopped, unexpected = f"stopped in {task.value} of {dataset.name}: {type(error).__name__}: {error}", error

    # 3. Tell
    if stopped:
        print(stopped)
    table = markdown(results)
    print(table)
    if config.output is not None:
        report = {
            "settings": {key: _plain(value) for key, value in asdict(config).items()},
            "stopped": stopped or None,
            "results": {
                name: {task.value: {key: m.to_dict() for key, m in found.items()} for task, found in tasks.items()}
                for name, tasks in results.items()
            },
            "bad pictures": {dataset.name: dataset.bad_pictures for dataset in datasets if dataset.bad_pictures},
        }
        (config.output / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
        (config.output / "metrics.md").write_text(table)
    if unexpected is not None:
        raise unexpected
    if stopped:
        raise SystemExit(1)


def check(config: EvaluateConfig) -> None:
    """Raises ValueError for a setting that cannot be, or that means nothing beside the others."""
    for name, least in (
        ("count", 1),
        ("batch_size", 1),
        ("steps", 1),
        ("short_side", 1),
        ("max_side", 1),
        ("seed", 0),
        ("min_area", 0),
        ("snap", 0),
    ):
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"{_option(name)} must be at least {least}, got {value}")
    if config.delta is not None and not config.delta > 0:
        raise ValueError(f"--delta must be above 0, got {config.delta}")
    if not config.tasks:
        raise ValueError(f"--tasks is empty: name some of {', '.join(task.value for task in Task)}")
    if config.max_side is not None and config.short_side is None:
        raise ValueError(f"--max-side {config.max_side} means nothing without --short-side: give both")
    if config.max_side is not None and config.short_side is not None and config.max_side < config.short_side:
        raise ValueError(f"--max-side {config.max_side} must not be smaller than --short-side {config.short_side}")
    if config.data != "scenes" and config.sprites != SPRITE_FOLDER:
        raise ValueError("--sprites means nothing beside --data FILE.toml: give `sprites` in the table of the data set")
    if config.output is not None and config.output.exists() and not config.output.is_dir():
        raise ValueError(f"--output {config.output} is a file: give a folder")
    try:
        torch.zeros(1, device=config.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {config.device} cannot be used, try cpu or cuda: {one_line(error)}") from None
    if config.dtype == "float16" and config.device == "cpu":
        raise ValueError("--dtype float16 needs a GPU: leave it out, or give --device cuda")


def check_use(config: EvaluateConfig, datasets: list[DataSet]) -> None:
    """Raises ValueError for a network that no task asks for."""
    tasks = {task for dataset in datasets for task in dataset.tasks}
    painting = {Task.INPAINTING, Task.SYNTHESIS}
    for name, of in (
        ("segmenter", painting),
        ("inception_weights", painting),
        ("lpips_weights", {Task.INPAINTING}),
        ("clip_model", {Task.INPAINTING}),
    ):
        if getattr(config, name) is not None and not tasks & of:
            needed = " or ".join(sorted(task.value for task in of))
            raise ValueError(
                f"{_option(name)} means nothing without {needed}: leave it out, or add the task to --tasks"
            )


def open_segmenter(checkpoint: Path, config: EvaluateConfig) -> Model:
    """One that looks with its own settings, whatever those of the measured model are."""
    return Model(open_pipeline(checkpoint, config), config.batch_size, None, config.seed)


def open_pipeline(checkpoint: Path | None, config: EvaluateConfig) -> UniGSPipeline:
    """Raises ValueError or FileNotFoundError for a checkpoint that is not one of UniGS."""
    return UniGSPipeline.from_pretrained(checkpoint, torch_dtype=getattr(torch, config.dtype)).to(config.device)


def open_model(checkpoint: Path | None, config: EvaluateConfig) -> Model:
    """Raises as `open_pipeline` does."""
    pipeline = open_pipeline(checkpoint, config)
    sizes = config.short_side, config.max_side
    decoder = config.criterion, config.delta, config.min_area, config.use_palette, config.snap
    return Model(pipeline, config.batch_size, config.steps, config.seed, *sizes, *decoder)


def open_data(config: EvaluateConfig, resolution: int) -> list[DataSet]:
    """The data sets, with the tasks to measure on each.

    Raises ValueError or FileNotFoundError, and SystemExit as `from_table`, saying what is wrong with which.
    """
    if config.data == "scenes":
        sources = scene_sources(config.sprites, config.stuff)
    else:
        sources = read_sources(Path(config.data))
    datasets = []
    for name, source in sources.items():
        tasks = [task for task in config.tasks if task in source.tasks]
        if tasks:
            records = open_source(name, source, resolution)
            everything = SCENES if isinstance(records, Scenes) else len(records)
            if config.count is not None and not isinstance(records, Scenes):
                everything = min(config.count, everything)
            elif config.count is not None:
                everything = config.count
            if everything == 0:
                raise ValueError(f"data set {name!r} has no pictures: check its files")
            datasets.append(DataSet(name, records, tasks, everything))
    if not datasets:
        asked = ", ".join(task.value for task in config.tasks)
        raise ValueError(f"--data {config.data}: no data set has one of the tasks {asked}: change --tasks, or `tasks`")
    return datasets


def scene_sources(sprites: Path, stuff: bool = False) -> dict[str, SourceConfig]:
    """Held-out scenes: for all tasks, and harder ones for those that segment; with stuff for the entity task alone."""
    heldout, segment = SourceConfig("scenes", split="heldout", sprites=sprites), (Task.REFERRING, Task.ENTITY)
    if stuff:
        heldout, segment = replace(heldout, stuff=True, tasks=(Task.ENTITY,)), (Task.ENTITY,)
    return {
        "scenes": heldout,
        "scenes, kinds never seen": replace(heldout, kinds="unseen", tasks=(Task.ENTITY,)),
        "scenes, sprites never seen": replace(heldout, kinds="unseen_sprites", tasks=segment),
        "scenes, up to six objects": replace(heldout, max_objects=6, tasks=(Task.ENTITY,)),
    }


def read_sources(file: Path) -> dict[str, SourceConfig]:
    """The tables of a TOML file; of a training configuration those of [data.validation]."""
    table: dict[str, Any] = read_toml(file, "--data")
    where = str(file)
    if "data" in table and "type" not in table["data"]:
        table, where = table["data"].get("validation", {}), f"{file}: data.validation"
    if not table:
        raise ValueError(f'{where} has no data set: add a table like [coco], type = "coco_panoptic", annotations = ...')
    for name, settings in table.items():
        if not isinstance(settings, dict):
            allowed = ", ".join(item.name for item in fields(SourceConfig))
            raise ValueError(f"{where}: {name} is no table of a data set; expected [NAME] with some of {allowed}")
    return {name: from_table(SourceConfig, settings, f"{where}: {name}") for name, settings in table.items()}


def measure(
    task: Task, dataset: DataSet, model: Model, segmenter: Model, networks: Networks, config: EvaluateConfig
) -> Measures:
    """All measures of a task on a data set."""
    seed = config.seed
    records = read_records(dataset, f"{task.value} of {dataset.name}")
    match task:
        case Task.INPAINTING:
            return measure_inpainting(model, records, networks, segmenter, seed)
        case Task.SYNTHESIS:
            return measure_synthesis(model, records, networks, segmenter, seed)
        case Task.REFERRING:
            return measure_referring(model, records, dataset.records, seed)
        case Task.ENTITY:
            return measure_entity(model, records, isinstance(dataset.records, Scenes), config.stuff)


def read_records(dataset: DataSet, title: str) -> Iterator[Record]:
    """The records with their pictures in memory. Bad ones are left out, and noted once; raises TooManyBadPictures."""
    bad = BadPictures(dataset.bad_pictures)
    for number in tqdm(range(dataset.count), desc=title, unit="picture", leave=False):
        try:
            record = dataset.records[number]
            image = record.image
        except BadPicture as error:
            bad.count_bad(f"{dataset.name} {number}", error)
        else:
            bad.count_good()
            yield replace(record, open_image=lambda image=image: image)


def draw_sheet(dataset: DataSet, model: Model, config: EvaluateConfig) -> None:
    """The grid that training shows, of the first pictures, cut to squares, into the output folder. Nothing if there is
    nothing to be seen."""
    if config.output is None:
        return
    side = model.pipeline.default_size
    geometry = Geometry((side, side), random_crop=False, flip=0)
    rows: list[dict[Task, Example]] = []
    for picture, record in enumerate(read_records(dataset, "contact sheet")):
        try:
            rng = np.random.default_rng([model.seed, 3, picture])
            options: Any = {"geometry": geometry, "stuff_asked": 1.0 if config.stuff else None}
            palette = model.pipeline.palette
            rows.append({task: make_example(record, rng, palette, task, **options) for task in dataset.tasks})
        except NothingToSee:
            continue
        if len(rows) == SHEET_COLUMNS:
            break
    if rows:
        examples = {task: [row[task] for row in rows] for task in dataset.tasks}
        grid, _ = validation_grid(model.pipeline, examples, model.batch_size, model.seed, model.steps)
        grid.save(config.output / f"contact_sheet-{as_file_name(dataset.name)}.png")


def as_file_name(name: str) -> str:
    """ "scenes, kinds never seen" -> "scenes_kinds_never_seen"."""
    return re.sub(r"[^\w-]+", "_", name)


def markdown(results: dict[str, dict[Task, Measures]]) -> str:
    """A table of everything."""
    lines = ["| data set | task | measure | value | 95 % interval | pictures |", "|---|---|---|---|---|---|"]
    for name, tasks in results.items():
        for task, found in tasks.items():
            for key, m in found.items():
                value = f"not run: {m.not_run}" if m.value is None else f"{m.value:.3f}"
                interval = "" if m.interval is None else f"{m.interval[0]:.3f} to {m.interval[1]:.3f}"
                lines.append(f"| {name} | {task.value} | {key} | {value} | {interval} | {m.pictures or ''} |")
    return "\n".join(lines) + "\n"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _plain(value: Any) -> Any:
    """A setting in types that JSON knows."""
    if isinstance(value, tuple):
        return [item.value for item in value]
    return str(value) if isinstance(value, Path) else value


if __name__ == "__main__":
    main()
