"""The two VQA accuracy rules, written a second time, step by step, as the oracle of the fast ones."""

import re

MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
DIGITS = {"zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7"}
DIGITS |= {"none": "0", "eight": "8", "nine": "9", "ten": "10"}
# A sample of the published contractions table, every kind of entry in it.
CONTRACTIONS = {
    "aint": "ain't",
    "dont": "don't",
    "couldnt": "couldn't",
    "couldn'tve": "couldn't've",
    "couldnt've": "couldn't've",
    "hes": "he's",
    "oclock": "o'clock",
    "somebody'd": "somebodyd",
    "somebodyd've": "somebody'd've",
    "thats": "that's",
    "twas": "'twas",
    "'ow'sat": "'ow's'at",
    "yall": "y'all",
    "y'allll": "y'all'll",
    "whats": "what's",
}


def punctuation(text: str) -> str:
    out = text
    for mark in MARKS:
        removed = mark + " " in text or " " + mark in text or re.search(r"\d,\d", text) is not None
        out = out.replace(mark, "") if removed else out.replace(mark, " ")
    kept, dropped = "", 0
    for place, character in enumerate(out):
        digit_follows = place + 1 < len(out) and out[place + 1].isdecimal()
        if character == "." and not digit_follows and dropped < 32:
            dropped += 1
        else:
            kept += character
    return kept


def words(text: str) -> str:
    out = []
    for written in text.lower().split():
        word = DIGITS.get(written, written)
        if word not in ("a", "an", "the"):
            out.append(CONTRACTIONS.get(word, word))
    return " ".join(out)


def leave_one_out(prediction: str, answers: list[str]) -> float:
    scores = []
    for place in range(len(answers)):
        others = answers[:place] + answers[place + 1 :]
        scores.append(min(1.0, others.count(prediction) / 3))
    return 100 * sum(scores) / len(scores)


def official(prediction: str, answers: list[str]) -> float:
    prediction = prediction.replace("\n", " ").replace("\t", " ").strip()
    answers = [answer.replace("\n", " ").replace("\t", " ").strip() for answer in answers]
    if any(answer != answers[0] for answer in answers):
        prediction = words(punctuation(prediction))
        answers = [words(punctuation(answer)) for answer in answers]
    return leave_one_out(prediction, answers)


def legacy(prediction: str, answers: list[str]) -> float:
    prediction = words(punctuation(prediction.replace("\n", " ").replace("\t", " ").strip()))
    if any(answer != answers[0] for answer in answers):
        answers = [punctuation(answer) for answer in answers]
    return leave_one_out(prediction, answers)
