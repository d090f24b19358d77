"Every input of the campaign `hostile`: refused in the promised words, or harmless."

import pytest

from tests.campaigns.hostile import Attack, attacks, struck

ATTACKS = attacks()


def test_there_are_enough_of_them():
    assert len(ATTACKS) >= 200
    assert len({(a.kind, a.name) for a in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("attack", ATTACKS, ids=[f"{a.kind}: {a.name}" for a in ATTACKS])
def test_it_is_refused_or_harmless(tmp_path, attack):
    assert struck(attack, tmp_path) is None


def test_the_campaign_notices_what_goes_through_and_what_is_not_typed(tmp_path):
    def crash(folder):
        raise KeyError("names")

    (tmp_path / "x").write_text("")
    assert struck(Attack("file", "read", lambda folder: "content", "refused"), tmp_path) is not None
    assert struck(Attack("file", "crash", crash, "."), tmp_path) is not None
    assert struck(Attack("name", "harm", lambda folder: "x", None, lambda found: found == "y"), tmp_path)
