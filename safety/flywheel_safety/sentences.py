"""Where a streamed reply can be cut: after a sentence, after a line, or after too long a time without either."""

import re
from typing import Final

LONGEST: Final = 400
"""Characters that are held back at most; longer sentences are cut between words."""
# Chinese and Japanese sentences end without a space.
_END: Final = re.compile("[.!?\u2026]+[\"'\u201d\u2019)\\]*]*\\s+|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d]*|\\n+")


def split_complete(text: str) -> tuple[str, str]:
    """The part of `text` that ends with a sentence, and the rest that is still being written."""
    cut = 0
    for match in _END.finditer(text):
        cut = match.end()
    if cut == 0 and len(text) > LONGEST:
        space = text.rfind(" ", 1, LONGEST)
        cut = space + 1 if space > 0 else LONGEST
    return text[:cut], text[cut:]


def sentences(text: str) -> list[str]:
    """The sentences of a whole text, without white space around them; none longer than is held back."""
    found = []
    start = 0
    for end in [*(match.end() for match in _END.finditer(text)), len(text)]:
        while end - start > LONGEST:
            space = text.rfind(" ", start + 1, start + LONGEST)
            cut = space + 1 if space > start else start + LONGEST
            found.append(text[start:cut].strip())
            start = cut
        found.append(text[start:end].strip())
        start = end
    return [sentence for sentence in found if sentence]
