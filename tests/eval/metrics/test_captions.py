"""Caption metrics against pycocoevalcap itself (Java tokenizer, BLEU, ROUGE-L, CIDEr)."""

import random
import re
import shutil
from collections.abc import Callable

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from eval.metrics.captions import caption_scores, corpus_bleu
from eval.metrics.ptb_tokens import tokenize
from tests.support.java_tokenizer import java_tokenize

VOCABULARY = (
    "a A the man man's woman women's dog dogs' it's isn't can't don't they're I'd cannot gonna of on in "
    "and/or with black-and-white t-shirt teddy-bear o'clock rock 'n' roll U.S. u.s. mr. St. no. No. etc. e.g. "
    "p.m. 5:30 2 10 3.5 1,000 1/2 2nd 1950's '90s 50% $5 #1 @you w/ b. c. I x-ray IMG_2034.jpg AT&T R&B "
    "www.example.com café naïve “quoted” ‘single’ dog’s – — … ( ) [left] {x} \"loud\" 'soft' ! ? , ; : ... -- - "
    "!! ?! / & * + = ~ <unk> :) 6\" 5'6 &amp; 70° ½ 10m² ™ 日本 😀 skateboard street The "
)
WORDS = VOCABULARY.split()
SEPARATORS = "\n\r\x0b\x0c\x85\u2028\u2029"
PUNCTUATION = ".,.,.,.,'\"-!?:;()/&"


def random_caption(rng: random.Random, longest: int = 14) -> str:
    words = []
    for _ in range(rng.randint(0, longest)):
        word = rng.choice(WORDS)
        if rng.random() < 0.15:
            word = word + rng.choice(PUNCTUATION) if rng.random() < 0.7 else rng.choice(PUNCTUATION) + word
        words.append(word)
    text = " ".join(words)
    return text[:1].upper() + text[1:] + "." if rng.random() < 0.5 else text


def simple_caption(rng: random.Random, longest: int = 12) -> str:
    return " ".join(rng.choices(WORDS[:14], k=rng.randint(0, longest)))


@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed: nothing to compare the tokenizer with")
def test_tokens_equal_those_of_the_java_tokenizer() -> None:
    rng = random.Random(0)
    captions = [random_caption(rng) for _ in range(4000)]
    captions += ["", "plan b.", "The end", "plan b.", "the end", "", "", "vitamin c.", "", *captions[:3], "in c."]
    differ = [
        (caption, java, mine)
        for caption, java, mine in zip(captions, java_tokenize(captions), tokenize(captions), strict=True)
        if java != mine
    ]
    assert differ == []


BEFORE_TWO_SIGNS = "o'clock 5in 3d 5th 100 1.5 2,000 d'or 5-in 12.5-in a/b AT&T R&B at&t ma'am don't mr u.s é3 2_3"


@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed: nothing to compare the tokenizer with")
def test_a_period_before_another_sign_stays_where_java_leaves_it() -> None:
    captions = [
        f"a {word}{signs} x" for word in BEFORE_TWO_SIGNS.split() for signs in (".,", ".;", ".:", "....5", "......5")
    ]
    assert [pair for pair in zip(captions, java_tokenize(captions), tokenize(captions), strict=True)
            if pair[1] != pair[2]] == []  # fmt: skip


AWKWARD = (
    "e\u0301a n\u0303o cafe\u0301 12\u0301 e-\u0369 \u0301 5\u20e3 i\u0308 x\u0327y-z so\xadft \xad c\xadat-dog "
    "\xadcat-dog b\xad. mr\xad. mr.\xad 1\xad2 5\xad/6 can\xadnot don\xad't do\xadn't can't\xadso a@b\xad.com e.\xadg. "
    "\x00 a\x00b \x00http://a.com http://a.com\x00 tp://foo tp://foo.com htp://b.com/c ftp://a.b.c 9.com a=b.com "
    "a[b.com x:y.com www.a.comx %a.comx %a.com/b 'n 'n. 'n5 'n\u0303 'n\u00e9 rock'n'roll #e\u0301 #a1 F#x C# x\\*y "
    "x\\/y 1\\/2 x@y.com{j \u200b \u200d \ufeff dog cat's the ."
)


@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed: nothing to compare the tokenizer with")
def test_tokens_of_marks_soft_hyphens_control_characters_and_half_addresses_are_javas_too() -> None:
    rng = random.Random(0)
    words = AWKWARD.split(" ")
    captions = [" ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(3000)] + words
    assert [pair for pair in zip(captions, java_tokenize(captions), tokenize(captions), strict=True)
            if pair[1] != pair[2]] == []  # fmt: skip


ENTITIES = ("&amp;", "&AMP;", "&Amp;", "&lt;", "&GT;", "&quot;", "&QUOT;", "&nbsp;", "&NBSP;")
SPACES = ("\xa0", "\u1680", "\u2003", "\u202f", "\u205f", "\u3000")
AROUND = """
a {} b|a{}b|{}|it{}s|dog{} cat|dog {}cat|A{}B|R{}D x|A{}B{}C|http://x.com/?a=1{}b=2|see http://x.com{}dog runs
x.com{}|http://x.com.{}dog|x.com/a{}b|www.x.com{}http://y.com|a{}b@c.com|a@b.com{}|#a{}b|1{}2|no.{}5|mr.{}smith
a.{}The dog|plan b.{}A dog|555{}1234|1{}1/2|5{} 6|{}{}
"""


@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed: nothing to compare the tokenizer with")
def test_tokens_of_entities_and_spaces_of_all_kinds_are_javas_too() -> None:
    captions = [around.replace("{}", each) for each in (*ENTITIES, *SPACES) for around in re.split(r"[|\n]", AROUND)]
    assert [pair for pair in zip(captions, java_tokenize(captions), tokenize(captions), strict=True)
            if pair[1] != pair[2]] == []  # fmt: skip


NAMED = ["-LRB-", "-RRB-", "-LCB-", "-RCB-", "-LSB-", "-RSB-", "-lrb-", "-Rrb-", "-LRBS-", "LRB-", "-LAB-"]
BESIDE = """
a {} b|{}|a{}b|x {}b|x a{} c|x {}. c|x -{}- c|{}{} z|5{} b|a {}5 b|2{}3|dog{}cat's|{}'s dog|{}n't|a_{}_b|&amp;{}&lt;
({})|a.{}b|u.s.{}|x,{},y|10%{}|-1{}|http://a.com/{} b|a@{}.com
"""


@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed: nothing to compare the tokenizer with")
def test_tokens_of_brackets_that_are_spelt_out_already_are_javas_too() -> None:
    captions = [around.replace("{}", each) for each in NAMED for around in re.split(r"[|\n]", BESIDE)]
    assert [pair for pair in zip(captions, java_tokenize(captions), tokenize(captions), strict=True)
            if pair[1] != pair[2]] == []  # fmt: skip


def test_line_separators_inside_a_caption_shift_no_other_caption() -> None:
    clean = ["a dog runs", "two cats", "a red bus"]
    for separator in "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029":
        assert tokenize([f"a dog{separator}runs", *clean[1:]]) == tokenize(clean)


@pytest.mark.parametrize("make", [random_caption, simple_caption])
def test_bleu_rouge_and_cider_equal_pycocoevalcap(make: Callable[[random.Random], str]) -> None:
    """10,000 captions: empty ones, unicode, line breaks, one to ten references."""
    rng = random.Random(1)
    images = 1600

    def broken(count: int) -> list[str]:
        return tokenize([make(rng).replace(" ", rng.choice(SEPARATORS), rng.randint(0, 1)) for _ in range(count)])

    predictions = broken(images)
    references = [broken(rng.randint(1, 10)) for _ in range(images)]
    assert sum(map(len, references)) + images > 10_000
    ours = caption_scores(predictions, references)
    gts, res = dict(enumerate(references)), {i: [prediction] for i, prediction in enumerate(predictions)}
    bleu, bleus = Bleu(4).compute_score(gts, res, verbose=0)
    assert np.abs(corpus_bleu(ours.bleu_statistics.sum(axis=0)) - bleu).max() < 1e-9
    assert np.abs(ours.bleu - np.array(bleus).T).max() < 1e-9
    for scorer, scores in ((Rouge(), ours.rouge_l), (Cider(), ours.cider)):
        mean, per_image = scorer.compute_score(gts, res)
        assert np.abs(scores - per_image).max() < 1e-9
        assert abs(scores.mean() - mean) < 1e-9


def test_cider_of_all_empty_captions_is_zero() -> None:
    assert caption_scores(["", ""], [[""], ["", ""]]).cider.tolist() == [0.0, 0.0]


def test_an_image_without_references_is_refused() -> None:
    with pytest.raises(ValueError, match="image row 1 has no reference"):
        caption_scores(["a", "b"], [["a"], []])
