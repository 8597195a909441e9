"""Ranks a closed list of answers to a question by the language model's log-likelihood (BLIP's `rank_answer`).

An answer's score is the sum of the log-probabilities of its tokens and of its end, not their mean. The answers whose
first token is most likely are candidates; the best of them is the answer.

Shapes: K answers, L tokens of the longest, C candidates, Q soft prompts, N positions of them and the prompt, H width of
the language model, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.models.language import CausalTower, LanguageTower, Seq2SeqTower
from pipeline.models.precision import at_least_fp32
from pipeline.tokens import Tokens, pad_tokens

AT_ONCE = 128  # candidates of one pass: each has its copy of the prompt's keys and values
MAX_ANSWER_TOKENS = 64


@dataclass
class _Read:
    """A prompt that was read once: logits of the token after it, and its keys and values, with a copy for each row."""

    first_V: Tensor
    cache: Any
    mask_1N: Tensor
    encoded_1NH: Tensor | None  # of a seq2seq model
    rows: int = 1

    def copy_for(self, rows: int) -> None:
        """So many rows; after the first time, at most as many as before."""
        if rows > self.rows:
            assert self.rows == 1, "the first candidates are the most at once"
            self.cache.batch_repeat_interleave(rows)
        elif rows < self.rows:
            self.cache.batch_select_indices(torch.arange(rows, device=self.mask_1N.device))
        self.rows = rows

    def inputs(self, ids_CL: Tensor) -> dict[str, Any]:
        """The model's arguments that go on with these tokens."""
        if self.encoded_1NH is None:
            return {"input_ids": ids_CL, "past_key_values": self.cache, "use_cache": True}
        return {
            "encoder_outputs": (self.encoded_1NH.expand(self.rows, -1, -1),),
            "attention_mask": self.mask_1N.expand(self.rows, -1),
            "decoder_input_ids": ids_CL,
            "past_key_values": self.cache,
            "use_cache": True,
        }


class Ranking:
    """A list of answers, ready to be ranked by one language model for one template of prompts."""

    def __init__(
        self, language: LanguageTower, answers: Sequence[str], template: str, end_text: str, num_candidates: int
    ) -> None:
        """`template` has a {} for the question; `end_text` ends an answer of a causal model.

        Raises ValueError when an answer is too long, or the model cannot read a prompt once for many answers.
        """
        assert isinstance(language, CausalTower | Seq2SeqTower), "all towers are one of the two"
        if not language.cache_can_be_copied:
            raise ValueError(
                f"--answers: {language.model.config.model_type!r} models have no keys and values that can be copied "
                "for each answer; leave the flag out, and answers are generated"
            )
        self.language, self.answers, self.num_candidates = language, tuple(answers), num_candidates
        self.tokens = _tokens(language, answers, template, end_text).to(str(language.embed_tokens.weight.device))

    @torch.no_grad()
    def best(self, prompts_1QH: Tensor | None, prompt: str) -> str:
        """The answer to one filled prompt after its soft prompts (None: after the text alone)."""
        read = self._read(prompts_1QH, prompt)
        first_K = torch.log_softmax(at_least_fp32(read.first_V), dim=0)[self.tokens.ids[:, 0]]
        likely = torch.argsort(first_K, descending=True, stable=True)[: self.num_candidates]
        candidates_C = likely.sort().values  # of equally likely answers, the first in the list is taken
        scores = [
            score
            for begin in range(0, len(candidates_C), AT_ONCE)
            for score in self._scores(candidates_C[begin : begin + AT_ONCE], first_K, read)
        ]
        return self.answers[int(candidates_C[scores.index(max(scores))])]

    def _scores(self, some_C: Tensor, first_K: Tensor, read: _Read) -> list[float]:
        """The summed log-probabilities of the tokens of some answers."""
        real_CL = self.tokens.is_token[some_C]
        length = int(real_CL.sum(dim=1).max())
        scores_C = first_K[some_C]
        if length > 1:
            ids_CL = self.tokens.ids[some_C, :length]
            read.copy_for(len(some_C))
            logits_CLV = self.language.model(**read.inputs(ids_CL[:, :-1])).logits
            read.cache.crop(1 - length)  # the prompt alone again
            likely_CL = torch.log_softmax(at_least_fp32(logits_CLV), dim=2).gather(2, ids_CL[:, 1:, None])[:, :, 0]
            scores_C = scores_C + likely_CL.masked_fill(~real_CL[:, 1:length], 0).sum(dim=1)
        found: list[float] = scores_C.tolist()
        return found

    def _read(self, prompts_1QH: Tensor | None, prompt: str) -> _Read:
        language, model = self.language, self.language.model
        text = language._tokenise([prompt], padding_side="right")
        embeddings_1NH, mask_1N = language._inputs(prompts_1QH, text)
        if isinstance(language, CausalTower):
            read = model(inputs_embeds=embeddings_1NH, use_cache=True, logits_to_keep=1)
            return _Read(read.logits[0, -1], read.past_key_values, mask_1N, None)
        encoded = model.get_encoder()(inputs_embeds=embeddings_1NH, attention_mask=mask_1N)
        start_11 = language._decoder_ids(self.tokens.ids[:1])[:, :1]
        read = model(encoder_outputs=encoded, attention_mask=mask_1N, decoder_input_ids=start_11, use_cache=True)
        return _Read(read.logits[0, -1], read.past_key_values, mask_1N, encoded[0])


def _tokens(language: CausalTower | Seq2SeqTower, answers: Sequence[str], template: str, end_text: str) -> Tokens:
    """Each answer and its end, as fine-tuning has them after the prompt. [K, L]."""
    tokenizer = language.tokenizer
    if isinstance(language, CausalTower):
        prompt = template.replace("{}", "a")
        alone = tokenizer(prompt).input_ids
        whole = tokenizer([f"{prompt} {answer}{end_text}" for answer in answers]).input_ids
        joined = next((answer for answer, ids in zip(answers, whole, strict=True) if ids[: len(alone)] != alone), None)
        if joined is not None:
            raise ValueError(
                f"--prompt {template!r}: the tokenizer joins it with answer {joined!r}; use another prompt"
            )
        rows = [ids[len(alone) :] for ids in whole]
    else:
        end = [tokenizer.eos_token_id]
        rows = [ids + end for ids in tokenizer(list(answers), add_special_tokens=False).input_ids]
    longest = max(range(len(rows)), key=lambda place: len(rows[place]))
    if len(rows[longest]) > MAX_ANSWER_TOKENS:
        raise ValueError(
            f"--answers: {answers[longest][:40]!r} has {len(rows[longest])} tokens, at most {MAX_ANSWER_TOKENS} are "
            "ranked; shorten it"
        )
    return pad_tokens(rows, tokenizer.pad_token_id)
