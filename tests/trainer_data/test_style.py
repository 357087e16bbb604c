"""Style artefacts."""

import pytest

from flywheel_trainer import style

ASKED = [{"role": "user", "content": "any tips?"}]


@pytest.mark.parametrize(
    ("reply", "length", "listed", "emoji", "stock"),
    [
        ("Sure, take a walk.", 4, 0, 0, 0),
        ("Try this:\n- walk\n- sleep", 6, 1, 0, 0),
        ("1. walk\n2. sleep", 4, 1, 0, 0),
        ("just - one dash\n- here", 6, 0, 0, 0),
        ("Good luck \U0001f600", 3, 0, 1, 0),
        ("I love it \u2764\ufe0f", 4, 0, 1, 0),
        ("How can I help you today?", 6, 0, 0, 1),
        ("I\u2019m here to help!", 4, 0, 0, 1),
        ("As an AI, I don't eat.", 6, 0, 0, 1),
        ("", 0, 0, 0, 0),
    ],
)
def test_artefacts_of_a_reply(reply: str, length: int, listed: int, emoji: int, stock: int) -> None:
    found = [f(ASKED, reply) for f in (style.words, style.has_list, style.has_emoji, style.has_stock_phrase)]
    assert found == [length, listed, emoji, stock]


def test_a_phrase_that_the_user_said_first_is_no_stock_phrase() -> None:
    history = [{"role": "user", "content": "you said 'feel free to' again"}]
    assert style.has_stock_phrase(history, "Yes, I said feel free to.") == 0
