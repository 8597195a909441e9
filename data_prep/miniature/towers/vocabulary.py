"""Makes the tokenizers of the towers; they share one closed vocabulary, and any other word is unknown."""

from typing import Any

from data_prep.miniature.captions import LEADS, NUMBER_WORDS, RELATION_WORDS, SIZE_WORDS
from data_prep.miniature.questions import SYNONYMS
from data_prep.miniature.scenes import BACKGROUNDS, COLOURS, SHAPES

MAX_TOKENS = 64
"""The most tokens of a text in every tower."""

_FUNCTION_WORDS = (
    "a an the one and is are there this on with including background thing things shape shapes"
    " what colour how many question short answer yes no 1 2 3 picture image photo of in it , . ? ! : -"
)


def words() -> list[str]:
    """All words and marks of captions, questions, answers and prompts, sorted."""
    parts = [*SHAPES, *COLOURS, *BACKGROUNDS, *SIZE_WORDS, *RELATION_WORDS, *NUMBER_WORDS, *LEADS]
    parts += [*SYNONYMS, *SYNONYMS.values(), _FUNCTION_WORDS]
    return sorted({word for part in parts for word in part.split()})


def bert_tokenizer() -> Any:
    """A BertTokenizer with the vocabulary."""
    from transformers import BertTokenizer

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words()]
    return BertTokenizer(
        vocab={word: i for i, word in enumerate(vocabulary)}, do_lower_case=True, model_max_length=MAX_TOKENS
    )


def t5_tokenizer() -> Any:
    """Like T5's: the padding id is 0, and `</s>` is appended."""
    return _word_tokenizer(["<pad>", "</s>", "<unk>"], before=None, after="</s>", pad="<pad>", unk="<unk>", eos="</s>")


def opt_tokenizer() -> Any:
    """Like OPT's: `</s>` comes first. A newline token ends captions and answers."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    return _word_tokenizer(
        special, before="</s>", after=None, pad="<pad>", unk="<unk>", eos="</s>", bos="</s>", plain=("\n",)
    )


def clip_tokenizer() -> Any:
    """Like CLIP's: start and end tokens. The id of the end token is not 2: for 2, CLIPModel would pool at the largest
    id."""
    begin, end = "<|startoftext|>", "<|endoftext|>"
    return _word_tokenizer(
        ["<|pad|>", begin, "<|unknown|>", end],
        before=begin, after=end, pad="<|pad|>", unk="<|unknown|>", eos=end, bos=begin,
    )  # fmt: skip


def _word_tokenizer(
    special: list[str],
    *,
    before: str | None,
    after: str | None,
    pad: str,
    unk: str,
    eos: str,
    bos: str | None = None,
    plain: tuple[str, ...] = (),
) -> Any:
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*special, *plain, *words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unk))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
    template = [token for token in (before, "$A", after) if token]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, vocabulary[token]) for token in (before, after) if token]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token=unk, eos_token=eos, bos_token=bos,
        model_max_length=MAX_TOKENS, clean_up_tokenization_spaces=False,
    )  # fmt: skip
