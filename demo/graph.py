"""Writes prompts for the server, node by node."""

from typing import Any

from .client import Prompt


class Graph:
    """Writes a prompt: `image = graph.add("LoadImage", image="a.png")`, then `graph.add("PreviewImage", images=image)`.

    `add` returns the node's first output; `output(node, 1)` the next one. `graph.prompt` is what the server runs.
    """

    def __init__(self):
        self.prompt: Prompt = {}

    def add(self, class_type: str, /, **inputs: Any) -> list[Any]:
        node = str(len(self.prompt) + 1)
        self.prompt[node] = {"class_type": class_type, "inputs": inputs}
        return [node, 0]

    @staticmethod
    def output(node: list[Any], slot: int) -> list[Any]:
        return [node[0], slot]

    def loader(self, checkpoint: str = "bundled", dtype: str = "default") -> dict[str, list[Any]]:
        """A UniGS Loader: its outputs by the names of the inputs that take them."""
        node = self.add("UniGSLoader", checkpoint=checkpoint, dtype=dtype)
        return {name: self.output(node, slot) for slot, name in enumerate(("model", "clip", "vae"))}

    def sampler(self, task: str, **inputs: Any) -> list[Any]:
        """A UniGS Sampler with its loader; inputs that are not given have their defaults."""
        defaults = {"prompt": "", "negative": "", "seed": 1, "steps": 0, "cfg": 0.0}
        defaults |= {"sampler_name": "ddim", "scheduler": "simple"}
        loaded = {} if "model" in inputs else self.loader()
        return self.add("UniGSSampler", task=task, **{**defaults, **loaded, **inputs})

    def ordinary(self, checkpoint: str, size: int = 64, steps: int = 2) -> list[Any]:
        """A graph of Stable Diffusion as everybody has it, without any node of this pack; its picture."""
        loader = self.add("CheckpointLoaderSimple", ckpt_name=checkpoint)
        words = [self.add("CLIPTextEncode", text=text, clip=self.output(loader, 1)) for text in ("a dog", "")]
        latent = self.add("EmptyLatentImage", width=size, height=size, batch_size=1)
        settings = {
            "seed": 7,
            "steps": steps,
            "cfg": 3.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        }
        given = {"positive": words[0], "negative": words[1], "latent_image": latent}
        sampled = self.add("KSampler", model=loader, **given, **settings)
        return self.add("VAEDecode", samples=sampled, vae=self.output(loader, 2))
