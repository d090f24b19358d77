"Whatever dies, nothing that was promised is lost, and no level is skipped or doubled."

import pytest

from tests.helpers.alert_lives import kill_loop


@pytest.mark.slow
def test_killed_runs_and_daemons_lose_and_double_nothing(tmp_path):
    found = kill_loop(tmp_path, 8, seed=3)
    assert found["kills"] >= 8 and found["events promised"] > 10 and found["incidents"] > 1
    wrong = ("lost", "without", "wrongly", "doubled", "skipped", "nobody")
    assert {k: v for k, v in found.items() if v and any(w in k for w in wrong)} == {}
    assert found["calls planned"] == 3 * found["incidents"]
