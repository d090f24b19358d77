"""A running pipeline takes changed cameras, rules and thresholds, whole or not at all; the others do not
notice."""

import gc
import json
import os
import signal
import subprocess
import threading
from datetime import datetime, timezone
from pathlib import Path

import psutil
import pytest

from cv_pipeline.core.config import EventsConfig, load_config
from cv_pipeline.core.files import locked, read_json, read_json_lines, write_json
from cv_pipeline.core.results import read_jsonl
from cv_pipeline.core.runs import RUNNING
from cv_pipeline.core.types import ConfigError, DataError, SinkError
from cv_pipeline.service.assembly import run_config
from cv_pipeline.service.reload import (
    ANSWER,
    LOG,
    REQUEST,
    Reloader,
    ask_reload,
    compare,
    in_profile_now,
    profile_at,
    reloading,
    rules_of,
)
from cv_pipeline.synthetic import line as synthetic_line
from cv_pipeline.synthetic.line import open_line
from cv_pipeline.video.events import read_events
from cv_pipeline.video.pipeline import Channel
from tests.helpers.cli import CLI, start_endless
from tests.helpers.waiting import apart, until

HOLD = 12  # frames that a source gives before it waits
BOX = [[0.2, 0.1], [0.8, 0.1], [0.8, 0.9], [0.2, 0.9]]
NARROW = [[0.4, 0.1], [0.6, 0.1], [0.6, 0.9], [0.4, 0.9]]


def line(name, camera, frames=40):
    return {"uri": f"line:camera={camera},frames={frames},width=320,height=240,speed=260", "id": name}


def zone(name, polygon=BOX, *sources):
    return {"name": name, "polygon": polygon, "sources": list(sources)}


BELT, GATE, YARD = line("belt", 0), line("gate", 1), line("yard", 2, 8)
ZONES = {"zones": [zone("on belt", BOX, "belt"), zone("at gate", BOX, "gate")]}


class Held:
    "A line that waits after some frames, until it is let go."

    live = False

    def __init__(self, source, go):
        self.source, self.go, self.source_id = source, go, source.source_id

    def __iter__(self):
        for k, frame in enumerate(self.source):
            if k == HOLD:
                self.go.wait(60)
            yield frame

    def close(self):
        self.source.close()


class Talk:
    "A run whose sources wait while it is given new files, one after the other."

    def __init__(self, out, files, base=None, **more):
        self.out, self.go, self.files, self.answers = Path(out), threading.Event(), list(files), []
        self.base = base or {"sources": [BELT, GATE], "events": ZONES, **more}
        self.config, self.number, self.pipeline = self.load(self.base), 0, None

    def load(self, given):
        return load_config(None, {**given, "delivery.out": self.out, "delivery.parquet": False})

    def reread(self, path):
        return self.load(json.loads(Path(path).read_text()))

    def tick(self, pipeline):
        self.reloader.tick(pipeline)
        self.pipeline = pipeline
        held = [s for s in pipeline.summary()["sources"].values() if s["state"] == "running"]
        if (self.out / ANSWER).exists():
            self.answers.append(read_json(self.out / ANSWER, dict))
            (self.out / ANSWER).unlink()
        elif len(self.answers) < self.number or any(s["frames_delivered"] < HOLD for s in held):
            pass
        elif not self.may_go_on():
            pass
        elif self.number < len(self.files):
            self.number += 1
            write_json(self.out / "new.yaml", {**self.base, **self.files[self.number - 1]})
            write_json(self.out / REQUEST, {"id": str(self.number), "config": str(self.out / "new.yaml")})
        else:
            self.go.set()
        pipeline._run.life.notes.put("go on")  # ticks at once
        threading.Event().wait(0.005)

    def may_go_on(self):
        "Whether the next file, or the end, may come."
        return True

    def run(self, monkeypatch):
        real = open_line
        monkeypatch.setattr(synthetic_line, "open_line", lambda *given: Held(real(*given), self.go))
        with reloading(self.config, self.reread) as self.reloader:
            self.summary = run_config(self.config, self.tick)
        return self


def rows(talk, source):
    "What was delivered of a source, but for how long it took."
    found = [row for row in read_jsonl(talk.out / "results.jsonl") if row["source_id"] == source]
    return [
        json.dumps({k: v for k, v in row.items() if not k.endswith("_ms") and k != "timings"})
        for row in found
    ]


def events(talk, source):
    found = [e for e in read_events(talk.out).to_pylist() if e["source_id"] == source]
    return [{k: v for k, v in e.items() if k != "event_id"} for e in found]


CHANGED = {
    "sources": [BELT, YARD],
    "events": {"zones": [zone("on belt", BOX, "belt"), zone("in yard", NARROW, "yard")]},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    "A run that nobody disturbs, and one in which a camera and a zone leave and others come."
    folder = tmp_path_factory.mktemp("reload")
    with pytest.MonkeyPatch.context() as patch:
        quiet = Talk(folder / "quiet", []).run(patch)
    with pytest.MonkeyPatch.context() as patch:
        return quiet, Talk(folder / "changed", [CHANGED]).run(patch)


@pytest.mark.slow
def test_an_untouched_camera_is_the_same_to_the_byte(pair):
    quiet, changed = pair
    assert rows(changed, "belt") == rows(quiet, "belt")
    assert len(rows(quiet, "belt")) == 40


def test_an_untouched_camera_has_the_same_events_and_counts(pair):
    quiet, changed = pair
    assert events(changed, "belt") == events(quiet, "belt")
    assert events(quiet, "belt") != []
    counts = [talk.summary["sinks"]["events"]["counts"]["belt"] for talk in pair]
    assert counts[0] == counts[1]


def test_what_changed_is_in_the_answer_the_summary_and_the_log(pair):
    _, changed = pair
    told = ["source added: yard", "source removed: gate", "rules changed: of no source that stays"]
    assert changed.answers[0]["changes"] == told
    assert [c["changes"] for c in changed.summary["changes"]] == [told]
    logged = [row for _, row in read_json_lines(changed.out / LOG)]
    assert [(row["outcome"], row["changes"]) for row in logged] == [("changed", told)]


def test_a_removed_camera_is_delivered_to_its_last_frame_and_keeps_its_counts(pair):
    _, changed = pair
    gate = changed.summary["sources"]["gate"]
    assert (gate["state"], gate["frames_discarded"]) == ("removed", 0)
    assert len(rows(changed, "gate")) == gate["frames_read"] == gate["frames_delivered"]
    assert [e["source"] for e in changed.summary["sinks"]["events"]["earlier"]] == ["gate"]


def test_a_new_camera_is_read_whole_and_watched_from_its_first_frame(pair):
    _, changed = pair
    yard = changed.summary["sources"]["yard"]
    assert (yard["state"], yard["frames_delivered"]) == ("done", 8)
    assert list(changed.summary["sinks"]["events"]["counts"]["yard"]) == ["in yard"]


def test_the_summary_holds_the_configuration_that_counts_now(pair):
    _, changed = pair
    assert [s["id"] for s in changed.summary["config"]["sources"]] == ["belt", "yard"]


# --- by the clock

DAY, NIGHT = (datetime(2026, 6, 1, hour, tzinfo=timezone.utc) for hour in (12, 23))
DARK = {"hours": [{"name": "dark", "start": "22:00", "end": "06:00"}]}


def profile(**more):
    return {"profiles": [{"name": "night", "during": "dark", **more}]}


class Clocked(Talk):
    "The same, at noon; while the sources wait it becomes the hour of each of `hours` in turn."

    def __init__(self, out, base, hours, files=()):
        super().__init__(out, files, base)
        self.hours, self.time, self.names = list(hours), DAY, []

    def may_go_on(self):
        if self.names and self.reloader.profile != self.names[-1] and not self.refused():
            return False
        if self.hours:
            self.time = self.hours.pop(0)
            self.names.append("night" if self.time == NIGHT else None)
            return False
        return True

    def refused(self):
        return any(row["outcome"] == "refused" for _, row in read_json_lines(self.out / LOG))

    def run(self, monkeypatch):
        real = open_line
        monkeypatch.setattr(synthetic_line, "open_line", lambda *given: Held(real(*given), self.go))
        with reloading(self.config, self.reread, now=lambda: self.time) as self.reloader:
            self.summary = run_config(self.config, self.tick)
        return self


def said(talk):
    return [(row["outcome"], row["changes"]) for _, row in read_json_lines(talk.out / LOG)]


def test_a_profile_counts_from_its_hour_on(tmp_path, monkeypatch):
    base = {"sources": [BELT], "events": DARK, **profile(postprocess={"conf": 0.97})}
    talk = Clocked(tmp_path, base, [NIGHT]).run(monkeypatch)
    assert said(talk) == [("changed", ["profile: base → night", "threshold changed: conf: None → 0.97"])]
    found = [row["detections"] for row in read_jsonl(tmp_path / "results.jsonl")]
    least = [min((d["confidence"] for d in row), default=1.0) for row in found]
    assert min(least[:HOLD]) < 0.97 <= min(least[HOLD:])
    assert [c["changes"][0] for c in talk.summary["changes"]] == ["profile: base → night"]


def test_when_its_hours_end_the_base_counts_again(tmp_path, monkeypatch):
    base = {"sources": [BELT], "events": DARK, **profile(postprocess={"conf": 0.97})}
    talk = Clocked(tmp_path, base, [NIGHT, DAY]).run(monkeypatch)
    assert [changes[0] for _, changes in said(talk)] == ["profile: base → night", "profile: night → base"]
    assert talk.config == talk.load(base)


def test_rules_of_a_profile_come_into_a_run_that_has_none_by_day(tmp_path, monkeypatch):
    base = {"sources": [BELT], "events": DARK, **profile(events={"zones": [zone("yard")]})}
    talk = Clocked(tmp_path, base, [NIGHT]).run(monkeypatch)
    assert said(talk) == [("changed", ["profile: base → night", "rules changed: belt"])]
    assert {e["rule"] for e in read_events(tmp_path).to_pylist()} == {"yard"}


def test_a_new_file_is_taken_with_the_profile_of_the_hour(tmp_path, monkeypatch):
    base = {"sources": [BELT], "events": DARK, **profile(postprocess={"conf": 0.9})}
    file = {"postprocess": {"iou": 0.3}, **profile(postprocess={"conf": 0.95})}
    talk = Clocked(tmp_path, base, [NIGHT], [file]).run(monkeypatch)
    assert said(talk)[1][1] == ["threshold changed: conf: 0.9 → 0.95", "threshold changed: iou: None → 0.3"]


def test_a_run_that_begins_at_night_begins_with_its_profile(tmp_path):
    base = load_config(None, {"sources": [BELT], "events": DARK, **profile(postprocess={"conf": 0.9})})
    monday = base.model_copy(update={"events": EventsConfig(hours=[{"name": "dark"}])})
    assert in_profile_now(monday).postprocess.conf == 0.9 and monday.postprocess.conf is None
    assert profile_at(base, NIGHT) == "night" and profile_at(base, DAY) is None


def test_a_profile_that_a_run_could_not_take_is_known_when_it_begins(tmp_path):
    base = {"sources": [BELT], "events": DARK, "shadow": {"model": "factory_line"}}
    config = load_config(None, {**base, **profile(postprocess={"conf": 0.9})})
    with pytest.raises(ConfigError, match="cannot change into the profile 'night'.*\n.*a shadow is compared"):
        Reloader(config, lambda path: config)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"during": "noon"}, "unknown hours 'noon'"),
        ({"postprocess": {"cnof": 1}}, "did you mean 'conf'"),
        ({"events": {"zones": [zone("z", [[0, 0]])]}}, "profile 'night': events: zones.0.polygon"),
        ({"sources": []}, "unknown key"),
    ],
)
def test_a_wrong_profile_is_refused_when_the_file_is_read(wrong, words):
    given = {"name": "night", "during": "dark", **wrong}
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(None, {"sources": ["rtsp://u:pass@h/x"], "events": DARK, "profiles": [given]})
    assert "pass" not in str(caught.value)


def test_two_profiles_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="'night' is used twice"):
        load_config(None, {"sources": [BELT], "events": DARK, "profiles": profile()["profiles"] * 2})


# --- refused whole

REFUSED = [
    ({"sources": [BELT, GATE, {"uri": "gone.mp4", "id": "c"}]}, "gone.mp4"),
    ({"sources": [BELT, line("gate", 3)]}, "give the camera another id"),
    ({"model": {"path": "other.onnx"}}, "the network is loaded once"),
    ({"tracker": {"name": "bytetrack"}}, "tracks would begin again"),
    ({"postprocess": {"classes": ["unicorn"]}}, "unicorn"),
    ({"events": {"zones": [zone("z", BOX, "nobody")]}}, "nobody"),
    ({"events": {"zones": [zone("z", [[0, 0], [1, 1]])]}}, "polygon"),
    ({"sourcez": []}, "sourcez"),
    ({"sources": [BELT, GATE, {"uri": "rtsp://127.0.0.1:1/x", "id": "c"}]}, "covered in another way"),
]


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    "A run that is given one wrong file after the other, each with good changes too."
    good = {"postprocess": {"conf": 0.9}}
    files = [{**good, **wrong} for wrong, _ in REFUSED]
    with pytest.MonkeyPatch.context() as patch:
        return Talk(tmp_path_factory.mktemp("refused") / "out", files).run(patch)


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=[words for _, words in REFUSED])
def test_a_wrong_file_is_refused_with_its_reason(refused, number):
    answer = refused.answers[number]
    assert (answer["outcome"], answer["changes"]) == ("refused", [])
    assert REFUSED[number][1] in answer["error"]


def test_after_wrong_files_the_old_one_runs_on(refused, pair):
    quiet, _ = pair
    assert [rows(refused, name) for name in ("belt", "gate")] == [rows(quiet, n) for n in ("belt", "gate")]
    assert refused.config == refused.load(refused.base)
    assert "changes" not in refused.summary


@pytest.mark.slow
def test_a_run_without_rules_takes_none(tmp_path, monkeypatch):
    talk = Talk(tmp_path, [{"events": ZONES}], {"sources": [BELT, GATE]}).run(monkeypatch)
    assert "begun without zones" in talk.answers[0]["error"]


@pytest.mark.slow
def test_an_id_is_never_used_twice_in_a_run(tmp_path, monkeypatch):
    talk = Talk(tmp_path, [{"sources": [BELT]}, {"sources": [BELT, GATE]}], {"sources": [BELT, GATE]})
    talk.run(monkeypatch)
    assert [a["outcome"] for a in talk.answers] == ["changed", "refused"]
    assert "had this id before" in talk.answers[1]["error"]


# --- rules and thresholds


@pytest.mark.slow
def test_rules_change_for_their_camera_only(tmp_path, monkeypatch, pair):
    quiet, _ = pair
    narrow = {"zones": [ZONES["zones"][0], zone("at gate", NARROW, "gate")]}
    talk = Talk(tmp_path, [{"events": narrow}]).run(monkeypatch)
    assert talk.answers[0]["changes"] == ["rules changed: gate"]
    assert events(talk, "belt") == events(quiet, "belt")
    assert rows(talk, "gate") == rows(quiet, "gate")
    assert events(talk, "gate") != events(quiet, "gate")


@pytest.mark.slow
def test_thresholds_change_between_two_batches_and_back_to_the_model_s_own(tmp_path, monkeypatch):
    files = [{"postprocess": {"conf": 0.99}}, {}]
    seen = []

    class Noting(Talk):
        def tick(self, pipeline):
            seen.append(pipeline.model.postprocess.conf)
            super().tick(pipeline)

    talk = Noting(tmp_path, files).run(monkeypatch)
    own = seen[0]
    assert sorted(set(seen)) == pytest.approx(sorted({own, 0.99}))
    assert (seen[-1], talk.config.postprocess.conf) == (own, None)


@pytest.mark.slow
def test_all_frames_after_a_threshold_that_nothing_reaches_are_empty(tmp_path, monkeypatch):
    talk = Talk(tmp_path, [{"postprocess": {"conf": 1.0}}]).run(monkeypatch)
    found = [len(r["detections"]) for r in read_jsonl(tmp_path / "results.jsonl") if r["source_id"] == "belt"]
    assert sum(found[:HOLD]) > 0
    assert sum(found[HOLD:]) == 0
    assert talk.answers[0]["changes"] == ["threshold changed: conf: None → 1.0"]


# --- many, and the end


@pytest.mark.slow
def test_thirty_reloads_leave_no_thread_no_channel_and_no_memory(tmp_path, monkeypatch):
    files = [{"sources": [BELT, *([line(f"c{k}", k % 3, 4)] if k % 2 == 0 else [])]} for k in range(30)]
    seen = {}

    class Counting(Talk):
        def tick(self, pipeline):
            super().tick(pipeline)
            if self.number in {10, 30} - set(seen) and len(self.answers) == self.number:
                run = pipeline._run
                if len(run.channels) == 1 and not run.life.leaving:
                    gc.collect()
                    # isinstance would ask a proxy whose object is gone
                    channels = sum(type(o) is Channel for o in gc.get_objects())
                    memory = psutil.Process().memory_info().rss
                    seen[self.number] = (threading.active_count(), channels, memory)

        def may_go_on(self):
            return self.number not in (10, 30) or self.number in seen

    talk = Counting(tmp_path, files, {"sources": [BELT]}).run(monkeypatch)
    assert [a["outcome"] for a in talk.answers] == ["changed"] * 30
    assert seen[30][0] == seen[10][0]
    assert seen[30][1] <= seen[10][1]
    assert seen[30][2] - seen[10][2] < 24e6
    assert len(talk.summary["sources"]) == 16
    assert talk.summary["frames_discarded"] == 0


class Quiet:
    sinks = ()

    def summary(self):
        return {"sources": {}}


def reloader_of(out, reread):
    return Reloader(load_config(None, {"sources": [BELT], "delivery.out": out}), reread)


def test_a_request_that_cannot_be_read_is_refused(tmp_path):
    def never(path):
        raise AssertionError("it must not be called")

    reloader = reloader_of(tmp_path, never)
    (tmp_path / REQUEST).write_text("{torn")
    until(lambda: reloader.tick(Quiet()) or reloader.refused)
    assert not (tmp_path / REQUEST).exists()


def test_a_bug_in_reading_refuses_and_ends_nothing(tmp_path):
    reloader = reloader_of(tmp_path, lambda path: 1 / 0)
    reloader.ask()
    until(lambda: reloader.tick(Quiet()) or reloader.refused)
    assert "ZeroDivisionError" in [row for _, row in read_json_lines(tmp_path / LOG)][0]["error"]


def test_who_asks_when_the_run_ends_gets_an_answer(tmp_path):
    reloader = reloader_of(tmp_path, lambda path: 1 / 0)
    write_json(tmp_path / REQUEST, {"id": "9", "config": None})
    reloader.close()
    answer = read_json(tmp_path / ANSWER, dict)
    assert (answer["id"], answer["outcome"]) == ("9", "refused")
    assert "the run has ended" in answer["error"]


def hung_up(folder):
    "In a process of its own: systemd's signal reaches the run, and the handler of before is back afterwards."
    os.environ["SYSTEMD_EXEC_PID"] = str(os.getpid())
    config = load_config(None, {"sources": [BELT], "delivery.out": folder})
    before = signal.getsignal(signal.SIGHUP)
    with reloading(config, lambda path: config) as reloader:
        assert signal.getsignal(signal.SIGHUP) != before
        os.kill(os.getpid(), signal.SIGHUP)
        until(lambda: reloader.tick(Quiet()) or (Path(folder) / LOG).exists())
    assert signal.getsignal(signal.SIGHUP) == before


@pytest.mark.slow
def test_systemd_s_hang_up_is_a_request(tmp_path):
    apart(hung_up, tmp_path)


def test_a_hang_up_without_systemd_stays_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("SYSTEMD_EXEC_PID", "1")
    before = signal.getsignal(signal.SIGHUP)
    with reloading(load_config(None, {"sources": [BELT], "delivery.out": tmp_path}), lambda path: None):
        assert signal.getsignal(signal.SIGHUP) == before


# --- asking


def test_asking_a_folder_without_a_run_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no run is writing"):
        ask_reload(tmp_path)


def test_asking_a_run_that_was_killed_is_a_data_error(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    write_json(tmp_path / RUNNING, {"process": gone.pid})
    with pytest.raises(DataError, match="has ended"):
        ask_reload(tmp_path)


def test_a_run_in_several_processes_says_no(tmp_path):
    for folder in (tmp_path, tmp_path / "process-00"):
        folder.mkdir(exist_ok=True)
        write_json(folder / RUNNING, {"process": os.getpid()})
    with pytest.raises(ConfigError, match="several processes"):
        ask_reload(tmp_path)


def test_a_run_that_does_not_answer_is_named_and_the_request_is_taken_back(tmp_path):
    write_json(tmp_path / RUNNING, {"process": os.getpid()})
    at = iter(range(1000))
    with pytest.raises(SinkError, match="did not answer within 5 s"):
        ask_reload(tmp_path, wait_s=5, clock=lambda: next(at), sleep=lambda s: None)
    assert not (tmp_path / REQUEST).exists()


def test_two_who_ask_at_once_do_not_mix(tmp_path):
    write_json(tmp_path / RUNNING, {"process": os.getpid()})
    with locked(tmp_path / "reload"), pytest.raises(ConfigError, match="another request"):
        ask_reload(tmp_path, wait_s=0.1)
    assert not (tmp_path / REQUEST).exists()


# --- comparing


def loaded(**given):
    return load_config(None, {"sources": [BELT, GATE], **given})


def test_the_same_file_changes_nothing():
    assert compare(loaded(events=ZONES), loaded(events=ZONES)).notes == []


def test_names_from_addresses_stay_with_their_cameras():
    old = load_config(None, {"sources": ["line:camera=0", "line:camera=1"]})
    new = load_config(None, {"sources": ["line:camera=1"]})
    assert (compare(old, new).removed, compare(old, new).names) == (("line",), ("line-2",))


def test_a_rule_that_is_written_for_all_and_for_one_is_the_same_for_that_one():
    one, all_ = loaded(events={"zones": [zone("z", BOX, "belt")]}), loaded(events={"zones": [zone("z")]})
    assert compare(one, all_).rules == ("gate",)


def test_hours_count_only_where_a_rule_uses_them():
    hours = [{"name": "night", "start": "22:00", "end": "06:00", "timezone": "UTC"}]
    plain = loaded(events=ZONES)
    assert rules_of(loaded(events={**ZONES, "hours": hours}).events, "belt") == rules_of(plain.events, "belt")


def test_every_problem_is_listed():
    with pytest.raises(ConfigError) as caught:
        compare(loaded(), loaded(model={"path": "x.onnx"}, health={"port": 1}, site="elsewhere"))
    assert len(caught.value.problems) == 3


# --- the command


def reload(out, *args):
    done = subprocess.run([CLI, "reload", str(out), *args], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.slow
def test_the_command_changes_a_real_run(tmp_path):
    out, new = tmp_path / "out", tmp_path / "new.yaml"
    new.write_text("postprocess: {conf: 0.5}\n")
    process = start_endless(out, "--realtime")
    until(lambda: (out / "results.jsonl").exists() and (out / RUNNING).exists(), 60, process)
    code, told = reload(out, "--config", str(new))
    assert (code, "conf: None → 0.5" in told) == (0, True), told
    new.write_text("model: {path: other.onnx}\n")
    code, told = reload(out, "--config", str(new))
    assert (code, "the network is loaded once" in " ".join(told.split())) == (2, True), told
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 129
    summary = read_json(out / "summary.json", dict)
    assert (summary["config"]["postprocess"]["conf"], summary["frames_discarded"]) == (0.5, 0)
