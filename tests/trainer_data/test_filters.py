"""Near-duplicates and the split by user."""

import hmac
import random

import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import given
from hypothesis import strategies as st

from flywheel_trainer.data.duplicates import FIRST_ROOM, PERMUTATIONS, near_duplicates, shingles
from flywheel_trainer.data.split import draw_key, held_out, is_keyed


def test_near_duplicates_keep_the_first_of_those_alike() -> None:
    long = "tell me about the moon and the tide and how the old sailors found their way home by the stars at night"
    texts = [long, "what shall we cook tonight my dear friend", long + " please", long.upper(), "hi", "hi!", "ho"]
    assert list(near_duplicates(texts, 0.8)) == [False, False, True, True, False, True, False]


def test_the_index_finds_what_datasketchs_own_finds() -> None:
    draw = random.Random(0)
    words = [f"w{n}" for n in range(400)]
    base = [draw.choices(words[:60], k=15) for _ in range(20)]
    texts = []
    for _ in range(1500):
        said = list(draw.choice(base)) if draw.random() < 0.3 else draw.choices(words, k=15)
        said[draw.randrange(15)] = draw.choice(words)
        texts.append(" ".join(said))
    index, kept, repeated = MinHashLSH(threshold=0.6, num_perm=PERMUTATIONS), {}, []
    for number, text in enumerate(texts):
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch(sorted(shingles(text)))
        repeated.append(any(kept[other].jaccard(sketch) >= 0.6 for other in index.query(sketch)))
        if not repeated[-1]:
            kept[number] = sketch
            index.insert(number, sketch)
    assert list(near_duplicates(texts, 0.6)) == repeated
    assert 100 < sum(repeated) < 1400
    assert len(kept) > FIRST_ROOM, "so many that the room had to grow"


def test_shingles_of_short_texts_are_the_text() -> None:
    assert shingles("Hi there") == {b"hi there"}
    assert shingles("") == {b""}


@given(st.text(min_size=1), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_smaller_hold_out_is_part_of_a_larger_one(user: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert not held_out(user, small) or held_out(user, large)


def test_the_share_held_out_is_the_one_asked_for_and_never_moves() -> None:
    users = [f"user-{i}" for i in range(4000)]
    assert sum(held_out(u, 0.2) for u in users) == pytest.approx(800, abs=80)
    # Frozen: a change of the hash would train on prompts that earlier generations were judged on.
    assert [u for u in users[:20] if held_out(u, 0.2)] == ["user-3", "user-10"]


def test_the_draw_depends_on_the_seed() -> None:
    names = [f"c{i}" for i in range(20)]
    orders = {tuple(sorted(names, key=lambda n, s=seed: draw_key(s, n))) for seed in range(3)}
    assert len(orders) == 3


def test_the_key_of_the_lineage_decides_who_is_held_out() -> None:
    """Ids as the gateway writes them: another key gives another, unrelated choice of people."""
    people = [f"person-{n}" for n in range(2000)]
    chosen = []
    for key in (b"k" * 32, b"m" * 32):
        ids = [hmac.new(key, person.encode(), "sha256").hexdigest() for person in people]
        assert all(is_keyed(i) for i in ids)
        chosen.append({person for person, i in zip(people, ids, strict=True) if held_out(i, 0.2)})
    assert all(len(c) == pytest.approx(400, abs=60) for c in chosen)
    assert len(chosen[0] & chosen[1]) == pytest.approx(80, abs=30)
    assert not any(is_keyed(person) for person in people)
