"""Tiny random BLIP and CLIP folders, saved as transformers saves the real ones, with vocabularies made in code."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
)

TEXT = "a an the of picture red green blue yellow dark light colour is number again on left right small large"
WORDS = TEXT.split()
LETTERS = list("abcdefghijklmnopqrstuvwxyz0123456789,.'-")


def save_tiny_blip(folder: Path, seed: int = 0, *, num_layers: int = 2, width: int = 32) -> Path:
    """A BlipForConditionalGeneration of `width` with its processor, random weights; images of 32 px."""
    folder.mkdir(parents=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *WORDS, *LETTERS, *(f"##{each}" for each in LETTERS), "[DEC]"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    sizes = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": 4,
        "num_hidden_layers": num_layers,
    }
    text = sizes | {
        "vocab_size": len(vocabulary),
        "encoder_hidden_size": width,
        "max_position_embeddings": 40,
        "bos_token_id": vocabulary.index("[DEC]"),
        "pad_token_id": 0,
        "sep_token_id": vocabulary.index("[SEP]"),
        "eos_token_id": 2,
    }
    torch.manual_seed(seed)
    config = BlipConfig(text_config=text, vision_config=sizes | {"image_size": 32, "patch_size": 8})
    model = BlipForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():  # transformers' small initial weights would make every word as likely
            parameter.normal_(0, 0.3) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def save_tiny_clip(folder: Path, seed: int = 0, *, width: int = 32, max_length: int = 77) -> Path:
    """A CLIPModel of `width` with its processor, random weights; images of 32 px, texts of `max_length` tokens."""
    folder.mkdir(parents=True)
    vocabulary = [*WORDS, *LETTERS, "<unk>", "<|startoftext|>", "<|endoftext|>"]
    numbers = {word: number for number, word in enumerate(vocabulary)}
    start, end = numbers["<|startoftext|>"], numbers["<|endoftext|>"]
    words = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.RobertaProcessing(("<|endoftext|>", end), ("<|startoftext|>", start))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        model_max_length=max_length,
    )
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4, "num_hidden_layers": 2}
    text = sizes | {
        "vocab_size": len(vocabulary),
        "max_position_embeddings": max_length,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config=text, vision_config=sizes | {"image_size": 32, "patch_size": 8}, projection_dim=width
    )
    model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder
