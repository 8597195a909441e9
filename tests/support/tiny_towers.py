"""Tiny random towers in the folders that production loads: a timm ViT, a BERT, a T5 and an OPT."""

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

IMAGE_SIZE_PX = 32
TEXT = "a an the of picture red green blue yellow dark light colour is number question answer short photo"
WORDS = [*TEXT.split(), *"0123456789?:", "\n"]


def save_tiny_vision(folder: Path, seed: int = 0, depth: int = 3, width: int = 32) -> str:
    """A timm ViT of 16 patches and CLS. Returns its name, `local-dir:FOLDER`."""
    size = {"img_size": IMAGE_SIZE_PX, "patch_size": 8, "embed_dim": width, "depth": depth, "num_heads": 4}
    return save_timm(folder, seed, "vit_base_patch32_clip_224", size)


def save_tiny_eva(folder: Path, seed: int = 0) -> str:
    """The same of ViT-g's architecture: EVA's biases on queries and values alone, no norm before the blocks."""
    size = {"img_size": IMAGE_SIZE_PX, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2}
    return save_timm(folder, seed, "eva_giant_patch14_clip_224", size)


def save_timm(folder: Path, seed: int, architecture: str, arguments: dict[str, int]) -> str:
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    model = timm.create_model(architecture, pretrained=False, num_classes=0, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():  # large, so that each matters: timm starts biases at zero
            parameter.add_(torch.randn_like(parameter) * 0.1)
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": arguments["embed_dim"],
        "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, IMAGE_SIZE_PX, IMAGE_SIZE_PX], "mean": [0.5] * 3, "std": [0.25] * 3},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    return f"local-dir:{folder}"


def save_tiny_bert(folder: Path, seed: int = 0, width: int = 32, num_layers: int = 4) -> str:
    """A BertForMaskedLM with dropout-free defaults left as they are, and its tokenizer. Returns the folder."""
    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(word for word in WORDS if word.strip())]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=40,
        initializer_range=0.2,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return str(folder)


def word_tokenizer(specials: list[str], template: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    words.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(name, vocabulary[name]) for name in specials]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", bos_token="</s>", unk_token="<unk>"
    )


def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE as OPT's: a word holds the space before it, and </s> begins a text."""
    bytes_of_words = Tokenizer(models.BPE())
    bytes_of_words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_of_words.decoder = decoders.ByteLevel()
    alphabet, specials = pre_tokenizers.ByteLevel.alphabet(), ["<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=specials, initial_alphabet=alphabet)
    bytes_of_words.train_from_iterator([f"{word} {TEXT} a photo of: {word}" for word in TEXT.split()], trainer)
    bytes_of_words.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_of_words, pad_token="<pad>", eos_token="</s>", bos_token="</s>", unk_token="<unk>"
    )


def save_tiny_t5(folder: Path, seed: int = 0, width: int = 32) -> str:
    """A T5ForConditionalGeneration whose tokenizer appends </s>. Returns the folder."""
    folder.mkdir(parents=True)
    tokenizer = word_tokenizer(["<pad>", "</s>", "<unk>"], "$A </s>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def save_tiny_opt(folder: Path, seed: int = 0, width: int = 32, *, bpe: bool = False) -> str:
    """An OPTForCausalLM whose tokenizer, of words or of byte pairs, prepends </s>. Returns the folder."""
    folder.mkdir(parents=True)
    tokenizer = bpe_tokenizer() if bpe else word_tokenizer(["<pad>", "</s>", "<unk>"], "</s> $A")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        init_std=0.2,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    OPTForCausalLM(config).save_pretrained(folder)
    return str(folder)


def tiny_recipe(
    towers: Path, manifest: Path, output: Path, stage: int, language: str | None = None
) -> dict[str, object]:
    """A recipe over tiny towers under `towers` (made where missing), as the content of a YAML file."""
    vision, bert = towers / "vision", towers / "bert"
    content: dict[str, object] = {
        "stage": stage,
        "seed": 1,
        "vision": {
            "name": f"local-dir:{vision}" if vision.exists() else save_tiny_vision(vision),
            "precision": "fp32",
            "image_size_px": IMAGE_SIZE_PX,
        },
        "qformer": {
            "bert": str(bert) if bert.exists() else save_tiny_bert(bert),
            "num_query_tokens": 4,
            "projection_width": 16,
            "precision": "fp32",
        },
        "data": {"manifest": str(manifest), "num_workers": 0, "horizontal_flip": False},
        "batch": {"global_size": 4, "micro_size": 2},
        "optimizer": {"warmup_steps": 2, "peak_learning_rate": 1e-3},
        "run": {"output": str(output), "steps": 4, "log_every_steps": 1, "checkpoint_every_steps": 2},
    }
    if language:
        folder = towers / language
        if not folder.exists():
            {"t5": save_tiny_t5, "opt": save_tiny_opt}[language](folder)
        content["language"] = {"name": str(folder), "precision": "fp32"}
    return content
