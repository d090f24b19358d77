"Times as text: what Python, servers and people write is read on every Python; other texts are refused."

from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.core.types import parse_time


@given(
    st.datetimes(min_value=datetime(1900, 1, 1), timezones=st.none() | st.timezones()),
    st.sampled_from(["auto", "microseconds"]),
)
def test_every_time_that_python_writes_is_read_again(at, spec):
    at = at if at.utcoffset() is None or at.utcoffset().seconds % 60 == 0 else at.astimezone(timezone.utc)
    assert parse_time(at.isoformat(timespec=spec)) == at
    assert parse_time(at.isoformat(" ", spec)).utcoffset() == at.utcoffset()


@pytest.mark.parametrize("text", ["2026-11-30T10:00:00.123456Z", "2026-11-30T10:00:00.123456789+00:00"])
def test_times_of_servers_are_read_on_every_python(text):
    assert parse_time(text) == datetime(2026, 11, 30, 10, 0, 0, 123456, timezone.utc)


@pytest.mark.parametrize(
    "text",
    ["", "now", "1", "2026", "2026-11-31", "2026-11-30T24:01", "2026-11-30T10", "٢٠٢٦-11-30", "2026-11-30Z"],
)
def test_other_texts_are_not_times(text):
    with pytest.raises(ValueError):
        parse_time(text)
