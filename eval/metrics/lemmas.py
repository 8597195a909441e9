"""Lemmas of an answer's nouns and verbs, from lemminflect's lexicon: OK-VQA's ground truth is lemmatised.

There is no tagger. A word that the lexicon knows as a noun becomes its singular, else a verb becomes its infinitive.
Adjectives ("left", "red") stay. An unknown word stays too, except that a plural loses its ending.
"""

from functools import lru_cache


def lemmatise(answer: str) -> str:
    """Each word's lemma, joined by single spaces, in lower case."""
    return " ".join(_lemma(word) for word in answer.lower().split())


@lru_cache(maxsize=100_000)
def _lemma(word: str) -> str:
    from lemminflect import getAllLemmas, getAllLemmasOOV

    known = getAllLemmas(word)
    if not known and word.isalpha() and word.endswith("s") and not word.endswith("ss"):
        known = getAllLemmasOOV(word, "NOUN")
    for kind in ("NOUN", "VERB"):
        if kind in known:
            return str(known[kind][0])
    return word
