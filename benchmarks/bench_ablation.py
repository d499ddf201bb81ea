"""What joint training, the task embedding, the colours and the decoder bring: `python -m benchmarks.bench_ablation`

Models of the same sizes are trained from nothing, with the same seed, data and number of steps, and measured on the
same held-out scenes by `training.evaluate`:

- joint: the preset as it is;
- one task alone: four models, one a task, each with all the steps;
- no task embedding: the prompt alone tells the task;
- random colours: the palette's colours tell nothing of where an entity lies (its autoencoder is trained on them);
- decoder of squared distances: the joint model, whose colormaps are split while the mean *squared* distance is above
  delta. Nothing is trained.

What is painted is looked at by the bundled model, for all of them. A run that was stopped goes on when the same command
is run again, and what is measured is not measured again. What follows `--` goes to every training run:

    python -m benchmarks.bench_ablation --steps 1000
    python -m benchmarks.bench_ablation --steps 250 --processes 2 -- --cpu
    python -m benchmarks.bench_ablation --steps 200 --count 32 --only joint random -- --resolution 64

Needs the packages of `pip install -e ".[train,evaluate]"` and the sprites that `python -m training.datasets.scenes`
fetches.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigs.checkpoints import bundled_model_dir
from unigs.tasks import Task


@dataclass(frozen=True)
class Variant:
    """A line of the table.

    Attributes:
        title: what the table says.
        training: settings that differ from the preset; None: nothing is trained, the joint model is measured.
        evaluation: settings of the evaluation.
        tasks: that it was trained for, and is measured in.
        own_autoencoder: whether it cannot take the joint model's.
    """

    title: str
    training: tuple[str, ...] | None = ()
    evaluation: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = tuple(Task)
    own_autoencoder: bool = False


VARIANTS = {
    "joint": Variant("joint"),
    **{task.value: Variant(f"{task.value} alone", ("--tasks", task.value), (), (task,)) for task in Task},
    "no_embedding": Variant("joint, no task embedding", ("--model.no-task_embedding",)),
    "random": Variant("joint, random colours", ("--palette.order", "random"), own_autoencoder=True),
    "squared": Variant("joint, decoder of squared distances", None, ("--criterion", "mean_squared")),
}
MEASURES = (
    ("scenes", Task.ENTITY, "mIoU"),
    ("scenes", Task.ENTITY, "AP"),
    ("scenes, kinds never seen", Task.ENTITY, "mIoU"),
    ("scenes", Task.REFERRING, "gIoU"),
    ("scenes", Task.REFERRING, "gIoU, wrong word"),
    ("scenes", Task.REFERRING, "gIoU, with coarse mask"),
    ("scenes", Task.SYNTHESIS, "colormap consistency"),
    ("scenes", Task.SYNTHESIS, "named objects found"),
    ("scenes", Task.SYNTHESIS, "mIoU of the own colormap"),
    ("scenes", Task.INPAINTING, "mIoU of the colormap"),
    ("scenes", Task.INPAINTING, "colormap consistency"),
    ("scenes", Task.INPAINTING, "named objects found"),
)
Results = dict[str, dict[str, Any]]  # variant -> "results" of its metrics.json


def training_command(name: str, options: argparse.Namespace) -> list[str]:
    """The arguments of `training.train_joint`; those that were given after `--` come last, and win."""
    steps = ["--max_train_steps", str(options.steps), "--validation_steps", "0", "--report_to", "none"]
    own = list(VARIANTS[name].training or ())
    return ["--config", str(options.config), "--output_dir", str(folder_of(name, options)), *steps, *own, *options.more]


def evaluation_command(name: str, options: argparse.Namespace) -> list[str]:
    """The arguments of `training.evaluate`."""
    variant = VARIANTS[name]
    pipeline = folder_of("joint" if variant.training is None else name, options) / "pipeline"
    command = [str(pipeline), "--count", str(options.count), "--output", str(measured_of(name, options).parent)]
    command += ["--tasks", *(task.value for task in variant.tasks), *variant.evaluation]
    paints = any(not task.spec.segments for task in variant.tasks)
    return [*command, "--segmenter", str(bundled_model_dir())] if paints else command


def folder_of(name: str, options: argparse.Namespace) -> Path:
    return options.output / f"{options.steps}-steps" / name


def measured_of(name: str, options: argparse.Namespace) -> Path:
    return folder_of(name, options) / f"measured-{options.count}" / "metrics.json"


def run(name: str, options: argparse.Namespace) -> None:
    """Train and measure a variant, as far as that is not done."""
    variant, out, measured = VARIANTS[name], folder_of(name, options), measured_of(name, options)
    if variant.training is not None:
        _check_command(out / "command.json", [str(options.processes), *training_command(name, options)])
    _check_command(measured.parent / "command.json", evaluation_command(name, options))
    if variant.training is not None and not (out / "pipeline").is_dir():
        autoencoder = folder_of("joint", options) / "vae"
        if autoencoder.is_dir() and not variant.own_autoencoder:
            shutil.copytree(autoencoder, out / "vae", dirs_exist_ok=True)
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(options.processes), "-m"]
        _run(*(launcher if options.processes > 1 else []), "training.train_joint", *training_command(name, options))
        if not (out / "pipeline").is_dir():
            raise SystemExit(f"the training of {name} was stopped: the same command goes on from there")
    if not measured.is_file():
        try:
            _run("training.evaluate", *evaluation_command(name, options))
        except BaseException:  # Ctrl-C too
            measured.unlink(missing_ok=True)  # it is of a part
            raise


def _check_command(file: Path, command: list[str]) -> None:
    """Raises SystemExit if what lies beside the file was made by another command, which is kept there."""
    if file.is_file() and (before := json.loads(file.read_text())) != command:
        raise SystemExit(f"{file.parent} was made with {before}, asked for is {command}: give another --output")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(command))


def _run(module: str, *arguments: str) -> None:
    """In a process of its own, for they set up logging, signals and devices. Raises SystemExit if it fails."""
    code = subprocess.run([sys.executable, "-m", module, *arguments]).returncode
    if code:
        raise SystemExit(code)


def table(results: Results) -> str:
    """Markdown: a line a measure, a column a variant; with 95 % intervals, and "-" for a task that was not trained."""
    titles = [VARIANTS[name].title for name in results]
    lines = [f"| task | measure | {' | '.join(titles)} |", "|---" * (2 + len(titles)) + "|"]
    for data, task, measure in MEASURES:
        cells = [_cell(found.get(data, {}).get(task.value, {}).get(measure)) for found in results.values()]
        where = task.value if data == "scenes" else f"{task.value}, {data.removeprefix('scenes, ')}"
        lines.append(f"| {where} | {measure} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(measure: dict[str, Any] | None) -> str:
    if measure is None or "value" not in measure:
        return "-"
    low, high = measure["interval"]
    return f"{measure['value']:.3f} ({low:.3f}-{high:.3f})"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    given = list(sys.argv[1:] if arguments is None else arguments)
    at = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="of each training (default: %(default)s)")
    parser.add_argument("--count", type=int, default=512, metavar="N", help="held-out scenes (default: 512)")
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("training/configs/tiny.toml"),
        metavar="FILE",
        help="what all runs share (default: %(default)s)",
    )
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="that train a model together, each with its own batch"
    )
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="some of the variants")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/ablation"),
        metavar="DIR",
        help="folder for runs, measures and the table (default: %(default)s)",
    )
    options = parser.parse_args(given[:at])
    for name in ("steps", "count", "processes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    options.more = given[at + 1 :]
    options.only = [name for name in VARIANTS if name in options.only or name == "joint"]  # the others are held to it
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    for name in options.only:
        run(name, options)
    found = {name: json.loads(measured_of(name, options).read_text())["results"] for name in options.only}
    text = table(found)
    (options.output / f"{options.steps}-steps" / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
