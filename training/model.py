"""The components of a small UniGS trained from nothing: tokenizer, text encoder, UNet, scheduler."""

import json
from pathlib import Path

from diffusers import DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.config import ModelConfig
from unigs.tasks import Task

START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(folder: Path, texts: list[str], config: ModelConfig) -> CLIPTokenizer:
    """A CLIPTokenizer whose merges are learnt on `texts`; each of their words is one token, other words fall to pieces.

    The files (vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json) are written to `folder`.
    """
    learner = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary - 2,
        min_frequency=1,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(sorted(set(texts)), trainer)
    merges = [
        " ".join(pair) if isinstance(pair, list) else pair for pair in json.loads(learner.to_str())["model"]["merges"]
    ]
    # CLIP's order: bytes, bytes that end a word, merges, special tokens
    tokens = [
        *alphabet,
        *(f"{byte}</w>" for byte in alphabet),
        *(merge.replace(" ", "") for merge in merges),
        START,
        END,
    ]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": config.text_length,
        "do_lower_case": True,
        **special,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


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
    """13 in, 8 out, a task embedding, attention at the lowest levels only."""
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
        num_class_embeds=len(Task),
    )


class JointModel(nn.Module):
    """What is trained together: text encoder and UNet, as one module for accelerate to wrap."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel):
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, inputs: Tensor, timesteps: Tensor, input_ids: Tensor, task: Tensor) -> Tensor:
        """(B, 13, h, w), (B,), (B, L), (B,) -> what the scheduler's prediction type asks for, (B, 8, h, w)."""
        words = self.text_encoder(input_ids).last_hidden_state
        return self.unet(inputs, timesteps, words, class_labels=task).sample


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
