"""The components of a small UniGS trained from nothing: tokenizer, text encoder, UNet, scheduler."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.config import ModelConfig, TrainConfig
from training.datasets.scenes import HELD_OUT_KINDS, PLACES
from unigs.conditions import LATENT_CHANNELS
from unigs.tasks import TASKS, Task, plural

START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(folder: Path, texts: list[str], config: ModelConfig) -> CLIPTokenizer:
    """A CLIPTokenizer whose merges are learnt on `texts`; each of their words is one token, other words fall to pieces.

    The files (vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json) are written to `folder`.
    """
    alphabet = sorted(ByteLevel.alphabet())
    merges = learn_merges(sorted(set(texts)), config.vocabulary - 2 * len(alphabet) - 2)
    # CLIP's order: bytes, bytes that end a word, merges, special tokens
    tokens = [
        *alphabet,
        *(f"{byte}</w>" for byte in alphabet),
        *("".join(merge) for merge in merges),
        START,
        END,
    ]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": config.text_length,
        "do_lower_case": True,
        **special,
    }
    files = {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2),
        "tokenizer_config.json": json.dumps(settings, indent=2),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():  # whole at every moment: other processes may be reading the same
        scratch = folder / f".{name}-{os.getpid()}"
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, folder / name)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def learn_merges(words: list[str], limit: int) -> list[tuple[str, str]]:
    """Byte pair merges, the commonest pair first, until each word is one token or `limit` is reached.

    The trainer of the package `tokenizers` breaks ties in another order at every start; a checkpoint's token numbers
    must not depend on that. Here ties go to the pair that sorts first.
    """
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        pairs = Counter(pair for word in pieces for pair in pairwise(word))
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in pieces:
            for i in reversed(range(len(word) - 1)):
                if tuple(word[i : i + 2]) == best:
                    word[i : i + 2] = ["".join(best)]
    return merges


def build_text_encoder(tokenizer: CLIPTokenizer, config: ModelConfig) -> CLIPTextModel:
    vocabulary = tokenizer.get_vocab()
    settings = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.text_width,
        intermediate_size=4 * config.text_width,
        projection_dim=config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_width // 32,
        max_position_embeddings=config.text_length,
        bos_token_id=vocabulary[START],
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[END],
    )
    return CLIPTextModel(settings)


def build_unet(config: ModelConfig, latent_size: int) -> UNet2DConditionModel:
    """13 in, 8 out, a task embedding unless the settings say no, attention at the lowest levels only."""
    channels = config.block_out_channels
    plain = len(channels) - config.attention_levels
    down = ["DownBlock2D"] * plain + ["CrossAttnDownBlock2D"] * config.attention_levels
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=13,
        out_channels=8,
        block_out_channels=channels,
        down_block_types=down,
        up_block_types=[name.replace("Down", "Up") for name in reversed(down)],
        layers_per_block=config.layers_per_block,
        cross_attention_dim=config.text_width,
        attention_head_dim=[max(1, width // 32) for width in channels],
        norm_num_groups=8,
        num_class_embeds=len(Task) if config.task_embedding else None,
    )


def prompt_words(nouns: Iterable[str], scenes: bool) -> list[str]:
    """Every word that a prompt about these nouns may hold, counted plurals too; of scenes also places and held-out
    kinds."""
    nouns = [*nouns, *(HELD_OUT_KINDS if scenes else ())]
    templates = [spec.prompt_template.format(nouns="and") for spec in TASKS.values()]
    places = PLACES if scenes else []
    words = [*templates, *nouns, *map(plural, nouns), *places, *map(str, range(10)), "a the of in with , ."]
    return re.findall(r"\w+|[^\w\s]", " ".join(words))


def add_adapters(unet: UNet2DConditionModel, config: TrainConfig, rank: int) -> None:
    """LoRA in the layers that are named, and all else frozen; but what widening added, and nobody has trained yet, is
    trained itself: there is nothing to adapt."""
    from peft import LoraConfig

    for layer in config.lora_layers:
        if not any(name.endswith(f".{layer}") for name, _ in unet.named_modules()):
            raise ValueError(f"lora_layers: no layer of the UNet is called {layer!r}; usual are to_q, to_k, to_v")
    fresh = not unet.get_parameter("conv_out.weight")[LATENT_CHANNELS:].any()
    new = ("conv_in.", "conv_out.", "class_embedding.") if fresh else ()
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=rank if config.lora_alpha is None else config.lora_alpha,  # pyright: ignore[reportArgumentType]
            target_modules=list(config.lora_layers),
            init_lora_weights="gaussian",
        )
    )
    for name, value in unet.named_parameters():
        value.requires_grad_(value.requires_grad or name.startswith(new))


class JointModel(nn.Module):
    """What is trained, as one module for accelerate to wrap: the UNet, and the text encoder unless it is frozen."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel | None):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, inputs: Tensor, timesteps: Tensor, text: Tensor, task: Tensor) -> Tensor:
        """(B, 13, h, w), (B,), tokens (B, L) or, if the text encoder is frozen, embeddings (B, L, C), (B,) -> what the
        scheduler's prediction type asks for, (B, 8, h, w)."""
        words = text if self.text_encoder is None else self.text_encoder(text).last_hidden_state
        if not torch.is_autocast_enabled(inputs.device.type):  # DeepSpeed keeps the weights in half precision
            inputs, words = inputs.to(self.unet.dtype), words.to(self.unet.dtype)
        labels = task if self.unet.config["num_class_embeds"] else None
        return self.unet(inputs, timesteps, words, class_labels=labels).sample


def build_scheduler() -> DDIMScheduler:
    """v-prediction from a terminal SNR of zero: a segmentation can be read off in one step."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
