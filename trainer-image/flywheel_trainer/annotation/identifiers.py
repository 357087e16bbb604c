"""The privacy filter of curation, as annotation uses it: is there an identifier in a text, and which."""

from collections.abc import Callable

from flywheel_contract.filters import PrivacyParams
from flywheel_trainer.data.privacy import PrivacyFilter

Finder = Callable[[str], str | None]


def finder() -> Finder:
    """Names the first identifier in a text, None where there is none, by the default entities of curation."""
    return PrivacyFilter(PrivacyParams()).first
