"""Arrivals, k servers, machines, storage, prices, levers: against exact cases, formulas and bad input."""

import json
import math
from dataclasses import asdict, replace
from datetime import date, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.core.files import write_json
from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.optimization.batch_advice import simulate_batching
from cv_pipeline.optimization.benchmark import read_benchmark
from cv_pipeline.scale.arrivals import (
    burst_rates,
    camera_times,
    constant_times,
    day_profile,
    erlang_c,
    mgk_wait,
    poisson_times,
    shaped_times,
    simulate_servers,
)
from cv_pipeline.scale.capacity import (
    KeepConfig,
    machines_for,
    measured_from,
    monthly_cameras,
    read_plan_config,
    size_servers,
    stored_gb,
)
from cv_pipeline.scale.prices import (
    EXAMPLE,
    PlanInputs,
    break_even,
    levers_of,
    make_plan,
    monthly_cost,
    pull_levers,
    read_prices,
)
from cv_pipeline.scale.scale_page import plan_page
from tests.scale.made_up import benchmark, row

START = datetime(2026, 6, 1, tzinfo=timezone.utc)
TODAY = date(2026, 6, 1)


def asked(**changes):
    return read_plan_config({"cameras": 40, "fps": 5, "latency_ms": 100, **changes})


@given(
    st.lists(st.floats(0, 50), min_size=1, max_size=60),
    st.integers(1, 8),
    st.floats(0, 20),
    st.floats(0.5, 20),
    st.floats(0, 5),
)
def test_one_server_is_the_batcher_simulation_exactly(gaps, batch, wait, base, per):
    times = np.cumsum(gaps)
    call = lambda n: base + per * n
    one = simulate_servers(times, call, 1, batch, wait)
    latency, sizes = simulate_batching(times, call, batch, wait)
    assert one.latency_ms.tolist() == latency.tolist()
    assert one.sizes.tolist() == sizes.tolist()


@pytest.mark.parametrize("servers, share", [(1, 0.5), (2, 0.7), (5, 0.8)])
def test_by_chance_and_exponential_is_erlang_within_three_percent(servers, share):
    rng, rate = np.random.default_rng(7), 1e3 * servers * share / 10.0
    lengths = iter(rng.exponential(10.0, 1_300_000).tolist())
    times = poisson_times(rate, 900_000 / rate, seed=7 + servers)
    found = simulate_servers(times, lambda n: next(lengths), servers)
    assert found.latency_ms.mean() - 10.0 == pytest.approx(erlang_c(rate, 10.0, servers)[1], rel=0.03)
    assert found.busy == pytest.approx(share, rel=0.02)


@given(st.integers(1, 6), st.integers(1, 4))
def test_more_servers_never_make_a_frame_later(servers, more):
    times = camera_times(12, 5, 3, seed=1)
    few = simulate_servers(times, lambda n: 20.0, servers).latency_ms
    many = simulate_servers(times, lambda n: 20.0, servers + more).latency_ms
    assert (many <= few + 1e-9).all()


def test_all_at_once_is_the_worst_case_by_arithmetic():
    found = simulate_servers(camera_times(10, 1, 1, seed=None), lambda n: 20.0, 2)
    assert sorted(found.latency_ms) == [20, 20, 40, 40, 60, 60, 80, 80, 100, 100]


def test_a_full_house_has_no_finite_wait():
    assert erlang_c(100, 20, 2) == (1.0, math.inf)
    assert mgk_wait(100, [20.0, 20.0], 2) == math.inf
    assert mgk_wait(1, [1.0], 8) == 0.0


@pytest.mark.parametrize("make", [constant_times, lambda r, s: camera_times(1, r, s), poisson_times])
@pytest.mark.parametrize("rate, seconds", [(0, 1), (-1, 5), (5, 0), (math.inf, 1), (math.nan, 1)])
def test_no_requests_are_refused(make, rate, seconds):
    with pytest.raises(ConfigError, match="requests a second"):
        make(rate, seconds)


def test_bursts_keep_the_mean():
    rates = burst_rates(30, 100)
    assert rates.mean() == pytest.approx(30)
    assert rates.max() / rates.min() == pytest.approx(3)
    times = shaped_times(rates.tolist(), 1.0)
    assert len(times) == 3000 and (np.diff(times) > 0).all() and times[-1] < 100_000


def test_the_profile_of_a_day():
    shift = [START + timedelta(days=d, hours=8, seconds=10 * k) for d in range(3) for k in range(1440)]
    profile = day_profile(shift)
    assert max(profile.rates) == pytest.approx(0.1 * 3 / (2 + 4 / 24), rel=0.01)
    assert profile.peak == pytest.approx(6.0, rel=0.01)


def test_a_clock_that_was_wrong_is_no_profile():
    with pytest.raises(DataError, match="a clock was wrong"):
        day_profile([START + timedelta(days=1000 * (k == 50), seconds=k) for k in range(200)])
    with pytest.raises(DataError, match="too few"):
        day_profile([START] * 99)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"cameras": 0}, "cameras: Input should be greater than or equal to 1"),
        ({"growth_percent": -100}, "leaves no camera"),
        ({"growth_percent": [3.0, -150.0]}, "leaves no camera"),
        ({"fps": 0}, "fps"),
        ({"selection": 0}, "selection"),
        ({"months": 0}, "months"),
        ({"utilisation": 1.0}, "utilisation"),
        ({"camera": 3}, "camera: unknown key"),
        ({"keep": {"films": {}}}, "unknown kinds"),
        ({"machine": {"cores": 0}}, "machine.cores"),
    ],
)
def test_wishes_that_cannot_be_planned(wrong, message):
    with pytest.raises(ConfigError, match=message):
        asked(**wrong)


def test_growth_by_month():
    assert monthly_cameras(asked(months=3, growth_percent=10)) == [40, 44, 48.4]
    assert monthly_cameras(asked(months=4, growth_percent=[50, -50])) == [40, 60, 30, 30]


def test_a_benchmark_without_raw_times_is_measured_again():
    with pytest.raises(DataError, match="measure again"):
        measured_from(benchmark(raw_ms=None), asked())


def test_a_benchmark_of_another_machine_is_refused():
    with pytest.raises(DataError, match="another processor: Made Up"):
        measured_from(benchmark(), asked(machine={"processor": "Other"}))


def test_no_benchmark_is_an_error(tmp_path):
    with pytest.raises(DataError, match="not a readable benchmark"):
        read_benchmark(tmp_path)


def a_run(folder, **changes):
    summary = {"model": {"sha256": "0" * 64}, "frames_read": 1000, "frames_inferred": 100}
    summary |= {"latency_ms": {"ingest": {"p50": 4.0}}}
    write_json(folder / "summary.json", summary | changes)
    (folder / "results.jsonl").write_bytes(b"x" * 500_000)
    return folder


def test_what_a_run_knows(tmp_path):
    known = measured_from(benchmark(), asked(), a_run(tmp_path))
    assert (known.selection, known.decode_ms, known.bytes_a_frame) == (0.1, 4.0, {"lines": 500.0})
    assert [n for n in known.notes if "selection" in n or "decoding" in n] == []


def test_a_run_of_another_model_is_refused(tmp_path):
    with pytest.raises(DataError, match="another model"):
        measured_from(benchmark(), asked(), a_run(tmp_path, model={"sha256": "1" * 64}))


def test_a_run_without_frames_is_refused(tmp_path):
    with pytest.raises(DataError, match="has read no frame"):
        measured_from(benchmark(), asked(), a_run(tmp_path, frames_read=0))


def test_a_benchmark_beside_other_work_is_noted():
    assert any("beside other processes" in n for n in measured_from(benchmark(load=5.0), asked()).notes)


def test_the_fewest_servers_keep_the_promise_and_one_less_does_not():
    known, config = measured_from(benchmark(), asked()), asked()
    found = size_servers(known, config, 40, 1500.0, draws=4)
    assert found.p99_ms <= 100 and found.busy <= 0.7
    assert 1500 * known.calls.mean(8) / 8e3 / (found.servers - 1) > 0.7


def test_a_promise_that_no_number_of_servers_keeps():
    with pytest.raises(ConfigError, match="no configuration meets 5 ms"):
        measured_from(benchmark(), asked(latency_ms=5))


def test_the_scarce_thing_is_named():
    known = replace(measured_from(benchmark(), asked()), decode_ms=20.0)
    found = machines_for(known, asked(), 40, 2)
    assert found.decode_cores == pytest.approx(40 * 5 * 2 * 0.02)
    assert (found.binding, found.count) == ("cores", 2)
    small = asked(machine={"cores": 64, "memory_gb": 0.5})
    assert machines_for(known, small, 40, 8).binding == "memory"
    with pytest.raises(ConfigError, match="the machine has none"):
        machines_for(replace(known, gpu=True), asked(), 40, 2)
    with pytest.raises(ConfigError, match="a server needs 8 cores"):
        machines_for(replace(known, threads=8), asked(machine={"cores": 4}), 40, 2)


@given(st.integers(0, 90), st.integers(0, 90), st.integers(0, 90))
def test_nothing_is_stored_twice_or_for_ever(hot, warm, cold):
    config = asked(months=12, keep={"lines": {"hot": hot, "warm": warm, "cold": cold}})
    known = replace(measured_from(benchmark(), asked()), bytes_a_frame={"lines": 1000.0})
    found = stored_gb(config, known).get("lines", {})
    day = 40 * 5 * 86_400 * 1000 / 1e9
    assert sum(by[-1] for by in found.values()) == pytest.approx(
        day * (hot + warm + cold), rel=1e-3, abs=0.01
    )
    assert KeepConfig().hot == 30


def test_the_example_of_the_rule_of_thumb_to_the_dollar():
    items = {"machine": 100, "accelerator": [180, 450], "hot": 0.05}
    own = monthly_cost(read_prices({**EXAMPLE, "items": items}), 1, 1, {"hot": 1000.0}).total
    assert own == (330, 600)
    assert break_even(own, (1, 4)) == (82_500, 600_000)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"as_of": "soon"}, "not a date"),
        ({"items": {"machine": [5, 1]}}, "not a range"),
        ({"items": {"machine": [-5, 1]}}, "not a range"),
        ({"items": {"machine": "cheap"}}, "not a range"),
        ({"items": {"mashine": 5}}, "unknown items: mashine"),
    ],
)
def test_prices_that_are_none(changes, message):
    with pytest.raises(ConfigError, match=message):
        read_prices({**EXAMPLE, **changes})


def test_old_future_and_nameless_prices_are_warned_about():
    at = lambda day, **more: read_prices({**EXAMPLE, **more, "as_of": day}).warnings(TODAY)
    assert at("2026-03-01") == []
    assert "181 days old" in at("2025-12-02")[0]
    assert at("2025-12-03") == []
    assert "in the future" in at("2026-06-02")[0]
    assert at("2026-05-01", source="") == ["the prices name no source"]


def planned(config, known, b, **more):
    return make_plan(
        config, PlanInputs(b, known, read_prices({**EXAMPLE, "as_of": "2026-05-01"}), TODAY, 3, **more)
    )


def test_what_is_not_measured_is_listed_and_never_assumed():
    b, config = benchmark(), asked(months=2, frames_kept=0.1)
    plan = planned(config, measured_from(b, config), b)
    assert plan.selection == 1.0
    text = " ".join(plan.not_measured)
    for word in (
        "selection",
        "decoding",
        "profile",
        "precision",
        "spot machines",
        "size of a stored picture",
    ):
        assert word in text


def test_levers_alone_and_together(tmp_path):
    b = benchmark(*(row(n, "int8.onnx", 0.5) for n in (1, 2, 4, 8)))
    config = asked(months=1, cameras=400)
    known = measured_from(b, config, a_run(tmp_path))
    found = pull_levers(levers_of(known, config, b, 0.1), (known, config, read_prices()), draws=2)
    by = {r["lever"]: r for r in found}
    first, last = found[0], found[-1]
    assert by["frame selection"]["high"] < first["high"]
    assert by["spot machines"]["low"] < first["low"]
    assert by["no JSON lines"]["low"] < first["low"]
    assert last["high"] <= min(r["high"] for r in found if r["high"] is not None)
    assert by["precision"]["source"].startswith("not measured")  # the plan runs the fast file already


def test_a_gated_faster_file_is_a_lever_only_when_it_passed():
    slow = [row(n) | {"images_per_s": 500 * n} for n in (1, 2, 4, 8)]
    fast = [row(n, "int8.onnx", 0.5) | {"images_per_s": 400 * n} for n in (1, 2, 4, 8)]
    b, config = replace(benchmark(), rows=slow + fast), asked(months=1)
    known = measured_from(b, config)
    assert known.advice.artefact == "model.onnx"
    known = replace(known, advice=replace(known.advice, images_per_s=300.0))
    lever = {x.name: x for x in levers_of(known, config, b, None)}["precision"]
    assert lever.known is not None and lever.known.advice.artefact == "int8.onnx"
    ungated = replace(b, rows=[{**r, "gated": False} for r in b.rows])
    assert {x.name: x for x in levers_of(known, config, ungated, None)}["precision"].known is None


def test_a_plan_is_json_and_a_page_without_markup_of_names():
    b, config = benchmark(), asked(months=3, growth_percent=20)
    plan = planned(config, replace(measured_from(b, config), notes=("<b>bold</b>",)), b)
    json.dumps(asdict(plan))
    page = plan_page(plan, [{"factor": 1.0, "p99_ms": None}])
    assert "<b>bold" not in page and "&lt;b&gt;bold" in page
    assert page.count("<svg") == 2 and "Prediction beside the load test" in page
