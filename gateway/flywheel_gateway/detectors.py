"""What sees that a reply broke a rule or refused for no reason. Each has a name and a version, which the events carry:
a change of a rule is a new version, and numbers of two versions are not compared.

How far they agree with a labelled set is measured in the tests and stated in docs/gateway.md.
"""

import re
from typing import Final

REFUSAL_DETECTOR: Final = "refusal-rules/1"

_OPENING: Final = 240
"""Characters at the beginning in which a refusal stands; later on it is talk."""

_CANNOT: Final = (
    r"(?:can(?:'|no|\s+no)?t|am\s+(?:not\s+able|unable)\s+to|'m\s+(?:not\s+able|unable)\s+to|won't(?:\s+be\s+able\s+to)?"
    r"|will\s+not(?:\s+be\s+able\s+to)?|must\s+decline\s+to|have\s+to\s+decline\s+to|'m\s+not\s+(?:allowed|permitted)\s+to"
    r"|am\s+not\s+(?:allowed|permitted)\s+to|'m\s+not\s+comfortable|am\s+not\s+comfortable|refuse\s+to)"
)
_ADVERB: Final = r"(?:\s+(?:really|actually|directly|currently|simply|just|possibly|ethically|in\s+good\s+conscience))?"
_SERVE: Final = (
    r"(?:help\s+(?:you\s+)?(?:with|out|to|you\b(?!\s+(?:but|feel)))|help(?:\s+you)?\s*[.,!;]|assist|answer|discuss(?:ing)?"
    r"|provid(?:e|ing)|fulfil?l|comply|engag(?:e|ing)|participat(?:e|ing)|generat(?:e|ing)|creat(?:e|ing)\s+(?:that|this|content)"
    r"|do\s+(?:that|this)\b|talk(?:ing)?\s+about|continu(?:e|ing)\s+(?:with\s+)?(?:this|that)|support\s+(?:this|that)"
    r"|writ(?:e|ing)\s+(?:that|this|about|such|content|a\b)|role-?\s?play|pretend\s+to|respond\s+to|share\s+(?:that|this|such)"
    r"|giv(?:e|ing)\s+(?:you\s+)?(?:advice|information|opinions|recommendations|that|medical|legal|financial))"
)
_REFUSALS: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\bI(?:'m\s+(?:sorry|afraid)[,.]?\s+(?:but\s+)?(?:that\s+)?I)?\s*{_CANNOT}{_ADVERB}\s+{_SERVE}",
        r"\bas\s+an?\s+(?:AI|artificial\s+intelligence|(?:large\s+)?language\s+model)\b[^.!?]{0,80}"
        r"\b(?:can(?:'|no)t|cannot|unable|not\s+able|won't|don't\s+(?:have\s+opinions|provide|discuss|engage))",
        r"\b(?:that|this|it)(?:'s|\s+is)\s+(?:not\s+something|something)\s+I\s*(?:'m|am)?\s*"
        r"(?:can(?:'|no)?t|cannot|can|won't|not\s+able\s+to|able\s+to|am\s+able\s+to)\s+(?:help|assist|discuss|talk|do|provide)",
        r"\b(?:against|violates?|outside)\s+(?:my|our|the)\s+(?:guidelines|policy|policies|programming|content\s+policy|rules)",
        r"\bI\s+(?:must|have\s+to)\s+(?:respectfully\s+)?(?:decline|refuse)\b",
    )
)
_APOSTROPHES: Final = str.maketrans({"\u2019": "'", "\u2018": "'", "`": "'"})


def is_refusal(reply: str) -> bool:
    """Whether a reply refuses what was asked, by its first words: a false refusal where the prompt was not unsafe."""
    opening = reply[:_OPENING].translate(_APOSTROPHES)
    return any(pattern.search(opening) for pattern in _REFUSALS)
