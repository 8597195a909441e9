"""The rules of Stanford's PTBTokenizer 3.4.1 as regular expressions, found by observing the Java program.

In each rule, group 1 is the token and the rest of the match is lookahead. All rules ignore case, except (?-i:...).
"""

# Abbreviations that keep their period: titles and the like; those that also end sentences; those only before a digit.
ABBREVIATIONS = (
    "adj|adm|adv|alex|asst|atty|ave|brig|capt|cf|cie|cmdr|col|cpl|dept|det|dr|drs|elec|ens|"
    "ft|gen|gov|govs|hon|insp|invt|jos|lt|maj|messrs|mfg|mlle|mme|mr|mrs|ms|msgr|mt|mtg|natl|"
    "pfc|ph|pres|prof|pvt|rep|reps|rev|sen|sens|sfc|sgt|spc|st|ste|supt|vs|wm"
)
TERMINAL_ABBREVIATIONS = (
    "al|ala|apr|ariz|assn|aug|bhd|bldg|blvd|bros|calif|co|colo|conn|corp|cos|ct|dak|dec|esq|"
    "est|etc|ext|feb|fla|fri|ga|inc|ind|intl|jan|jr|jul|jun|kan|kans|ky|ltd|mar|md|mich|"
    "minn|mo|mon|mont|neb|nev|nov|oct|okla|penn|plc|ppte|ppty|pte|ptes|pty|ptys|rd|rt|sep|"
    "sept|seq|sq|sr|sys|tel|tenn|thu|tue|tues|univ|va|vt|wed|wis|wisc|wyo"
)
NUMBER_ABBREVIATIONS = "art|ca|fig|figs|no|nos|op|pp|prop"
# A single letter with a period was the end of a sentence when one of these, capitalised, comes next.
SENTENCE_STARTERS = (
    "A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|"
    "Last|Many|More|Mr\\.|Ms\\.|Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|"
    "These|They|This|We|What|When|While|Yet|You"
)
FILE_ENDINGS = (
    "bat|bmp|c|cgi|class|cpp|dll|doc|docx|exe|gif|gz|h|htm|html|jar|java|jpeg|jpg|mov|pdf|"
    "php|pl|png|ppt|ps|py|sql|tar|txt|wav|x|xml|zip"
)

# Character classes (insides of [...]). As in the Java program, combining marks count as letters of plain words, and so
# does the soft hyphen, which the token then loses.
MARKS = (
    "\xad\u02c2-\u02c5\u02d2-\u02df\u02e5-\u02eb\u02ed\u02ef-\u036f\u0483-\u0487\u0591-\u05bd"
    "\u064b-\u065e\u0900-\u0903\u093e-\u094e"
)
LETTER = r"(?:(?![²³¹¼-¾⁰-₎⅐-↉①-⓿❶-➓ƿ])[^\W\d_])"
DIGIT = r"\d"
ALNUM = rf"(?:{LETTER}|{DIGIT})"
MARKED_LETTER = rf"(?:{LETTER}|[{MARKS}])"
MARKED_ALNUM = rf"(?:{MARKED_LETTER}|{DIGIT})"
APOS = "['\u2019\x92]"
APOS_OR_QUOTE = "['\u2019\x92`\u2018\x91\u201b]"
HYPHEN = "[-_\u058a\u2010\u2011]"
SPACE = "[ \t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]"
KNOWN_SYMBOL = (
    "[!-/:-@\\[-`{-~\xa1-\xa9\xab-\xac\xae-\xb4\xb6-\xb9\xbb-\xbf\xd7\xf7\u037e\u0387\u0589\u05be\u060c\u061b\u061f"
    "\u0964\u0965\u0e3f\u2013-\u2023\u2026\u2030-\u203b\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e"
    "\u20a0\u20a4\u20ac\u2100\u2101\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u212e\u2153-\u215e\u2190-\u2bff\u3001\u3002"
    "\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6\x80\x91-\x94\x96\x97]"
)
BREAK = "[ \t\xa0\u2000-\u200a\u3000\n]"  # in lookaheads; other spaces are left out, but end nothing

# Rules: group 1 is the token; the rest of the match is lookahead, which counts for the longest match.
WORD = rf"{MARKED_LETTER}{MARKED_ALNUM}*(?:[.!?]{MARKED_LETTER}{MARKED_ALNUM}*)*"
SOFT_DIGITS = rf"{DIGIT}[\d\xad]*"
NUMBER = rf"(?:(?:{SOFT_DIGITS})?(?:[.:,]{SOFT_DIGITS})+|{SOFT_DIGITS})"
ACRONYM = r"[A-Za-z](?:\.[A-Za-z])*\."
SOFT_ALNUM = rf"(?:{ALNUM}|\xad)"
COMPOUND = (
    rf"(?:[dol]{APOS_OR_QUOTE}{ALNUM})?{ALNUM}{SOFT_ALNUM}*(?:{HYPHEN}(?:[dol]{APOS_OR_QUOTE}{ALNUM})?{SOFT_ALNUM}+)*"
)
AMPERSANDS = r"(?-i:[A-Z]+(?:(?:(?i:&amp;)|[+&])[A-Z]+)+)"
SLASHED_PART = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
DOTTED_COMPOUND = r"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9]+))+"
ELLIPSIS = r"\.{3,5}|(?:\.[ \xa0]){2,4}\."
EMOTICON_FACE = r"[-\^x=~<>']"
RULES = [
    # Tags, split words ("can not"), words with their clitics, words.
    r"(</?[A-Za-z!?][A-Za-z0-9_:.-]*(?: [A-Za-z][A-Za-z0-9_:.-]*)*(?: [A-Za-z]+=(?:'[^'\n]*'|\"[^\"\n]*\"))* ?/?>)",
    r"(<!--[^>\n]*-->|<![^ >\n]*>|<\?[^>\n]*\?>)",
    r"(can|gon|got|lem|gim|wan|'t|d')"
    r"(?:(?<=can)not|(?<=[gw][oa]n)na|(?<=got)ta|(?<=[lg][ei]m)me|(?<='t)(?:is|was)|(?<=d')ye)",
    rf"({WORD})(?:{APOS}(?:[msd]|re|ve|ll))",
    rf"([a-z\xad]*[a-mo-z\xad])n{APOS_OR_QUOTE}t",
    rf"((?:{WORD}|{COMPOUND}|{AMPERSANDS}|{DOTTED_COMPOUND})\.)[,;:]",
    rf"({WORD})",
    # Addresses, handles, hashtags.
    r"(https?://[^ \t\n\"<>|(){}]+[^ \t\n\"<>|.!?(){},-])",
    r"((?:www\.(?:[^ \t\n\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"
    r"|(?:[^ \t\n\"`'|!(){}$,-/0-:;-@\[-_]+\.)+(?:com|net|org|edu))"
    r"(?:/[^ \t\n\"<>|()]+[^ \t\n\"<>|.!?(){},-])?)",
    r"([a-zA-Z0-9][^ \t\n\xa0\"<>|(){}]*@(?:[^ \t\n\xa0\"<>|(){}.]+\.)*[^ \t\n\xa0\"<>|(){}.]+)",
    r"(<[a-zA-Z0-9][^ \t\n\xa0\"<>|(){}]*@(?:[^ \t\n\xa0\"<>|(){}.]+\.)*[^ \t\n\xa0\"<>|(){}.]+>)",
    r"(@[A-Za-z_][A-Za-z_0-9]*)",
    rf"(#{MARKED_LETTER}+)",
    # Clitics on their own; words written with an apostrophe.
    rf"({APOS}(?:[msd]|re|ve|ll))(?=[^A-Za-z]|\Z)",
    r"([\u2019\x92](?:[msd]|re|ve|ll|n))",
    rf"(n{APOS_OR_QUOTE}t)(?=[^A-Za-z]|\Z)",
    rf"({APOS}n(?:{APOS}|(?=[ \t\n\xa0]|\Z))|[ldj]{APOS}|dunkin{APOS}|somethin{APOS}|ol{APOS}|{APOS}em|{APOS}[2-9]0s"
    rf"|{APOS}till?|{APOS}cause|o{APOS_OR_QUOTE}o|c{APOS}est|{APOS}[0-9][0-9](?=\s))",
    rf"((?-i:[A-HJ-XZn]){APOS_OR_QUOTE}{LETTER}{{2}}{LETTER}*"
    rf"|{LETTER}+[aeiouy]{APOS_OR_QUOTE}(?-i:[aeiouA-Z]){LETTER}*)",
    rf"((?:nor{APOS}easter|c{APOS}mon|ne{APOS}er|e{APOS}er|s{APOS}mores|ev{APOS}ry|li{APOS}l|nat{APOS}l|cap{APOS}n"
    rf"|ma{APOS}am|o{APOS}clock))",
    rf"(y{APOS})(?={LETTER})",
    # Compounds with hyphens, ampersands, slashes; numbers, file names, fractions, telephone numbers.
    rf"({COMPOUND})",
    rf"({AMPERSANDS})",
    rf"({SLASHED_PART}(?:\\?/{SLASHED_PART}){{1,2}})",
    rf"({DOTTED_COMPOUND})",
    rf"([-+]?{NUMBER})",
    rf"({ALNUM}+(?:\.{ALNUM}+)*\.(?:{FILE_ENDINGS}))(?!{ALNUM})",
    rf"((?:{DIGIT}{{1,4}}[- \xa0])?{DIGIT}{{1,4}}(?:\\?/|\u2044){DIGIT}{{1,4}})",
    rf"((?:\({DIGIT}{{2,3}}\)[ \xa0]?|(?:\+\+?)?(?:{DIGIT}{{2,4}}[- \xa0])?{DIGIT}{{2,4}}[- \xa0])"
    rf"{DIGIT}{{3,4}}[- \xa0]?{DIGIT}{{3,5}})",
    # Abbreviations and acronyms.
    rf"((?:{ABBREVIATIONS}|{TERMINAL_ABBREVIATIONS})\.)",
    rf"((?:{TERMINAL_ABBREVIATIONS})\.)(?s:..)",
    rf"((?:{NUMBER_ABBREVIATIONS})\.){BREAK}?{DIGIT}",
    rf"({ACRONYM}|ph\.?d\.)",
    # A single letter before a new sentence gives its period back; so does one at the very end of the text.
    rf"([A-Za-z])\.(?:{BREAK}+(?:(?-i:(?=[A-Z]))(?:{SENTENCE_STARTERS})|</?[A-Za-z][^>\n]*>){BREAK}|.?\Z)",
    # Currencies, emoticons, runs of one sign, entities, single signs.
    r"((?-i:[A-Z]+)\$)",
    r"([<>]?[:;=][-o*']?(?-i:[()DPdpO\\{@|\[\]]))(?![A-Za-z0-9])",
    rf"({EMOTICON_FACE}_{EMOTICON_FACE}|\({EMOTICON_FACE}[_.]?{EMOTICON_FACE}\)|[oxt0]_[oxt0])",
    rf"([?!]+|\*\*+|##+|__+|@@+|<<|>>|---+|--|{ELLIPSIS}|''|``|c\+\+|[cf]#)",
    r"(-[lr][rcs]b-)",  # brackets that are spelt out already
    r"(&(?:amp|lt|gt|quot|apos|#[0-9]+);|\\\*)",
    rf"({KNOWN_SYMBOL})",
]
