"""The sentences around questions.

LLaVA-1.5 asks for short answers and letters with them (arXiv 2310.03744, section 3), and VILA's scripts ask LLaVA's
question files. Captions are asked for as lmms_eval does; neither of the two published how they did it.
"""

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"
CAPTION = "Provide a one-sentence caption for the provided image."

LETTERS = "ABCDEFGH"


def lines(*parts: str) -> str:
    """The parts that say something, each on a line of its own."""
    return "\n".join(part for part in parts if part)


def options(choices: dict[str, str]) -> str:
    """`A. text` lines."""
    return "\n".join(f"{letter}. {text}" for letter, text in choices.items())


def same(tokens: int) -> dict[str, int]:
    """A limit of new tokens for all styles."""
    return {"llava": tokens, "vila": tokens}
