"""Answers in one spelling, as the official VQA evaluation makes them before it compares."""

import re

PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
ARTICLES = {"a", "an", "the"}
LONE_PERIOD = re.compile(r"\.(?!\d)")
# what is left of a contraction when its apostrophe goes: stem and ending
NEGATED = (
    "ai",
    "are",
    "ca",
    "could",
    "did",
    "does",
    "do",
    "had",
    "has",
    "have",
    "is",
    "might",
    "must",
    "need",
    "should",
    "was",
    "were",
    "wo",
    "would",
)
WITH_ENDING = {
    "ve": ("could", "i", "might", "must", "should", "they", "would", "we", "who", "you", "not"),
    "d": (
        "he",
        "how",
        "i",
        "it",
        "she",
        "somebody",
        "someone",
        "something",
        "that",
        "there",
        "they",
        "what",
        "where",
        "who",
        "why",
        "you",
    ),
    "s": (
        "he",
        "how",
        "let",
        "she",
        "somebody",
        "someone",
        "something",
        "that",
        "there",
        "what",
        "when",
        "where",
        "who",
        "why",
    ),
    "ll": ("how", "it", "somebody", "someone", "something", "they", "what", "who", "why", "you"),
    "re": ("there", "they", "what", "why", "you"),
    "m": ("i",),
}
WORDS_OF_THEIR_OWN = {
    "hed",
    "shed",
    "id",
    "ill",
    "its",
    "lets",
    "were",
    "well",
    "wed",
    "hell",
    "shell",
}  # mean something else
CONTRACTIONS = {f"{stem}nt": f"{stem}n't" for stem in NEGATED} | {
    f"{stem}{ending}": f"{stem}'{ending}" for ending, stems in WITH_ENDING.items() for stem in stems
}
CONTRACTIONS |= {"yall": "y'all", "maam": "ma'am", "oclock": "o'clock", "twas": "'twas", "lets": "let's"}
for _word in WORDS_OF_THEIR_OWN - {"lets"}:
    CONTRACTIONS.pop(_word, None)


def normalise_answer(answer: str) -> str:
    """Lower case, no punctuation, numbers as digits, no articles, contractions with their apostrophe.

    Commas and question marks go, so "1,000" is "1000"; a possessive 's stands alone. Any other mark is removed
    if the answer has it next to a space somewhere, else it becomes a space. A period stays before a digit. The official
    table of contractions has some 120 entries; ours is made from stems and endings and leaves out forms that are other
    words ("its", "ill").
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = told = " ".join(text.split())
    for mark in PUNCTUATION:
        text = text.replace(mark, "" if f"{mark} " in told or f" {mark}" in told else " ")
    words = [NUMBERS.get(word, word) for word in LONE_PERIOD.sub("", text).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
