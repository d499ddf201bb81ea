"""Memory is the host's: it unloads what it wants, gives everything back when asked, and nothing piles up."""

import shutil
from typing import Any

import pytest

from tests.host.test_feedback import cancelled_at
from unigs.checkpoints import bundled_model_dir

MIB = 2**20


@pytest.fixture(scope="module")
def another(server):
    """A second UniGS checkpoint; not in models/unigs, whose list other tests look at."""
    folder = server.data / "elsewhere" / "another"
    shutil.copytree(bundled_model_dir(), folder)
    yield "another"
    shutil.rmtree(folder)


def entity(graph, checkpoint: str, seed: int = 1, dtype: str = "default"):
    """The picture that UniGS Sampler gives, and masks behind it."""
    image = graph.add("LoadImage", image="unigs_entity.png")
    sampled = graph.sampler("entity", image=image, seed=seed, **graph.loader(checkpoint, dtype))
    decoded = graph.add(
        "UniGSDichotomyDecode", colormap=graph.output(sampled, 1), delta=10.0, min_area=0, keep_background=True
    )
    graph.add("MaskPreview", mask=decoded)
    return sampled


def does_not_grow(seen: list[dict[str, Any]]) -> None:
    """Of six equal turns. The C library's share goes up and down; a leak is there in both of the last turns."""
    tensors, resident = [one["tensors"] for one in seen], [one["resident"][1] / MIB for one in seen]
    assert tensors[-1] <= tensors[1], tensors
    assert min(resident[-2:]) < 1.03 * max(resident[:2]), resident


@pytest.mark.promise("memory")
def test_everything_is_given_back_when_asked_for(server, graph, probe, another, ordinary):
    """`/free` leaves no weight alive, neither ours nor the host's own."""
    server.client.free()
    probe()  # the host may run a prompt before it gives back
    before = probe()
    assert before["weights alive"] == 0 and before["loaded"] == []
    pictures = [entity(graph, "bundled", dtype="fp32"), entity(graph, another, dtype="bf16")]
    both = graph.add("ImageBatch", image1=pictures[0], image2=pictures[1])
    every = graph.add("ImageBatch", image1=both, image2=graph.ordinary(ordinary[0]))
    between = probe(graph, every)
    # All of it in the host's hands: two UNets of ours with their VAEs and text encoders, and the host's own model.
    assert between["loaded"].count("UniGSModel") == between["loaded"].count("_FirstStage") == 2
    assert {"BaseModel", "AutoencoderKL"} <= set(between["loaded"])
    assert between["weights alive"] > 500 * MIB
    server.client.free()
    probe()
    after = probe()
    assert after["weights alive"] == 0 and after["loaded"] == []
    assert after["resident"][1] < before["resident"][1] + 64 * MIB  # of more than 700 that were taken


@pytest.mark.promise("memory")
def test_two_checkpoints_and_an_ordinary_graph_in_turn_do_not_grow(server, graph, probe, another, ordinary):
    checkpoint, _ = ordinary
    seen = []
    for turn in range(6):
        for name in ("bundled", another):
            graph.prompt.clear()
            entity(graph, name, seed=turn)
            server.client.run(graph.prompt)
        graph.prompt.clear()
        graph.add("PreviewImage", images=graph.ordinary(checkpoint))
        server.client.run(graph.prompt)
        seen.append(probe())
    does_not_grow(seen)


@pytest.mark.promise("memory")
@pytest.mark.promise("cancel")
def test_cancelling_again_and_again_leaves_nothing_behind(server, graph, probe):
    seen = []
    for turn in range(6):
        graph.prompt.clear()
        image = graph.add("LoadImage", image="unigs_entity.png")
        batch = graph.add("RepeatImageBatch", image=image, amount=4)
        graph.add("PreviewImage", images=graph.sampler("entity", image=batch, seed=turn, steps=500))
        cancelled_at(server, graph, 2)
        seen.append(probe())
    does_not_grow(seen)
