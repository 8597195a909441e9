"""What a language model is asked: the paper's prompts and lengths, or the prompt of a model's fine-tuning.

Evaluation, `pipeline.generate` and `pipeline.load` have them from here, so they give the same text.
"""

from collections.abc import Sequence
from typing import Any

from pipeline.config import Recipe
from pipeline.data.captions import clean_question

CAPTION_PROMPT = "a photo of"  # paper, appendix: COCO captioning
QUESTION_PROMPTS = {"causal": "Question: {} Answer:", "seq2seq": "Question: {} Short answer:"}  # paper, section 4.1
CHAT_PROMPT = "Question: {} Answer:"  # paper, Figure 4
NAMED_PROMPTS = {
    "caption": CAPTION_PROMPT, "answer": QUESTION_PROMPTS["causal"], "short-answer": QUESTION_PROMPTS["seq2seq"],
}  # fmt: skip
"""The paper's prompts by name: OPT's for questions is `answer`, FlanT5's `short-answer`."""
CAPTION_DECODING: dict[str, Any] = {
    "num_beams": 5, "max_new_tokens": 30, "min_new_tokens": None, "length_penalty": 1.0,
}  # fmt: skip
ANSWER_DECODING: dict[str, Any] = {
    "num_beams": 5, "max_new_tokens": 10, "min_new_tokens": 1, "length_penalty": -1.0,
}  # fmt: skip
CHAT_DECODING: dict[str, Any] = {"max_new_tokens": 30, "length_penalty": 1.0}  # in place of an answer's
CHAT_TURNS = 16  # earlier turns that are repeated; OPT reads 2,048 tokens
# Of a caption, by the kind of language model. The paper's code counts the 4 tokens of BOS and prompt among a causal
# model's 8.
MIN_CAPTION_TOKENS = {"causal": 4, "seq2seq": 8}


def _tuned(recipe: Recipe) -> str:
    return recipe.language.prompt if recipe.language else ""


def caption_prompt(recipe: Recipe) -> str:
    """The prompt that a model was fine-tuned with, else the paper's."""
    tuned = _tuned(recipe)
    return tuned if tuned and "{}" not in tuned else CAPTION_PROMPT


def question_prompt(recipe: Recipe, language_kind: str) -> str:
    """The prompt that a model was fine-tuned with, else the paper's; {} stands for the question."""
    tuned = _tuned(recipe)
    return tuned if "{}" in tuned else QUESTION_PROMPTS[language_kind]


def chat_prompt(recipe: Recipe) -> str:
    """The same for a turn of a conversation."""
    tuned = _tuned(recipe)
    return tuned if "{}" in tuned else CHAT_PROMPT


def as_trained(question: str, recipe: Recipe) -> str:
    """A question as fine-tuning cleans it; as it is for a model that was not trained on questions."""
    return clean_question(question) if recipe.data.sample == "question" else question


def fill(prompt: str, question: str) -> str:
    """The question in the prompt, in place of {}. Raises ValueError for a prompt without exactly one {}."""
    if prompt.count("{}") != 1:
        raise ValueError(f"--prompt {prompt!r}: it needs one {{}} where the question goes")
    return prompt.replace("{}", question)


def read_by_qformer(question: str, filled: str, recipe: Recipe) -> str | None:
    """What the Q-Former reads beside the picture: the question, or the filled prompt; None where it reads neither."""
    return {"none": None, "question": question, "prompt": filled}[recipe.qformer.question]


def conversation(earlier: Sequence[tuple[str, str]], prompt: str, filled: str) -> str:
    """The filled prompt after earlier (question, answer) turns, joined as in the paper's Figure 4."""
    return " ".join([*(f"{fill(prompt, question)} {answer}." for question, answer in earlier), filled])
