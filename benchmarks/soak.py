"""A long day of a ComfyUI with these nodes: does its memory grow, does a prompt fail, does a cancel hang?

    OMP_NUM_THREADS=1 python -m benchmarks.soak

Starts a server of its own and queues prompts of all tasks, with mixed sizes, batches, samplers and precisions, on two
UniGS checkpoints, and now and then an ordinary graph of Stable Diffusion without any node of this pack. Some prompts
are cancelled while they sample or decode, some are wrong on purpose and must end in one error that says why.

Resident memory is read after each prompt, and every tenth time once more when the host's list of past runs is emptied,
Python has collected what is garbage and the C library has returned what it keeps of freed memory. Growth is that of the
latter, from the end of the warm-up to the end of the run, medians of as many readings at both ends. Ends with 1 if a
prompt failed that should have worked, or memory grew by 3 % or more.

With the C library's own settings its heaps get more and more scattered, by tens of MiB up and down, which hides what is
in use; so the server runs with MALLOC_ARENA_MAX=1 and MALLOC_MMAP_THRESHOLD_=65536, unless these are set otherwise.
And oneDNN keeps the last 1024 kernels that it compiled for torch, one for each new size of a layer's input: with sizes
and batches as mixed as here that cache still fills when the run ends, so the server keeps 16
(ONEDNN_PRIMITIVE_CACHE_CAPACITY).
"""

import argparse
import json
import logging
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from PIL import Image
from tqdm import tqdm

from demo.client import ComfyUIError, Interrupted, NodeFailed
from demo.comfyui import PACK_NAME, REPO, ComfyUI, version_wanted
from demo.graph import Graph
from tests.unigs import ldm_files
from unigs.checkpoints import bundled_model_dir
from unigs.tasks import Task

NEIGHBOUR = REPO / "tests" / "host" / "neighbour"
ORDINARY = "ordinary.safetensors"
SIZES = [(64, 64), (96, 128), (128, 128), (200, 136), (131, 97), (256, 192)]  # width, height
MIB = 2**20
MOST_GROWTH = 0.03
EVERY = 10


@dataclass
class Report:
    """What came of the prompts.

    Attributes:
        resident: the server's memory in MiB after each of them.
        in_use: the same after every `EVERY`th, without what is garbage and what the C library keeps.
    """

    version: str
    ended: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    resident: list[float] = field(default_factory=list)
    in_use: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    until_cancelled: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    after_free: float | None = None

    def growth(self, warm_up: int) -> tuple[float, float, float]:
        """(memory in use when warmed up, at the end, growth between): medians of a fifth of the readings each."""
        warm = self.in_use[min(warm_up // EVERY, len(self.in_use) - 1) :]
        count = max(1, len(warm) // 5)
        before, after = statistics.median(warm[:count]), statistics.median(warm[-count:])
        return before, after, after / before - 1

    def as_json(self, warm_up: int) -> dict[str, Any]:
        before, after, growth = self.growth(warm_up)
        return {
            "comfyui": self.version,
            "prompts": sum(self.ended.values()),
            "ended": dict(self.ended),
            "kinds": dict(self.kinds),
            "failures": self.failures,
            "in_use_mib": {"warmed_up": before, "end": after, "after_free": self.after_free},
            "resident_mib": {"end": statistics.median(self.resident[-EVERY:]), "most": max(self.resident)},
            "growth": growth,
            "seconds_median": statistics.median(self.seconds) if self.seconds else None,
            "seconds_until_cancelled": {
                "median": statistics.median(self.until_cancelled) if self.until_cancelled else None,
                "most": max(self.until_cancelled, default=None),
            },
            "in_use_mib_after_every_tenth": [round(value, 1) for value in self.in_use],
            "resident_mib_after_each": [round(value, 1) for value in self.resident],
        }

    def table(self, warm_up: int) -> str:
        before, after, growth = self.growth(warm_up)
        rows = [
            ("ComfyUI", self.version),
            ("prompts", ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))),
            ("ended", ", ".join(f"{count} {end}" for end, count in sorted(self.ended.items()))),
            ("failed that should have worked", str(len(self.failures))),
            ("memory in use, warmed up", f"{before:.0f} MiB"),
            ("memory in use, at the end", f"{after:.0f} MiB ({growth:+.2%})"),
        ]
        if self.after_free is not None:
            rows.append(("memory in use, after /free", f"{self.after_free:.0f} MiB"))
        rows.append(
            (
                "resident, with what the C library keeps: at the end, most",
                f"{statistics.median(self.resident[-EVERY:]):.0f}, {max(self.resident):.0f} MiB",
            )
        )
        if self.seconds:
            rows.append(("seconds a prompt, median", f"{statistics.median(self.seconds):.2f}"))
        if self.until_cancelled:
            middle, most = statistics.median(self.until_cancelled), max(self.until_cancelled)
            rows.append(("seconds until cancelled, median and most", f"{middle:.2f}, {most:.2f}"))
        return "\n".join(f"| {name} | {value} |" for name, value in [*rows[:1], ("---", "---"), *rows[1:]])


class Prompts:
    """Writes prompts by chance, each from its own seed."""

    def __init__(self, server: ComfyUI, checkpoints: list[str]):
        self.checkpoints = checkpoints
        self.pictures = {}
        for width, height in SIZES:
            file = server.data / f"{width}x{height}.png"
            noise = random.Random(width * height).randbytes(12 * 12 * 3)
            Image.frombytes("RGB", (12, 12), noise).resize((width, height), Image.Resampling.NEAREST).save(file)
            self.pictures[width, height] = server.client.upload(file)

    def any(self, number: int, chance: random.Random, cancelled: bool) -> tuple[str, Graph]:
        """(its kind, the prompt). One that is to be cancelled takes long in sampling or in decoding."""
        graph = Graph()
        if not cancelled and number % 15 == 7:
            graph.add("PreviewImage", images=graph.ordinary(ORDINARY, steps=chance.randint(1, 3)))
            return "ordinary", graph
        task = chance.choice(list(Task))
        size, batch = chance.choice(SIZES), chance.randint(1, 3)
        loaded = graph.loader(chance.choice(self.checkpoints), chance.choice(["default", "default", "fp16", "bf16"]))
        image = graph.add("LoadImage", image=self.pictures[size])
        image = graph.add("RepeatImageBatch", image=image, amount=batch)
        mask = graph.add(
            "UniGSCoarseMaskFromBox",
            boxes="8,8,40,40; 20,20,60,50",
            width=size[0],
            height=size[1],
            kind=chance.choice(["curve", "box"]),
            seed=number,
        )
        inputs: dict[str, Any] = {"colormap" if task is Task.SYNTHESIS else "image": image}
        if task is Task.INPAINTING or (task is Task.REFERRING and chance.random() < 0.5):
            inputs["coarse_mask"] = mask
        decode_long = cancelled and chance.random() < 0.5
        sampler = graph.sampler(
            task.value,
            prompt=chance.choice(["dog", "cat and dog", "a strawberry on grass"]),
            seed=number,
            steps=500 if cancelled and not decode_long else chance.randint(1, 6),
            cfg=chance.choice([1.0, 2.5]),
            sampler_name=chance.choice(["ddim", "euler", "dpmpp_2m", "uni_pc", "euler_ancestral"]),
            scheduler=chance.choice(["simple", "normal", "karras"]),
            ensemble=3 if task.spec.segments and chance.random() < 0.2 else 1,
            **inputs,
            **loaded,
        )
        colormap = graph.output(sampler, 1)
        if decode_long:
            colormap = graph.add("RepeatImageBatch", image=image, amount=200)
        masks = graph.add(
            "UniGSDichotomyDecode",
            colormap=colormap,
            delta=10.0,
            min_area=chance.choice([0, 32]),
            keep_background=task is Task.ENTITY,
            model=loaded["model"],
        )
        split = graph.add("UniGSEntityMaskSplit", masks=masks, order="largest first", min_area=0, index=0, crop=True)
        again = graph.add("UniGSColormapEncode", masks=graph.output(split, 2), grid=11, model=loaded["model"])
        for shown in (sampler, graph.output(masks, 1), graph.output(split, 3), again):
            graph.add("PreviewImage", images=shown)
        return task.value, graph

    def wrong(self) -> Graph:
        """Two masks for three pictures."""
        graph = Graph()
        image = graph.add("LoadImage", image=self.pictures[SIZES[2]])
        image = graph.add("RepeatImageBatch", image=image, amount=3)
        masks = graph.add(
            "UniGSCoarseMaskFromBox", boxes="8,8,40,40; 60,60,90,90", width=128, height=128, kind="box", seed=0
        )
        inputs = {"image": image, "coarse_mask": graph.output(masks, 1), "prompt": "dog"}
        graph.add("PreviewImage", images=graph.sampler("inpainting", **inputs))
        return graph


def memory_in_use(server: ComfyUI, number: int) -> float:
    """Resident memory of the server in MiB, trimmed; by a node of the pack that the tests put beside ours.

    The host keeps the prompts and outputs of the last 10000 runs to show them; that list is emptied first.
    """
    server.client.post("/history", {"clear": True})
    graph = Graph()
    node = graph.add("NeighbourProbe", pack=PACK_NAME, number=number)
    return json.loads(server.client.run(graph.prompt).outputs[node[0]]["text"][0])["resident"][1] / MIB


def run_one(server: ComfyUI, graph: Graph, cancel_at: int | None, report: Report) -> str:
    """How the prompt ended: finished or cancelled; anything else is raised."""
    sent: list[float] = []

    def cancel(node: str, value: int, maximum: int) -> None:
        if not sent and maximum >= 200 and value >= (cancel_at or 0):
            sent.append(time.monotonic())
            server.client.interrupt()

    begun = time.monotonic()
    try:
        server.client.run(graph.prompt, on_progress=None if cancel_at is None else cancel)
    except Interrupted:
        report.until_cancelled.append(time.monotonic() - sent[0])
        return "cancelled"
    report.seconds.append(time.monotonic() - begun)
    return "finished"


def soak(
    server: ComfyUI, prompts: int, cancels: int, seed: int, report: Report, each: Callable[[], object] = lambda: None
) -> None:
    """Runs the prompts and writes what comes of them into the report as it goes; calls `each` after each of them."""
    checkpoints = ["bundled", "another"]
    shutil.copytree(bundled_model_dir(), server.data / "models" / "unigs" / "another", dirs_exist_ok=True)
    file = server.data / "models" / "checkpoints" / ORDINARY
    file.parent.mkdir(parents=True, exist_ok=True)
    ldm_files.randomize(ldm_files.write(file, ldm_files.small_stable_diffusion_1()))
    writer, process = Prompts(server, checkpoints), psutil.Process(server.pid)
    to_cancel = set(random.Random(seed).sample(range(prompts), cancels))
    for number in range(prompts):
        chance = random.Random(f"{seed} {number}")
        try:
            if number not in to_cancel and number % 25 == 12:
                report.kinds["wrong"] += 1
                try:
                    run_one(server, writer.wrong(), None, report)
                except NodeFailed as error:
                    if "image: 3, coarse_mask: 2" not in str(error):
                        raise
                    report.ended["refused"] += 1
                else:
                    raise ComfyUIError("a prompt that is wrong was run")
            else:
                kind, graph = writer.any(number, chance, number in to_cancel)
                report.kinds[kind] += 1
                cancel_at = chance.randint(1, 20) if number in to_cancel else None
                report.ended[run_one(server, graph, cancel_at, report)] += 1
        except (ComfyUIError, TimeoutError) as error:
            if not server.running():
                raise
            report.ended["failed"] += 1
            report.failures.append(f"prompt {number}: {error}")
        report.resident.append(process.memory_info().rss / MIB)
        if number % EVERY == EVERY - 1:
            report.in_use.append(memory_in_use(server, number))
        each()
    server.client.free()
    report.after_free = memory_in_use(server, prompts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=300, help="queued one after the other (default: %(default)s)")
    parser.add_argument("--cancels", type=int, default=60, help="of them, cancelled on the way (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=60, help="prompts before growth counts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is by chance (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the whole report")
    options = parser.parse_args(argv)
    if not 0 <= options.cancels <= options.prompts or options.prompts < options.warm_up + EVERY:
        parser.error("there must be more prompts than cancels and than the warm-up")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    report = Report(version_wanted())
    # For the server: glibc gives each larger block back by itself, instead of keeping them scattered in its heaps.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    with tempfile.TemporaryDirectory() as data:
        shutil.copytree(NEIGHBOUR, Path(data) / "custom_nodes" / NEIGHBOUR.name)
        args = ("--preview-method", "auto", "--cache-classic")
        try:
            with (
                ComfyUI(data=data, log=Path(data) / "server.log", args=args) as server,
                tqdm(total=options.prompts, unit="prompt") as bar,
            ):
                report.version = server.client.system_stats()["system"]["comfyui_version"]

                def each() -> None:
                    bar.set_postfix_str(f"{report.resident[-1]:.0f} MiB, {len(report.failures)} failed")
                    bar.update()

                soak(server, options.prompts, options.cancels, options.seed, report, each)
        except ComfyUIError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("stopped; so far:", file=sys.stderr)
    if not report.in_use:
        return 130
    print(report.table(options.warm_up))
    for failure in report.failures:
        print(failure, file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(report.as_json(options.warm_up), indent=1) + "\n", encoding="utf-8")
    if sum(report.ended.values()) < options.prompts:
        return 130
    return int(bool(report.failures) or report.growth(options.warm_up)[2] >= MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
