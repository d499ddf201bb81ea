import torch

from training.config import ModelConfig
from training.datasets.scenes import KINDS
from training.model import JointModel, build_tokenizer, build_unet, prompt_words


def test_known_words_are_one_token_and_others_fall_to_pieces(tmp_path):
    config, words = ModelConfig(), prompt_words(KINDS, scenes=True)
    tokenizer = build_tokenizer(tmp_path, words, config)
    assert len(tokenizer) <= config.vocabulary
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)
    again = build_tokenizer(tmp_path / "again", words, config)
    assert again.get_vocab() == tokenizer.get_vocab()
    text = "synthesis: generate dog, 2 cats and penguin on grass."
    assert tokenizer.tokenize(text) == [
        *("synthesis</w>", ":</w>", "generate</w>", "dog</w>", ",</w>", "2</w>", "cats</w>", "and</w>"),
        *("penguin</w>", "on</w>", "grass</w>", ".</w>"),
    ]
    assert len(tokenizer.tokenize("xylophone")) > 1
    assert tokenizer("Dog").input_ids == tokenizer("dog").input_ids
    assert tokenizer("dog").input_ids[0] == tokenizer.bos_token_id == len(tokenizer) - 2
    assert tokenizer("dog").input_ids[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id


def test_weights_in_half_precision_take_inputs_in_whole(tmp_path):
    """As DeepSpeed keeps them, without autocast."""
    config = ModelConfig(block_out_channels=(16, 32), attention_levels=1, text_width=32)
    inputs = torch.randn(2, 13, 8, 8), torch.tensor([1, 999]), torch.randn(2, 5, 32), torch.tensor([0, 3])
    model = JointModel(build_unet(config, 8), None).eval()
    with torch.no_grad():
        whole = model(*inputs)
        half = model.bfloat16()(*inputs)
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), whole, atol=0.1)
