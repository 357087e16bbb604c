from pathlib import Path

from e2e.demo import manifests, material
from flywheel_trainer.data.files import DATA_FILE


def test_each_generation_gets_conversations_of_its_own(tmp_path: Path) -> None:
    source = tmp_path / "traffic-user"
    source.mkdir()
    (source / DATA_FILE).write_text("".join(f'{{"row": {i}}}\n' for i in range(7)), encoding="utf-8")
    for _ in range(2):
        first, second = material.slices(source, 2)
        rows = [set((folder / DATA_FILE).read_text().splitlines()) for folder in (first, second)]
        assert not rows[0] & rows[1]
        assert len(rows[0] | rows[1]) == 7


def test_the_manifests_name_what_is_put_on_the_claim() -> None:
    named = set()
    for file in (manifests.REWARD_MODEL, *manifests.GENERATIONS):
        spec = manifests.load(file)["spec"]
        sources = spec.get("preferences", []) + spec.get("data", {}).get("traffic", [])
        named |= {source["uri"].removeprefix("pvc://flywheel/") for source in sources}
    made = {f"data/preferences-{o}" for o in ("internal", "user")}
    assert named == made | {f"data/traffic-{n}-{o}" for n in (1, 2) for o in ("internal", "user")}


def test_the_rule_is_told_with_its_numbers() -> None:
    facts = {"pairs": 300, "lengthOnlyAccuracyCharacters": 0.53, "usersByOrigin": {"Internal": 150, "User": 220}}
    text = material.rule(facts, 0.746)
    assert "300 pairs" in text
    assert "53%" in text
    assert "75% of the held-out pairs" in text
    assert "(150 users)" in text


def test_pairs_of_held_out_users_only_measure(tmp_path: Path) -> None:
    rows = "".join(f'{{"user": "u{i}"}}\n' for i in range(200))
    (tmp_path / DATA_FILE).write_text(rows, encoding="utf-8")
    assert 60 < len(material.held_out_pairs([tmp_path])) < 140
