"""Caption tokens as pycocoevalcap's Java tokenizer (Stanford PTBTokenizer 3.4.1, lower-cased) gives them, without Java.

Written from the Java program's observed behaviour: at every position the rule that matches the longest text wins, the
lookahead counted, the earlier rule on a tie. The captions of one call are one text of a line each, as they are there,
because the Java program looks past a line's end: "plan b." ends in the token `b.`, but in `b` when the next line starts
with "A " or "The ".
"""

import re
from collections.abc import Sequence
from functools import lru_cache

# Tokens that pycocoevalcap drops. Lower-casing turns -LRB- into -lrb-, so parentheses stay in, there and here.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
# What ends a line for Java or for str.splitlines: left in a caption, it would shift every later caption.
LINE_SEPARATORS = re.compile("[\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")
FILE_ENDINGS = """
    bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov pdf php pl png ppt ps py sql tar txt
    wav x xml zip
""".split()

BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
SYMBOLS = {
    "\u2018": "`", "\u201b": "`", "\u2039": "`", "\u0091": "`",
    "\u2019": "'", "\u203a": "'", "\u0092": "'",
    "\u201c": "``", "\xab": "``", "\u0093": "``", '"': "''", "\u201d": "''", "\xbb": "''", "\u0094": "''",
    "\u2013": "--", "\u2014": "--", "\u2015": "--", "\u0096": "--", "\u0097": "--", "\u2026": "...",
    "\xa2": "cents", "\xa3": "#", "\xa4": "$", "\u20a0": "$", "\u20ac": "$", "\u0080": "$",
    "\xbc": "1/4", "\xbd": "1/2", "\xbe": "3/4", "\u2153": "1/3", "\u2154": "2/3",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'",
}  # fmt: skip
SPLIT_WORDS = frozenset(["cannot", "gonna", "gotta", "lemme", "gimme", "wanna"])
# Abbreviations that keep their period: titles and the like; those that also end sentences; those only before a digit.
ABBREVIATIONS = """
    adj adm adv alex asst atty ave brig capt cf cie cmdr col cpl dept det dr drs elec ens ft gen gov govs hon insp
    invt jos lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg natl pfc ph pres prof pvt rep reps rev sen sens sfc
    sgt spc st ste supt vs wm
""".split()
TERMINAL_ABBREVIATIONS = """
    al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla fri
    ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc ppte
    ppty pte ptes pty ptys rd rt sep sept seq sq sr sys tel tenn thu tue tues univ va vt wed wis wisc wyo
""".split()
NUMBER_ABBREVIATIONS = "art ca fig figs no nos op pp prop".split()
# After one of these, capitalised, a single letter with a period was the end of a sentence.
SENTENCE_STARTERS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once One
    Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You
""".split()

# Character classes (insides of [...]). Combining marks count as letters, as they do there.
_MARKS = "\u02c2-\u02c5\u02d2-\u02df\u02e5-\u02eb\u02ed\u02ef-\u036f\u0483-\u0487\u0591-\u05bd\u064b-\u065e\u0900-\u0903\u093e-\u094e"
_LETTER = rf"(?:(?![²³¹¼-¾⁰-₎⅐-↉①-⓿❶-➓ƿ])[^\W\d_]|[{_MARKS}])"
_DIGIT = r"\d"
_ALNUM = rf"(?:{_LETTER}|{_DIGIT})"
_APOS = "['\u2019\x92]"
_APOS_OR_QUOTE = "['\u2019\x92`\u2018\x91\u201b]"
_HYPHEN = "[-_\u058a\u2010\u2011]"
_SPACE = "[ \t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]"
_KNOWN_SYMBOL = (
    "[!-/:-@\\[-`{-~\xa1-\xa9\xab-\xac\xae-\xb4\xb6-\xb9\xbb-\xbf\xd7\xf7\u037e\u0387\u0589\u05be\u060c\u061b\u061f\u0964\u0965"
    "\u0e3f\u2013-\u2023\u2026\u2030-\u203b\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e\u20a0\u20a4\u20ac\u2100\u2101"
    "\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u212e\u2153-\u215e\u2190-\u2bff\u3001\u3002"
    "\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6\x80\x91-\x94\x96\x97]"
)
_BREAK = rf"(?:{_SPACE}|\n)"

# Rules: group 1 is the token; the rest of the match is lookahead, which counts for the longest match.
_WORD = rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*"
_NUMBER = rf"(?:{_DIGIT}*(?:[.:,]{_DIGIT}+)+|{_DIGIT}+)"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])*\."
_COMPOUND = rf"(?:[dol]{_APOS_OR_QUOTE}{_ALNUM})?{_ALNUM}+(?:{_HYPHEN}(?:[dol]{_APOS_OR_QUOTE}{_ALNUM})?{_ALNUM}+)*"
_SLASHED_PART = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_EMOTICON_FACE = r"[-\^x=~<>']"
_RULES = [
    r"(</?[A-Za-z!?][A-Za-z0-9_:.-]*(?: [A-Za-z][A-Za-z0-9_:.-]*)*(?: [A-Za-z]+=(?:'[^'\n]*'|\"[^\"\n]*\"))* ?/?>)",
    r"(<!--[^>\n]*-->|<![^ >\n]*>|<\?[^>\n]*\?>)",
    r"(can|gon|got|lem|gim|wan|'t|d')(?:(?<=can)not|(?<=[gw][oa]n)na|(?<=got)ta|(?<=[lg][ei]m)me|(?<='t)(?:is|was)|(?<=d')ye)",
    rf"(mor)(?=e{_APOS}n)",
    rf"({_WORD})(?:{_APOS}(?:[msd]|re|ve|ll))",
    rf"([a-z]*[a-mo-z])n{_APOS_OR_QUOTE}t",
    rf"({_WORD}\.|[A-Za-z0-9]+(?:-[A-Za-z0-9]+)+\.)[,;:]",
    rf"({_WORD})",
    r"(https?://[^ \t\n\xa0\"<>|(){}]+[^ \t\n\xa0\"<>|.!?(){},-])",
    r"((?:www\.(?:[^ \t\n\xa0\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"
    r"|(?:[^ \t\n\xa0\"`'<>|.!?(){},\-_$]+\.)+(?:com|net|org|edu))(?![A-Za-z])(?:/[^ \t\n\xa0\"<>|()]+[^ \t\n\xa0\"<>|.!?(){},-])?)",
    r"([a-zA-Z0-9][^ \t\n\xa0\"<>|()]*@(?:[^ \t\n\xa0\"<>|().]+\.)*[^ \t\n\xa0\"<>|().]+)",
    r"(<[a-zA-Z0-9][^ \t\n\xa0\"<>|()]*@(?:[^ \t\n\xa0\"<>|().]+\.)*[^ \t\n\xa0\"<>|().]+>)",
    r"(@[A-Za-z_][A-Za-z_0-9]*)",
    rf"(#{_LETTER}+)",
    rf"({_APOS}(?:[msd]|re|ve|ll))(?=[^A-Za-z]|\Z)",
    r"([\u2019\x92](?:[msd]|re|ve|ll|n))",
    rf"(n{_APOS_OR_QUOTE}t)(?=[^A-Za-z]|\Z)",
    rf"({_APOS}n(?:{_APOS}|(?![A-Za-z]))|[ldj]{_APOS}|dunkin{_APOS}|somethin{_APOS}|ol{_APOS}|{_APOS}em|{_APOS}[2-9]0s|{_APOS}till?"
    rf"|{_APOS}cause|o{_APOS_OR_QUOTE}o|c{_APOS}est|{_APOS}[0-9][0-9](?=\s))",
    rf"((?-i:[A-HJ-XZn]){_APOS_OR_QUOTE}{_LETTER}{{2}}{_LETTER}*"
    rf"|{_LETTER}+[aeiouy]{_APOS_OR_QUOTE}(?-i:[aeiouA-Z]){_LETTER}*)",
    rf"((?:nor{_APOS}easter|c{_APOS}mon|ne{_APOS}er|e{_APOS}er|s{_APOS}mores|ev{_APOS}ry|li{_APOS}l|nat{_APOS}l|cap{_APOS}n"
    rf"|ma{_APOS}am|o{_APOS}clock))",
    rf"(y{_APOS})(?={_LETTER})",
    rf"({_COMPOUND})",
    r"((?-i:[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+))",
    rf"({_SLASHED_PART}(?:\\?/{_SLASHED_PART}){{1,2}})",
    rf"([A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9]+))+)",
    rf"([-+]?{_NUMBER})",
    rf"({_ALNUM}+(?:\.{_ALNUM}+)*\.(?:{'|'.join(FILE_ENDINGS)}))(?!{_ALNUM})",
    rf"((?:{_DIGIT}{{1,4}}[- \xa0])?{_DIGIT}{{1,4}}(?:\\?/|\u2044){_DIGIT}{{1,4}})",
    rf"((?:\({_DIGIT}{{2,3}}\)[ \xa0]?|(?:\+\+?)?(?:{_DIGIT}{{2,4}}[- \xa0])?{_DIGIT}{{2,4}}[- \xa0])"
    rf"{_DIGIT}{{3,4}}[- \xa0]?{_DIGIT}{{3,5}})",
    rf"((?:{'|'.join(ABBREVIATIONS + TERMINAL_ABBREVIATIONS)})\.)",
    rf"((?:{'|'.join(TERMINAL_ABBREVIATIONS)})\.)(?s:..)",
    rf"((?:{'|'.join(NUMBER_ABBREVIATIONS)})\.){_BREAK}?{_DIGIT}",
    rf"({_ACRONYM}|ph\.?d\.)",
    # A single letter before a new sentence gives its period back; so does one at the very end of the text.
    rf"([A-Za-z])\.(?:{_BREAK}+(?:(?-i:(?=[A-Z]))(?:{'|'.join(SENTENCE_STARTERS)}){_BREAK}|</?[A-Za-z][^>\n]*>)|.?\Z)",
    r"((?-i:[A-Z]+)\$)",
    r"([<>]?[:;=][-o*']?(?-i:[()DPdpO\\{@|\[\]]))(?![A-Za-z0-9])",
    rf"({_EMOTICON_FACE}_{_EMOTICON_FACE}|\({_EMOTICON_FACE}[_.]?{_EMOTICON_FACE}\)|[oxt0]_[oxt0])",
    r"([?!]+|\*\*+|##+|__+|@@+|<<|>>|---+|--|\.\.\.|\. \. \.|''|``|c\+\+|c#)",
    r"(&(?:amp|lt|gt|quot|#[0-9]+);|\\\\[*/])",
    rf"({_KNOWN_SYMBOL})",
]  # fmt: skip
_COMPILED = [re.compile(rule, re.IGNORECASE) for rule in _RULES]
# The great majority: a plain word before a space, a comma or the end of a line, in no rule's special list.
_PLAIN = re.compile(
    rf"{_SPACE}*([A-Za-z]{{2,}}(?:-[A-Za-z]+)*|[A-Za-z])(?=[ \n]|\Z)|{_SPACE}*(?:([A-Za-z]{{2,}}),|(,))(?=[ \n]|\Z)"
)
_SKIPPED = re.compile(rf"{_SPACE}+")


def tokenize(captions: Sequence[str]) -> list[str]:
    """Each caption's tokens, joined by single spaces, as `PTBTokenizer().tokenize` gives them for the same sequence."""
    lines = [
        LINE_SEPARATORS.sub(" ", caption).replace("\xad", "").replace("&nbsp;", " ").replace("&apos;", "'")
        for caption in captions
    ]
    text, position, end_of_text = "\n".join(lines), 0, False
    tokenized: list[list[str]] = [[]]
    while not end_of_text:
        if position >= len(text):
            end_of_text = True
        elif text[position] == "\n":
            tokenized.append([])
            position += 1
        elif plain := _PLAIN.match(text, position):
            word = (plain[1] or plain[2] or plain[3]).lower()
            tokenized[-1].extend([word[:3], word[3:]] if word in SPLIT_WORDS else [word])
            position = plain.end()
        elif skipped := _SKIPPED.match(text, position):
            position = skipped.end()
        else:
            raw, position = _longest(text, position)
            tokenized[-1].append(_normal(raw))
    return [
        " ".join(token for token in line if token and token not in PUNCTUATION) for line in tokenized[: len(captions)]
    ]


def _longest(text: str, position: int) -> tuple[str, int]:
    """The token at `position` and where the next one starts; an unknown character gives no token."""
    best, best_end, next_position = "", position, position + 1
    for rule in _COMPILED:
        match = rule.match(text, position)
        if match and match.end() > best_end:
            best, best_end, next_position = match[1], match.end(), match.end(1)
    return best, next_position


@lru_cache(maxsize=100_000)
def _normal(raw: str) -> str:
    """A token as the Java program writes it: lower case, brackets and quotes spelt out, no plain space inside."""
    if raw in SYMBOLS:
        return SYMBOLS[raw]
    if raw in ("--", "---", "----"):
        return "--"
    if re.fullmatch(rf"{_APOS}(?:[msd]|re|ve|ll)|n{_APOS}t", raw, re.IGNORECASE):
        return re.sub(_APOS, "'", raw).lower()
    if re.fullmatch("n[\u2018\x91]t", raw, re.IGNORECASE):
        return "n`t"
    brackets = BRACKETS if len(raw) == 1 else {"(": "-lrb-", ")": "-rrb-"}
    token = "".join(brackets.get(character, character) for character in raw.lower())
    return "..." if token == ". . ." else token.replace(" ", "\xa0")
