"""From raw COCO files to a workflow in ComfyUI."""

import shutil

import numpy as np
import torch

from tests.training.fixtures import write_instances, write_panoptic
from training import train_joint
from unigs.checkpoints import bundled_model_dir


def test_what_was_trained_on_coco_runs_in_the_host(server, graph, shown, tmp_path):
    instances, pictures, _ = write_instances(tmp_path / "instances")
    panoptic, same_pictures, _ = write_panoptic(tmp_path / "panoptic")
    settings = tmp_path / "run.toml"
    settings.write_text(f"""
        output_dir = "{tmp_path / "trained"}"
        pretrained_model_name_or_path = "{bundled_model_dir()}"
        resolution = 64
        train_batch_size = 4
        max_train_steps = 4
        learning_rate = 1e-3
        lr_warmup_steps = 0
        validation_steps = 0
        dataloader_num_workers = 0
        cpu = true
        [data]
        min_pixels = 4
        [data.sources.things]
        type = "coco_instances"
        annotations = "{instances}"
        pictures = "{pictures}"
        tasks = ["inpainting", "synthesis", "referring"]
        [data.sources.everything]
        type = "coco_panoptic"
        annotations = "{panoptic}"
        pictures = "{same_pictures}"
        tasks = ["entity"]
    """)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train_joint.main(["--config", str(settings)])
    torch.set_num_threads(threads)
    shutil.copytree(tmp_path / "trained" / "pipeline", server.data / "models" / "unigs" / "trained on coco")

    image = graph.add("LoadImage", image="unigs_entity.png")
    previews = {}
    for name in ("bundled", "trained on coco"):
        sampled = graph.sampler("entity", image=image, **graph.loader(name))
        masks = graph.add(
            "UniGSDichotomyDecode", colormap=graph.output(sampled, 1), delta=10.0, min_area=0, keep_background=True
        )
        previews[name] = graph.add("PreviewImage", images=graph.output(sampled, 1))[0]
        graph.add("MaskPreview", mask=masks)
    done = server.client.run(graph.prompt)
    colormaps = [shown(done, node)[0].astype(float) for node in previews.values()]
    assert all(colormap.std() > 5 for colormap in colormaps)
    assert np.abs(colormaps[0] - colormaps[1]).mean() > 1  # they are the trained weights
