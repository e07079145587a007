"""Words of a caption as pycocoevalcap has them, without the Java program that it starts.

Captions are compared after the tokenizer of the Stanford parser, which writes brackets as -LRB-, splits don't into do
and n't, and keeps two-year-old, 3.5 and U.S.A. whole; then punctuation is left out and all is lower case. This page
holds its rules as far as captions need them: emoticons, dates with ordinals and SGML beyond plain tags are not among
them.
"""

import re

_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_SPELLED = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "£": "#",
    "€": "$",
    "¢": "cents",
    "¼": "1/4",
    "½": "1/2",
    "¾": "3/4",
}
# Quotation marks and dashes of typographers.
_STRAIGHT = str.maketrans("\u2018\u2019\u201c\u201d\u201e\u2013\u2014", '\'\'"""--')
_SPLIT = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "gimme": "gim me",
    "lemme": "lem me",
    "'tis": "'t is",
    "'twas": "'t was",
    "y'all": "y' all",
}
_ABBREVIATIONS = (
    "mr mrs ms dr prof sen rep gov gen lt col capt sgt rev hon st mt ft ave blvd rd jr sr inc ltd co corp vs etc al "
    "esp approx dept est jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri"
)
_TOKEN = re.compile(
    rf"""
    (?:https?://|www\.)[^\s<>]*[\w/]              # addresses
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)*
    | [@\#][^\W\d]\w*
    | </?[a-z][^<>]*>                             # tags
    | (?:\d{{1,4}}[-\ ])?\d{{1,4}}/\d{{1,4}}(?![\w/])(?:-\w+)*  # fractions
    | [¼½¾] | \d+(?=[¼½¾])
    | (?:[^\W\d_]\.)+(?!\w)                       # initials
    | (?:{"|".join(_ABBREVIATIONS.split())})\.(?!\w)
    | no\.(?=\s*\d)
    | '(?:tis|twas)\b | '\d\d(?!\d) | '(?:n'|n\b|em\b) | '(?:s|m|d|re|ve|ll)\b | n't\b
    | (?<![\w'])[-+]\d+(?:[.,:]\d+)*              # signed numbers
    | \d+(?:[.,:]\d+)+
    | ol'
    | \w+(?:[-/&._]\w+)*(?:'\w+)*(?:-\w+)*        # words, split further at their apostrophes
    | \.{{3}} | [!?]+ | -+ | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)
_CLITIC = re.compile(r"(.+?)(n't|'(?:s|m|d|re|ve|ll))")
# Apostrophes inside names and foreign words: O'Neil, l'eau, Hawai'i, o'clock, ma'am, c'mon.
_ONE_WORD = re.compile(r"[ldjo]'\w+|c'mon|ma'am|\w*[aeiouy]'[aeiou]\w*")
_YEAR_OR_WORD = re.compile(r"'\d\d\b|[^']+")


def tokenize(text: str) -> str:
    """The words of a text in lower case, with one space between them."""
    words: list[str] = []
    for match in _TOKEN.finditer(text.translate(_STRAIGHT).replace("…", "...")):
        words += _split(match[0].lower())
    return " ".join(word for word in words if word not in _DROPPED)


def _split(token: str) -> list[str]:
    """The words of one token, without quotation marks."""
    if token in _SPLIT:
        return _SPLIT[token].split(" ")
    if set(token) == {"-"} or token == '"':
        return []
    if token[0].isdigit() and "/" in token:
        return [token.replace(" ", "\xa0")]  # as the reference has it: 3 1/2 is one word
    if "'" in token[1:]:
        return _apostrophes(token)
    return [_SPELLED.get(token, token)]


def _apostrophes(token: str) -> list[str]:
    if token in ("'n'", "ol'", "n't") or _ONE_WORD.fullmatch(token):
        return [token]
    if match := _CLITIC.fullmatch(token):
        return [*_split(match[1]), match[2]]
    if "'n'" in token:
        before, _, after = token.partition("'n'")
        return [before, "'n'", after]
    return _YEAR_OR_WORD.findall(token)
