"""Hardware of a device: figures out of small files, signals with hysteresis, and no error for what a system
does not report."""

from datetime import datetime, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError
from cv_pipeline.monitoring import hardware as H

AT = datetime(2026, 6, 1, tzinfo=timezone.utc)
FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
ZONE = "sys/class/thermal/thermal_zone{}/temp"


@pytest.fixture
def root(tmp_path):
    return tmp_path


def put(root, path, text):
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(text if isinstance(text, bytes) else text.encode())


def read(root):
    return H.read_hardware(root, root, lambda _: None)


def test_an_empty_system_reports_nothing(root):
    assert read(root) == H.HardwareReading() and read(root).to_dict() == {}


def test_the_hottest_zone_counts(root):
    for k, value in enumerate((41_000, 63_500, 0, -128_000, 200_000)):
        put(root, ZONE.format(k), f"{value}\n")
    assert read(root).temperature_c == 63.5


def test_sensors_stand_in_where_there_are_no_zones(root):
    put(root, "sys/class/hwmon/hwmon2/temp1_input", "55250")
    assert read(root).temperature_c == 55.2


@pytest.mark.parametrize(
    ("bits", "low", "slow"),
    [("0", False, False), ("1", True, False), ("50005", True, True), ("50000", False, False)],
)
def test_bits_of_the_firmware(root, bits, low, slow):
    put(root, FIRMWARE, bits)
    assert (read(root).undervoltage, read(root).throttled) == (low, slow)


def test_the_alarm_of_a_voltage_sensor(root):
    put(root, "sys/class/hwmon/hwmon1/name", "rpi_volt")
    put(root, "sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1")
    assert read(root).undervoltage is True


def test_another_sensor_is_not_the_supply(root):
    put(root, "sys/class/hwmon/hwmon1/name", "nct6775")
    put(root, "sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1")
    assert read(root).undervoltage is None


@pytest.mark.parametrize(("allowed", "slow"), [(1_500_000, False), (600_000, True)])
def test_a_clock_that_is_held_down(root, allowed, slow):
    put(root, "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq", f"{allowed}")
    put(root, "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq", "1500000")
    assert read(root).throttled is slow


@pytest.mark.parametrize(
    ("text", "share"), [("0x01 0x02", 0.2), ("0x0b 0x01", 1.1), ("0x00 0x00", None), ("?", None)]
)
def test_wear_of_a_card(root, text, share):
    put(root, "sys/block/mmcblk0/device/life_time", text)
    assert read(root).disk_wear == share


def test_memory_and_load(root):
    put(root, "proc/meminfo", "MemTotal:       2000 kB\nMemFree: 1 kB\nMemAvailable:    500 kB\n")
    put(root, "proc/loadavg", "0.5 6.0 3.0 1/99 4321")
    for core in range(4):
        put(root, f"sys/devices/system/cpu/cpu{core}/online", "1")
    assert (read(root).memory_free, read(root).load) == (0.25, 1.5)


def test_space_is_that_of_the_disk_of_the_folder(root):
    found = H.read_hardware(root, root).disk_free
    assert found is not None and 0 <= found <= 1
    assert H.disk_free(root / "nothing") is None


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=80))
def test_no_content_of_any_file_is_an_error(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("root")
    paths = (ZONE.format(0), FIRMWARE, "sys/block/mmcblk0/device/life_time", "proc/meminfo", "proc/loadavg")
    for path in (*paths, "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq"):
        put(root, path, data)
    H.HardwareWatch().update(read(root))


def test_a_folder_in_the_place_of_a_file(root):
    (root / ZONE.format(0)).mkdir(parents=True)
    assert read(root).temperature_c is None


def signals(values, figure="temperature_c", **how):
    "Signals that a series of values raises (+) and clears (-), with the number of the reading."
    watch = H.HardwareWatch(H.HardwareLimits(**how), lambda: AT)
    rows = enumerate(watch.update(H.HardwareReading(**{figure: v})) for v in values)
    return [(k, e.signal, e.raised) for k, events in rows for e in events]


def test_three_readings_must_agree():
    assert signals([81, 82, 79, 81, 81, 81]) == [(5, "too hot", True)]


def test_between_the_limits_nothing_changes():
    assert signals([85] * 3 + [78] * 9 + [74] * 2 + [76] + [74] * 3) == [
        (2, "too hot", True),
        (17, "too hot", False),
    ]


def test_a_missing_figure_changes_nothing():
    assert signals([85, 85, None, 85, None, None]) == [(3, "too hot", True)]


@pytest.mark.parametrize(
    ("figure", "bad", "good"),
    [
        ("temperature_c", 85, 50),
        ("throttled", True, False),
        ("undervoltage", True, False),
        ("disk_free", 0.01, 0.5),
        ("disk_wear", 0.9, 0.2),
        ("memory_free", 0.01, 0.5),
        ("load", 5.0, 0.1),
    ],
)
def test_each_figure_has_a_signal_that_comes_and_goes(figure, bad, good):
    found = signals([good, bad, good], figure, readings=1)
    assert found == [(1, H.SIGNALS[figure][0], True), (2, H.SIGNALS[figure][0], False)]


def test_a_limit_that_is_off_raises_nothing():
    assert signals([500] * 5, temperature_c=None) == []


def test_an_event_is_plain_values_with_words():
    watch = H.HardwareWatch(H.HardwareLimits(readings=1), lambda: AT)
    (event,) = watch.update(H.HardwareReading(disk_free=0.012))
    assert event.to_dict() == {
        "signal": "disk almost full",
        "raised": True,
        "at": "2026-06-01T00:00:00+00:00",
        "value": 0.012,
        "text": "1.2% free",
    }
    assert watch.raised == {"disk almost full": "1.2% free"}


@pytest.mark.parametrize("wrong", [{"load": (1, 1)}, {"load": (1,)}, {"load": ("a", 1)}, {"readings": 0}])
def test_limits_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        H.HardwareLimits(**wrong)
