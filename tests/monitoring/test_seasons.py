"""Days as the unit of exchange: kinds of days, rotations against Student's t, weeks with known truth,
calendars with holes, and every kind of bad input."""

from dataclasses import replace
from datetime import datetime, timezone
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import f as fisher
from scipy.stats import t as student
from scipy.stats import ttest_ind

from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.monitoring import day_drift
from cv_pipeline.monitoring import seasons as S
from cv_pipeline.monitoring.day_drift import LEAST_COUNT, alone, least_alone
from cv_pipeline.monitoring.drift import compare, unit_of
from cv_pipeline.monitoring.observed import DriftSettings, Observed, joined

DAY, MONDAY = 86_400.0, 1_780_272_000.0  # 2026-06-01
FAST = DriftSettings(permutations=799)


def weeks(days, cameras=2, step=600.0, seed=0, first=0, batch=0.5, weekend=0.5, change=None, since=None):
    """Cameras with sun, a batch a day that all see, quiet weekends. `change(name, x, camera, on)` alters a
    column of a camera where `on` is true: from `since` (in days) on."""
    rng = np.random.default_rng(seed)
    at = MONDAY + first * DAY + np.arange(0, days * DAY, step)
    n, day = len(at), ((at - MONDAY) // DAY).astype(int)
    sun = np.clip(np.sin((at % DAY / 3_600 - 6) / 12 * np.pi), 0, 1)
    of_day = batch * rng.standard_normal(days)[day - first]
    on = np.zeros(n, bool) if since is None else at >= MONDAY + (first + since) * DAY
    image = {"brightness": [], "contrast": [], "blur": []}
    for k in range(cameras):
        for name, columns in image.items():
            x = 20 + of_day + 2 * sun + rng.standard_normal(n)
            columns.append(change(name, x, k, on) if change else x)
    boxes = rng.poisson(np.tile(3.0 * np.where(day % 7 >= 5, weekend, 1.0), cameras))
    frame = np.repeat(np.arange(n * cameras), boxes)
    return Observed(
        tuple(f"c{k}" for k in range(cameras)),
        np.repeat(np.arange(cameras), n),
        np.concatenate([at + 0.01 * k for k in range(cameras)]),
        {k: np.concatenate(v).astype(np.float32) for k, v in image.items()},
        None,
        None,
        frame,
        rng.integers(0, 2, len(frame)),
        rng.beta(5, 2, len(frame)).astype(np.float32),
        rng.gamma(4, 0.01, len(frame)).astype(np.float32),
        ("gear", "bolt"),
        "",
        "weeks",
    )


def last(seen, days=1.0, how=FAST, before=()):
    "The last days of a log against all before them."
    end = MONDAY + DAY * np.ceil((seen.at.max() - MONDAY - 1) / DAY)
    return compare(seen.between(0, end - days * DAY), seen.between(end - days * DAY, end), how, before)


def halved(only=None):
    "Half of the brightness, of one camera or of all."
    return lambda name, x, k, on: np.where(on & (only in (None, k)), x / 2, x) if name == "brightness" else x


# --- hours and days -----------------------------------------------------------------------------------------


@given(st.integers(0, 40 * 96), st.integers(1, 20 * 96))
@settings(max_examples=40)
def test_every_frame_has_the_hour_and_the_day_that_counting_back_gives(start, length):
    at = MONDAY + 900.0 * np.arange(start, start + length + 96)
    inside = np.arange(len(at)) >= length
    days = S.days_of(at, inside, least=0)
    end = at[-1]
    used = days.row >= 0
    assert (days.hour == np.minimum((DAY - 1e-3 - (end - at) % DAY) // 3_600, 23)).all()
    assert (np.isin(days.hour, days.hours[:, None].ravel()) == used).all()
    assert (days.window[days.row[used]] == inside[used]).all()
    assert (np.diff(days.number) >= 0).all() and days.number[-1] == -1


@pytest.mark.parametrize(
    "date, hours",
    [((2026, 3, 29), 23), ((2026, 10, 25), 25), ((2026, 6, 1), 24)],
    ids=["spring", "autumn", "summer"],
)
def test_days_of_23_and_25_hours_keep_the_hours_of_the_clock(date, hours):
    start = datetime(*date, tzinfo=timezone.utc).timestamp() - 3 * 3_600
    at = start + np.arange(0, 30 * 3_600, 300.0)
    local = S.wall_clock(at, "Europe/Berlin")
    begins = datetime(*date).replace(tzinfo=timezone.utc).timestamp()  # midnight of that clock
    mine = (local >= begins) & (local < begins + DAY)
    assert mine.sum() == hours * 12
    shown = np.unique(local[mine] % DAY // 3_600)
    assert len(shown) == min(hours, 24) and (2 in shown) == (hours != 23)


def test_a_change_to_summer_time_is_no_drift():
    """A shift begins at six by the clock; in UTC the same hour moves by one. By the wall clock of the place
    nothing has changed."""
    rng = np.random.default_rng(1)
    at = datetime(2026, 3, 15, tzinfo=timezone.utc).timestamp() + np.arange(0, 21 * DAY, 600)
    local = S.wall_clock(at, "Europe/Berlin") % DAY / 3_600
    light = np.where((local >= 6) & (local < 14), 10.0, 0.0) + rng.standard_normal(len(at))
    light += 0.3 * rng.standard_normal(40)[((at - at[0]) // DAY).astype(int)]
    seen = Observed(("a",), np.zeros(len(at), int), at, {"light": light.astype(np.float32)})
    change = datetime(2026, 3, 29, tzinfo=timezone.utc).timestamp()
    window = seen.between(change + 2 * DAY + 4 * 3_600, change + 2 * DAY + 5 * 3_600)  # six o'clock there
    by_clock = compare(seen.between(0, change), window, replace(FAST, timezone="Europe/Berlin"))
    by_utc = compare(seen.between(0, change), window, FAST)
    assert (by_clock.verdict, by_utc.verdict) == ("GREEN", "AMBER")


@pytest.mark.parametrize(
    "reference, window, how, lacking, apart",
    [
        (28, 1, "weekday", (), False),
        (7, 7, "workday or rest day", (), False),
        (7, 1, "workday or rest day", (), False),
        (5, 1, "any day", ("Saturday",), True),
        (3, 1, "any day", ("Thursday",), False),
        (6, 1, "workday or rest day", ("Sunday",), False),
    ],
)
def test_like_days_as_far_as_the_reference_bears(reference, window, how, lacking, apart):
    at = MONDAY + 3_600.0 * np.arange(24 * (reference + window))
    found = S.alike_days(S.days_of(at, at >= MONDAY + reference * DAY))
    assert (found.how, found.lacking, found.apart) == (how, lacking, apart)


def test_rest_days_are_those_of_the_place():
    at = MONDAY + 3_600.0 * np.arange(24 * 5)  # Monday to Friday
    days = S.days_of(at, at >= MONDAY + 4 * DAY)
    assert S.alike_days(days, rest=(4, 5)).apart and not S.alike_days(days).apart


# --- rotations ----------------------------------------------------------------------------------------------


@given(st.integers(3, 12), st.integers(1, 6), st.floats(-3, 3), st.integers(0, 99))
@settings(max_examples=12)
def test_one_column_is_students_t(reference, window, shift, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(reference + window)
    inside = np.arange(len(x)) >= reference
    x[inside] += shift
    plan = S.plan_days(np.zeros(len(x), int), inside[None].astype(float), np.eye(len(x)))
    plan = replace(plan, window=plan.aims)
    d = S.rotations(plan, 8_000, rng)[0][:, 0] @ (plan.basis @ x)
    assert d[0] == pytest.approx(x[inside].mean() - x[~inside].mean())
    assert np.mean(np.abs(d) >= abs(d[0])) == pytest.approx(
        ttest_ind(x[inside], x[~inside]).pvalue, abs=0.025
    )


def test_kinds_of_days_are_the_blocks_of_an_analysis_of_variance():
    """Window minus reference within weekdays: the F of the two-way layout, computed by sums of squares."""
    rng = np.random.default_rng(5)
    kind, inside = np.tile(np.arange(7), 3), np.repeat([0, 0, 1], 7)
    x = 3.0 * kind + rng.standard_normal(21) + 1.0 * inside
    plan = S.plan_days(kind, inside[None].astype(float), np.eye(21))
    plan = replace(plan, window=plan.aims)  # the days of the window measure how days differ, too
    z = plan.basis @ x
    along = float(plan.aims[0] @ z)
    ours = along**2 / ((z @ z - along**2) / plan.freedom)
    design = lambda *c: np.linalg.lstsq(np.stack(c, axis=1).astype(float), x, rcond=None)[1][0]
    dummies = [kind == k for k in range(7)]
    small, large = design(*dummies), design(*dummies, inside)
    assert ours == pytest.approx((small - large) / (large / 13)) and plan.freedom == 13
    assert 0 < fisher.sf(ours, 1, 13) < 1


@pytest.mark.parametrize("truth", [0.0, 0.5])
def test_the_share_of_the_weekday_is_found(truth):
    """Days drawn as a weekday's number plus a day's own: variance components without a covariance matrix."""
    rng, number = np.random.default_rng(3), np.arange(-42, 0)
    days = S.Days(number, number, np.zeros(42, bool), number, number % 7, np.arange(24), 0)
    maker, found = np.eye(42) - 1 / 42, []
    for _ in range(100):
        own, of_weekday = rng.standard_normal((42, 4)), rng.standard_normal((7, 4))
        rows = np.sqrt(1 - truth) * own + np.sqrt(truth) * of_weekday[number % 7]
        found.append(S.weekday_share(maker @ rows, maker, days, 0.0, np.ones(42), 0.0, caution=0.0))
    assert abs(np.mean(found) - truth) < 0.06
    assert S.weekday_share(0 * rows, maker, days, 0.0, np.ones(42), 0.0) == 0.0


def test_what_is_asked_twice_keeps_its_angle_in_every_rotation():
    asked = np.zeros((2, 20))
    asked[0, 13:], asked[1, 19] = 1, 1
    plan = S.plan_days(np.arange(20) % 2, asked, S.covariance(np.arange(20), 0.4, 0.3, np.linspace(1, 3, 20)))
    turned = S.rotations(plan, 200, np.random.default_rng(0))[0] * plan.length[:, None]
    assert np.linalg.norm(turned, axis=2) == pytest.approx(1)
    angle = np.einsum("tm,tm->t", turned[:, 0], turned[:, 1])
    assert angle == pytest.approx(angle[0])


def test_days_needed_are_those_of_students_t():
    for d, window in ((5, 1), (14, 1), (14, 7), (28, 1)):
        just = student.isf(0.0005, d + window - 2) * np.sqrt(1 / d + 1 / window)
        assert (
            S.days_needed(just * 1.0001, window, 0.001) == d
            and S.days_needed(just * 0.9999, window, 0.001) > d
        )
    assert S.days_needed(1.0, 1, 0.001) is None and S.least_p(14, 1) == pytest.approx(1 / 15)


def test_the_band_of_one_more_day_holds_one_more_day():
    rng, inside = np.random.default_rng(2), 0
    for _ in range(60):
        at = np.arange(0, 11 * DAY, 3_600.0)
        x = rng.standard_normal(len(at))
        p = S.day_profile(at, x, at < 10 * DAY, at >= 10 * DAY, level=0.9)
        inside += int((~p.outside[-1]).sum())
    assert inside / (60 * 24) == pytest.approx(0.9, abs=0.025)


# --- the verdict --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_quiet_weeks_are_quiet():
    """40 logs with sun, batches and weekends, windows on all weekdays: at 5 % few alarm, and few are GREY."""
    found = [last(weeks(15, seed=k, first=k % 7, batch=0.7)) for k in range(40)]
    assert sum(d.verdict in ("AMBER", "RED") for d in found) <= 5
    assert sum(d.verdict == "GREY" for d in found) <= 8
    assert sum(np.nanmin([f.p_adjusted for f in d.families]) < 0.05 for d in found) <= 6


@pytest.mark.slow
@pytest.mark.parametrize("reference", [7, 14])
def test_what_is_planted_is_seen_within_the_day_and_has_its_cause(reference):
    noisy = lambda name, x, k, on: np.where(on, x + 3 * np.random.default_rng(k).standard_normal(len(x)), x)
    for change, cause, devices in (
        (halved(), "world changed", None),
        (halved(1), "device fault", ("c1",)),
        (noisy, "world changed", None),
    ):
        for k in range(5):
            d = last(weeks(reference + 1, 3, seed=k, first=k, change=change, since=reference))
            assert (d.verdict, d.cause) == ("AMBER", cause) and devices in (None, d.devices)


def test_a_lamp_that_fails_at_noon_is_seen_by_the_afternoon():
    seen = weeks(15, 2, seed=5, change=halved(0), since=14 + 12 / 24)
    end = MONDAY + 14 * DAY + 15 * 3_600
    d = compare(seen.between(0, end - DAY), seen.between(end - DAY, end), FAST)
    assert (d.verdict, d.devices) == ("AMBER", ("c0",)) and d.families[0].hours <= 6
    before = end - 3.5 * 3_600
    assert compare(seen.between(0, before - DAY), seen.between(before - DAY, before), FAST).verdict == "GREEN"


def test_a_week_at_half_the_light_is_not_green():
    d = last(weeks(28, change=halved(), since=21), 7)
    assert (d.verdict, d.cause) == ("AMBER", "world changed") and d.header["unit"] == "day"
    again = last(weeks(28, change=halved(), since=21), 7, before=d.families)
    assert again.verdict == "RED"


def test_a_fault_in_the_middle_of_a_week_is_seen_in_the_week():
    d = last(weeks(28, 3, change=halved(2), since=24.5), 7)
    assert (d.verdict, d.cause, d.devices) == ("AMBER", "device fault", ("c2",))


@pytest.mark.slow
def test_what_only_one_camera_shows_is_seen_though_days_differ_more():
    """One number of one camera, by less than a batch moves it on half of the days: seen all the same."""
    soiled = lambda name, x, k, on: np.where(on & (k == 1), x + 0.8, x) if name == "blur" else x
    found = [last(weeks(15, 3, seed=k, first=k % 7, batch=1.2, change=soiled, since=14)) for k in range(10)]
    assert sum((d.cause, d.devices) == ("device fault", ("c1",)) for d in found) >= 9


@pytest.mark.parametrize("reference", [7, 14, 21])
def test_a_camera_with_weekends_of_its_own_is_no_fault(reference):
    """One camera of three is in the dark on Saturdays and Sundays; the windows end on them."""
    closed = lambda name, x, k, on: np.where(weekend & (k == 0), x / 2, x) if name == "brightness" else x
    for first in (0, 6):  # the last day is a Sunday or a Saturday
        day = first + (np.arange(0, (reference + 7) * DAY, 600.0) // DAY).astype(int)
        weekend = day % 7 >= 5
        seen = weeks(reference + 7, 3, seed=first, first=first, change=closed)
        end = MONDAY + (first + reference + 7 - (first == 6)) * DAY
        begin = end - (reference + 1) * DAY
        d = compare(seen.between(begin, end - DAY), seen.between(end - DAY, end), FAST)
        assert "c0" not in d.devices
        assert not next(f for f in d.families if f.family == "image").alarm


def test_one_day_against_one_is_grey_and_says_how_many_are_missing():
    d = last(weeks(2, change=halved(), since=1))
    assert (d.verdict, d.cause) == ("GREY", "too few days") and any(
        "4 more days of reference" in n for n in d.notes
    )
    assert next(f for f in d.families if f.family == "image").needed == 4


def test_a_saturday_without_a_saturday_is_the_calendar():
    d = last(weeks(6, weekend=0.1))
    assert d.verdict in ("AMBER", "GREY") and d.cause == "calendar"
    assert any("the reference has no Saturday" in n for n in d.notes)
    twice = last(weeks(6, weekend=0.1), before=[replace(f, state="AMBER") for f in d.families])
    assert twice.verdict != "RED"
    fault = last(weeks(6, 3, change=halved(1), since=5))
    assert (fault.cause, fault.devices) == ("device fault", ("c1",))  # one camera is not the calendar


@pytest.mark.slow
def test_cameras_that_come_and_go_are_named():
    seen = weeks(15, 12)
    end = MONDAY + 14 * DAY
    new = last(seen.rows((seen.camera != 5) | (seen.at >= end)))
    assert (new.verdict, new.cause) == (
        "AMBER",
        "mix shift",
    ) and "c5 is new: it has no reference" in new.notes
    gone = last(seen.rows((seen.camera != 5) | (seen.at < end)))
    assert (gone.verdict, gone.cause, gone.devices) == ("AMBER", "device fault", ("c5",))
    assert "c5 sends nothing any more" in gone.notes


# --- calendars with holes, other cadences, what never changes -----------------------------------------------


def test_a_camera_that_sleeps_at_night_is_judged_by_its_days():
    seen = weeks(15, 2, change=halved(1), since=14)
    awake = seen.rows((seen.camera == 0) | ((seen.at % DAY > 7 * 3_600) & (seen.at % DAY < 19 * 3_600)))
    d = last(awake)
    assert (d.verdict, d.devices) == ("AMBER", ("c1",))
    assert last(weeks(15).rows((seen.camera == 0) | (seen.at % DAY > 12 * 3_600))).verdict == "GREEN"


def test_hours_that_the_reference_lacks_are_named():
    seen = weeks(15)
    d = last(seen.rows((seen.at >= MONDAY + 14 * DAY) | (seen.at % DAY >= 5 * 3_600)))
    assert any("c0: the reference has no frames at 0:00, 1:00, 2:00, 3:00, 4:00" in n for n in d.notes)
    assert d.verdict in ("GREEN", "GREY") and d.cause in ("none", "calendar")


def test_missing_days_and_hours_are_no_drift():
    seen, rng = weeks(22, seed=7), np.random.default_rng(0)
    hour = ((seen.at - MONDAY) // 3_600).astype(int)
    lost = rng.random(hour.max() + 1) < 0.15
    out = (seen.at >= MONDAY + 5 * DAY) & (seen.at < MONDAY + 7 * DAY)
    d = last(seen.rows(~lost[hour] & ~out))
    assert d.verdict == "GREEN" and d.header["days"] == [19, 1]


def test_a_window_ten_times_as_dense_is_no_drift():
    seen = weeks(15, step=60.0, seed=4)
    end = MONDAY + 14 * DAY
    for keep in (seen.at >= end, seen.at < end):
        d = last(seen.rows(keep | (np.arange(len(seen)) % 10 == 0)))
        assert d.verdict == "GREEN"


def test_two_time_zones_have_two_nights():
    seen = weeks(15, 2)
    shifted = replace(seen, at=np.where(seen.camera == 1, seen.at - 7 * 3_600, seen.at))
    end = MONDAY + 14 * DAY
    how = replace(FAST, timezone={"c0": "UTC", "c1": "Asia/Bangkok"})
    d = compare(shifted.between(0, end - DAY), shifted.between(end - DAY, end - 3_600), how)
    assert d.verdict == "GREEN" and d.header["unit"] == "day"


def test_what_never_changes_is_no_drift_and_the_first_change_of_it_is():
    flat = lambda seen, value: replace(seen, image={"brightness": np.full(len(seen), value, np.float32)})
    end = MONDAY + 14 * DAY
    seen = weeks(15)
    same = compare(flat(seen.between(0, end), 7), flat(seen.between(end, end + DAY), 7), FAST)
    assert same.verdict == "GREEN" and same.families[0].p == 1
    other = compare(flat(seen.between(0, end), 7), flat(seen.between(end, end + DAY), 9), FAST)
    assert other.verdict == "AMBER"


def test_embeddings_are_compared_by_day_too():
    rng, seen = np.random.default_rng(0), weeks(15, 3)
    vectors = rng.standard_normal((len(seen), 8)).astype(np.float32) * np.array(
        [3, 2, 1, 1, 1, 1, 1, 1], np.float32
    )
    moved = (seen.camera == 2) & (seen.at >= MONDAY + 14 * DAY)
    d = last(replace(seen, embedding=vectors + 3 * moved[:, None].astype(np.float32), embedder="e"))
    assert next(f for f in d.families if f.family == "embedding").devices == ("c2",)
    vectors[::2] = np.nan
    assert last(replace(seen, embedding=vectors, embedder="e")).verdict == "GREEN"


def test_the_unit_follows_what_the_periods_can_bear():
    unit = lambda seen, days, **how: unit_of(
        *joined(*(lambda e: (seen.between(0, e), seen.between(e, 1e12)))(seen.at.max() + 1 - days * DAY)),
        replace(FAST, **how),
    )
    assert unit(weeks(5), 1) == "day" and unit(weeks(2), 1) == "day" and unit(weeks(1), 0.2) == "stretch"
    assert unit(weeks(1), 0.2, unit="day") == "day" and unit(weeks(5), 1, unit="stretch") == "stretch"


@pytest.mark.slow
def test_a_million_frames_are_compared_in_bounded_memory():
    seen = weeks(8, 2, step=1.4)
    assert len(seen) > 980_000
    d = last(seen)
    assert d.header["reference"]["frames"] > 800_000 and d.verdict in ("GREEN", "GREY", "AMBER")
    assert sum(f.effective[0] + f.effective[1] for f in d.families if f.family == "image") <= 420_000


@pytest.mark.parametrize(
    "how, what",
    [
        ({"timezone": "Mars/Olympus"}, "unknown time zone 'Mars/Olympus'"),
        ({"timezone": {"c0": "nowhere"}}, "unknown time zone 'nowhere'"),
        ({"rest_days": (7,)}, "rest_days"),
        ({"unit": "hour"}, "'hour' is not auto, day or stretch"),
    ],
)
def test_settings_of_days_say_what_is_wrong(how, what):
    with pytest.raises(ConfigError, match=what):
        DriftSettings(**how)


def test_periods_that_overlap_or_are_empty_are_refused():
    seen = weeks(3)
    with pytest.raises(DataError, match="overlap"):
        compare(seen.between(0, MONDAY + 2 * DAY), seen.between(MONDAY + DAY, MONDAY + 3 * DAY), FAST)
    with pytest.raises(DataError, match="no frames"):
        compare(seen, seen.between(0, 1), FAST)


def test_counting_noise_of_shares_is_the_same_whatever_the_batch():
    from cv_pipeline.monitoring.day_drift import DayFeature, _steady
    from cv_pipeline.monitoring.seasons import DayRows

    rng, base, n = np.random.default_rng(5), 0.3, 400
    feature = DayFeature("class", "gear", "share", DayRows([], [], 0.0), base=np.array([base]))
    expected = base * (1 - base) / n
    for share in (0.1, 0.3, 0.5, 0.7):
        seen = rng.binomial(n, share, 20_000)[:, None] / n - base
        assert abs(_steady(feature, seen).var() / expected - 1) < 0.08
    at_the_mean = _steady(feature, np.array([[0.0], [1e-4]]))
    assert at_the_mean[0, 0] == 0 and abs(at_the_mean[1, 0] / 1e-4 - 1) < 1e-2  # still in units of shares
    assert np.isfinite(_steady(feature, np.array([[-base], [1 - base]]))).all()
    assert _steady(feature, None) is None


def test_of_many_cameras_one_is_judged_alone_only_where_it_has_boxes_enough():
    window = np.array([False, False, True])
    weights = [np.array([90.0, 80.0, w]) for w in (120.0, 40.0)]  # the whole day, its last hours
    feature = SimpleNamespace(rows=SimpleNamespace(weight=weights))
    tables = {0: [[np.ones((3, 2)), np.ones((3, 2))]]}
    family = lambda least: SimpleNamespace(window=window, features={0: [feature]}, tables=tables, least=least)
    kept = lambda least: [z is not None for z in alone(family(least), 0)[0]]
    assert kept(least_alone(3)) == [True, True]
    assert kept(least_alone(40)) == [True, False]
    assert kept(200.0) == [False, False]
    needed = [least_alone(n) for n in (4, 10, 40, 400)]
    assert needed == sorted(needed) and LEAST_COUNT < needed[0] and needed[-1] < 4 * LEAST_COUNT


@pytest.mark.slow
def test_a_quiet_sunday_of_many_cameras_accuses_none_of_them(monkeypatch):
    # twelve cameras with a handful of boxes each on the window's Sunday, on one of them all of one class
    seen = weeks(14, cameras=12, step=3600.0, seed=5, weekend=0.2)
    few = np.flatnonzero((seen.camera[seen.box_frame] == 4) & (seen.at[seen.box_frame] >= MONDAY + 13 * DAY))
    assert 0 < len(few) < least_alone(12)
    klass = seen.box_class.copy()
    klass[few] = 0
    seen = replace(seen, box_class=klass)
    assert last(seen).devices == ()
    monkeypatch.setattr(day_drift, "least_alone", lambda cameras: 0.0)
    assert "c4" in last(seen).devices, "without the rule it is named"
