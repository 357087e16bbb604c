"""From replies and rewards to metrics: two judges, and the way from parent to candidate."""

from typing import Any

import numpy as np
import pytest

from flywheel_contract.judging import StyleParams
from flywheel_contract.metric_names import Metric
from flywheel_contract.params import EvaluateParams
from flywheel_contract.stages import Origin
from flywheel_trainer.answers import Answers, Cast
from flywheel_trainer.data.rows import Conversation
from flywheel_trainer.judgement import Judgement, Measured, measure
from flywheel_trainer.perplexity import Likelihoods
from flywheel_trainer.stages.evaluate import draw

COUNT = 40
ROWS = [
    Conversation.model_validate(
        {
            "conversation": f"c{i}", "user": f"u{i}", "origin": ("Internal", "User")[i % 2],
            "messages": [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "said"}],
        }
    )
    for i in range(COUNT)
]  # fmt: skip


def likely(nats: float, count: int = COUNT) -> Likelihoods:
    return Likelihoods(np.full(count, nats), np.full(count, 10.0))


def model(name: str, kl: float = 0.0, reply: str = "a b c", rows: int = COUNT) -> Answers:
    """Its replies have ten tokens, and are `kl` nats per token likelier under itself than under the parent."""
    own = likely(5, rows)
    return Answers(name, list(range(rows)), [reply] * rows, own, likely(20), likely(5 + 10 * kl, rows))


def measured(cast: Cast, rewards: dict[str, float], **preferred: Any) -> Measured:  # noqa: ANN401 -- an array by rival
    scores = {each.name: np.full(len(each.rows), rewards[each.name]) for each in cast.distinct()}
    judgement = Judgement(ROWS, cast, scores, {"taste": scores}, [row.user for row in ROWS], preferred)
    return measure(judgement, EvaluateParams(bootstrap_samples=100), StyleParams(), 0)


PARENT, SFT, BEST = model("parent"), model("sft", 0.1, rows=20), model("policy", 0.3)


@pytest.mark.parametrize(
    ("rewards", "spent"),
    [
        ({"parent": 0, "sft": 1, "policy": 2}, 0.0),
        # The reward fell after SFT: what came behind it bought nothing.
        ({"parent": 0, "sft": 2, "policy": 1}, 0.2),
        ({"parent": 3, "sft": 2, "policy": 1}, 0.3),
    ],
)
def test_divergence_that_bought_nothing(rewards: dict[str, float], spent: float) -> None:
    found = measured(Cast(BEST, PARENT, PARENT, [SFT]), rewards)
    assert found.metrics[Metric.KL_WITHOUT_REWARD].value == pytest.approx(spent)
    assert found.metrics[Metric.KL_WITHOUT_REWARD].n == 20, "the prompts that all of them answered"
    assert found.metrics[Metric.HELD_OUT_KL].value == pytest.approx(0.3)
    assert found.metrics[Metric.REWARD_GAIN].value == rewards["policy"] - rewards["parent"]
    assert [point["model"] for point in found.report["way"]] == ["parent", "sft", "policy"]


def test_production_and_parent_are_two_baselines() -> None:
    cast = Cast(BEST, model("baseline", 0.2), PARENT, [])
    found = measured(cast, {"policy": 1, "baseline": 2, "parent": 0})
    assert found.metrics[Metric.WIN_RATE].value == 0
    assert found.metrics[Metric.WIN_RATE_PARENT].value == 1


def test_a_second_judge_and_how_often_the_two_contradict_each_other() -> None:
    cast, rewards = Cast(BEST, PARENT, PARENT, []), {"policy": 1, "parent": 0}
    assert Metric.PAIRWISE_WIN_RATE not in measured(cast, rewards).metrics
    # The pointwise reward sees a win everywhere; the pairwise judge in the user's half only, and a tie at one prompt.
    preferred = np.array([0.2, 0.9] * (COUNT // 2))
    preferred[0] = 0.5
    found = measured(cast, rewards, parent=preferred).metrics
    assert found[Metric.PAIRWISE_WIN_RATE_USER].value == 1
    assert found[Metric.PAIRWISE_WIN_RATE_INTERNAL].value == pytest.approx(0.5 / 20)
    assert found[Metric.PAIRWISE_WIN_RATE].value == pytest.approx((1 + 0.5 / 20) / 2)
    assert found[Metric.PAIRWISE_WIN_RATE_GAP].value == pytest.approx(1 - 0.5 / 20)
    assert found[Metric.PAIRWISE_WIN_RATE_PARENT] == found[Metric.PAIRWISE_WIN_RATE]
    assert found[Metric.PAIRWISE_DISAGREEMENT].value == pytest.approx(19.5 / 40)


def test_the_second_judge_too_looks_at_the_parent_beside_production() -> None:
    cast = Cast(BEST, model("baseline", 0.2), PARENT, [])
    preferred = {"baseline": np.full(COUNT, 0.9), "parent": np.full(COUNT, 0.1)}
    found = measured(cast, {"policy": 1, "baseline": 2, "parent": 0}, **preferred).metrics
    assert found[Metric.PAIRWISE_WIN_RATE].value == 1
    assert found[Metric.PAIRWISE_WIN_RATE_PARENT].value == 0


def test_a_jump_is_named_in_the_sentence() -> None:
    emoji = model("policy", 0.3, "a b \U0001f600")
    found = measured(Cast(emoji, PARENT, PARENT, []), {"policy": 1, "parent": 0})
    assert found.metrics[Metric.STYLE_JUMPS].value == 1
    assert found.report["jumps"] == ["emoji"]
    assert found.sentence.endswith("style jumped with the reward: emoji")
    disliked = measured(Cast(emoji, PARENT, PARENT, []), {"policy": -1, "parent": 0})
    assert disliked.metrics[Metric.STYLE_JUMPS].value == 0


def test_the_parent_must_have_read_what_is_compared_with_it() -> None:
    with pytest.raises(ValueError, match="the parent has not read the replies of x"):
        Answers("x", [0], ["a"], likely(1, 1)).divergence([0])


def test_the_draw_takes_one_prompt_of_each_user_before_a_second_one() -> None:
    def row(user: str, number: int) -> Conversation:
        return Conversation(conversation=f"{user}-{number}", user=user, origin=Origin.USER, messages=ROWS[0].messages)

    rows = [row(user, number) for user, owned in (("busy", 30), ("a", 2), ("b", 1)) for number in range(owned)]
    assert [r.user for r in draw(rows, 5, seed=1)].count("busy") == 2
    assert {r.user for r in draw(rows, 3, seed=1)} == {"busy", "a", "b"}
    assert sorted(r.conversation for r in draw(rows, 100, seed=1)) == sorted(r.conversation for r in rows)
    assert draw(list(reversed(rows)), 5, seed=1) == draw(rows, 5, seed=1)
    assert draw(rows, 5, seed=1) != draw(rows, 5, seed=2)
