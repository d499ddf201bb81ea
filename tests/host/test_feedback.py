"""What people see and can do while a graph runs: progress, previews, cancelling; and what is not run again."""

import io
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from demo.client import Interrupted
from tests.unigs import ldm_files

SETTINGS = {"seed": 5, "steps": 6, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple"}


@pytest.fixture(scope="module")
def picture(upload):
    pixels = np.full((128, 128, 3), 200, np.uint8)
    pixels[30:100, 40:90] = (180, 60, 40)
    return upload("to watch.png", pixels)


def by_unigs_sampler(graph, loaded, image):
    node = graph.sampler("entity", image=image, **SETTINGS, **loaded)
    return node, [graph.add("PreviewImage", images=graph.output(node, slot)) for slot in (0, 1)]


def by_ksampler(graph, loaded, image):
    ready = graph.add("UniGSConditioning", task="entity", prompt="", negative="", image=image, **loaded)
    names = ("model", "positive", "negative", "latent_image")
    inputs = {name: graph.output(ready, slot) for slot, name in enumerate(names)}
    node = graph.add("KSampler", denoise=1.0, **inputs, **SETTINGS)
    split = graph.add("UniGSSplitLatent", latent=node)
    decoded = [graph.add("VAEDecode", samples=graph.output(split, slot), vae=loaded["vae"]) for slot in (0, 1)]
    return node, [graph.add("PreviewImage", images=images) for images in decoded]


@pytest.mark.promise("progress")
@pytest.mark.parametrize("sampled", [by_unigs_sampler, by_ksampler])
def test_every_step_shows_picture_and_colormap_side_by_side(server, graph, shown, picture, sampled):
    node, both = sampled(graph, graph.loader(), graph.add("LoadImage", image=picture))
    done = server.client.run(graph.prompt)
    steps = [(value, maximum) for name, value, maximum in done.progress if name == node[0]]
    assert steps == [(step, 6) for step in range(1, 7)]
    assert len(done.previews) == 6
    *_, last = (np.asarray(Image.open(io.BytesIO(one)).convert("RGB")).astype(float) for one in done.previews)
    assert last.shape[1] == 2 * last.shape[0]
    halves = np.split(last, 2, axis=1)
    pictures = [shown(done, one[0])[0] for one in both]
    size = halves[0].shape[1::-1]
    pictures = [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BOX)).astype(float) for one in pictures]
    # Four numbers a pixel tell colours roughly: each half is like its own stream, and less like the other.
    distances = np.array([[np.abs(half - one).mean() for one in pictures] for half in halves])
    assert distances.argmin(axis=1).tolist() == [0, 1] and distances.diagonal().max() < 30, distances


@pytest.mark.promise("progress")
def test_decoding_many_colormaps_shows_progress(server, graph):
    colormaps = graph.add("EmptyImage", width=64, height=64, batch_size=3, color=0x4080C0)
    decoded = graph.add("UniGSDichotomyDecode", colormap=colormaps, delta=10.0, min_area=0, keep_background=True)
    graph.add("MaskPreview", mask=decoded)
    done = server.client.run(graph.prompt)
    steps = [step for name, *step in done.progress if name == decoded[0]]
    assert steps[0] == [1, 3] and steps[-1] == [3, 3]  # newer hosts leave out some in between


def is_well(server, graph, picture) -> bool:
    """Whether the server runs another prompt, as if nothing had been."""
    graph.prompt.clear()
    sampled = graph.sampler("entity", image=graph.add("LoadImage", image=picture), steps=1, seed=time.time_ns())
    graph.add("PreviewImage", images=sampled)
    return len(server.client.run(graph.prompt).previews) == 1


def cancelled_at(server, graph, step: int) -> list[int]:
    """Runs a graph that is cancelled as soon as it shows that step; the steps that it showed."""
    seen: list[int] = []

    def cancel(node, value, maximum):
        if value >= step and max(seen, default=0) < step:
            server.client.interrupt()
        seen.append(value)

    with pytest.raises(Interrupted):
        server.client.run(graph.prompt, on_progress=cancel)
    return seen


@pytest.mark.promise("cancel")
def test_sampling_is_cancelled_within_a_step(server, graph, picture):
    graph.add("PreviewImage", images=graph.sampler("entity", image=graph.add("LoadImage", image=picture), steps=500))
    assert max(cancelled_at(server, graph, 3)) < 20  # steps that were under way while the message travelled
    assert is_well(server, graph, picture)


@pytest.mark.promise("cancel")
def test_decoding_is_cancelled_within_a_colormap(server, graph, upload, picture):
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    image = graph.add("LoadImage", image=upload("noise.png", noise))
    colormaps = graph.add("RepeatImageBatch", image=image, amount=64)
    decoded = graph.add("UniGSDichotomyDecode", colormap=colormaps, delta=10.0, min_area=0, keep_background=True)
    graph.add("MaskPreview", mask=decoded)
    assert max(cancelled_at(server, graph, 2)) < 20
    assert is_well(server, graph, picture)


@pytest.fixture
def stable_diffusion(server):
    """Zeros, which take no disk; Stable Diffusion's own VAE is what matters here."""
    file = server.data / "models" / "checkpoints" / "for its VAE.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    ldm_files.write(file, ldm_files.stable_diffusion_1())
    yield file.name
    file.unlink()


@pytest.mark.promise("cancel")
@pytest.mark.parametrize(("kind", "seconds"), [("tiny VAE", 8), ("VAE of Stable Diffusion", 15)])
def test_a_long_encode_is_cancelled_within_it(server, graph, picture, stable_diffusion, kind, seconds):
    """There is no progress to wait for; the whole encode would take far longer than the time it is given here."""
    size, batch, loaded = 1024, 24, graph.loader()
    if kind != "tiny VAE":
        size, batch, loaded = 512, 8, graph.loader(stable_diffusion, "fp16")
    small = graph.add("EmptyImage", width=64, height=64, batch_size=1, color=0)
    warm = graph.add("PreviewImage", images=graph.sampler("entity", image=small, steps=1, cfg=1.0, **loaded))
    server.client.run(graph.prompt)  # loading is not what is cancelled here
    del graph.prompt[warm[0]]
    large = graph.add("EmptyImage", width=size, height=size, batch_size=batch, color=0)
    graph.add("PreviewImage", images=graph.sampler("entity", image=large, steps=1, **loaded))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.client.run, graph.prompt)
        time.sleep(1.5)
        assert not running.done()
        start = time.monotonic()
        server.client.interrupt()
        with pytest.raises(Interrupted, match="UniGSSampler"):
            running.result()
    assert time.monotonic() - start < seconds
    assert is_well(server, graph, picture)


def test_the_same_graph_again_runs_nothing_and_another_decoding_does_not_sample(server, graph, picture):
    image = graph.add("LoadImage", image=picture)
    sampled = graph.sampler("entity", image=image, seed=77)
    settings = {"delta": 10.0, "min_area": 0, "keep_background": True, "components": False, "use_palette": False}
    settings |= {"image": image, "snap": 0}
    decoded = graph.add("UniGSDichotomyDecode", colormap=graph.output(sampled, 1), **settings)
    graph.add("MaskPreview", mask=decoded)
    server.client.run(graph.prompt)
    again = server.client.run(graph.prompt)
    assert set(again.cached) == graph.prompt.keys() and not again.progress
    others = {"delta": 20.0, "min_area": 50, "keep_background": False, "components": True, "use_palette": True}
    others |= {"snap": 4}
    for name, value in others.items():
        graph.prompt[decoded[0]]["inputs"][name] = value
        done = server.client.run(graph.prompt)
        assert sampled[0] in done.cached and decoded[0] not in done.cached, name
        assert sampled[0] not in {node for node, *_ in done.progress} and not done.previews
