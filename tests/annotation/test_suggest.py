"""Drafts by large models: the contract of an endpoint against a real server that answers, refuses, talks
rubbish, drips, dies or never answers; nothing is lost; and the count of what drafts save."""

import inspect
import json
import socket
import threading
from contextlib import contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from cv_pipeline.annotation.annotations import Annotation
from cv_pipeline.annotation.collect import Collected, read_collected, write_collected
from cv_pipeline.annotation.suggest import (
    AskSettings,
    Effort,
    HttpSuggester,
    ObjectSuggester,
    SuggestError,
    check_drafts,
    read_drafts,
    read_prompts,
    read_suggested,
    suggest_drafts,
)
from cv_pipeline.core.types import BackendError, ConfigError, DataError, Detections
from tests.helpers.services import require

SIZE = (160, 120)
GREY = np.full((120, 160, 3), 128, np.uint8)
ONE = {"model": "stub 1", "boxes": [{"prompt": "lid", "xyxy": [10, 20, 60, 70], "score": 0.8}]}


@contextmanager
def service(answer):
    "A server whose `answer(handler, request)` writes the response."
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.asked = asked
            answer(self, asked[-1])

        def log_message(self, *args): ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/suggest", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def reply(handler, body, status=200):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def client(url, **settings):
    how = AskSettings(**{"deadline_s": 20.0, "attempts": 2, "pause_s": 0.0, **settings})
    return HttpSuggester(url, settings=how, wait=lambda s: None)


@pytest.fixture
def selected(tmp_path):
    "Six pictures as `select` writes them, with a box of the log's model in each."
    folder, rows = tmp_path / "selected", []
    folder.mkdir()
    for k in range(6):
        cv2.imwrite(str(folder / f"{k}.png"), np.full((120, 160, 3), 20 * k + 9, np.uint8))
        known = {"class_name": "gear", "confidence": 0.7, "xyxy": [1, 2, 30, 40], "tracker_id": -1}
        at = datetime(2026, 6, 1, 12, 0, k, tzinfo=timezone.utc)
        row = Collected(f"{k}.png", "gate", k, at, SIZE, ("random",), 0.1, f"{k:016x}", 0, "line 4", [known])
        rows.append(row)
    write_collected(folder, rows)
    return folder


# --- the contract


def test_the_request_is_the_documented_one():
    with service(lambda h, _: reply(h, ONE)) as (url, asked):
        client(url).suggest(GREY, ["lid", "hand"])
    (sent,) = asked
    assert set(sent) == {"version", "image", "media_type", "width", "height", "prompts"}
    assert (sent["version"], sent["prompts"], sent["width"], sent["height"]) == (1, ["lid", "hand"], 160, 120)


def test_the_picture_arrives_as_it_is():
    import base64

    image = np.zeros((120, 160, 3), np.uint8)
    image[:, 80:] = (30, 160, 220)
    with service(lambda h, _: reply(h, ONE)) as (url, asked):
        client(url).suggest(image, ["lid"])
    data = np.frombuffer(base64.b64decode(asked[0]["image"]), np.uint8)
    assert np.abs(cv2.imdecode(data, cv2.IMREAD_COLOR).astype(int) - image).mean() < 3


def test_boxes_come_back_as_classes_of_the_prompt():
    rows = [*ONE["boxes"], {"prompt": "hand", "xyxy": [0, 0, 9, 9], "score": 0.1}]
    with service(lambda h, _: reply(h, {"boxes": rows})) as (url, _):
        found = client(url).suggest(GREY, ["hand", "lid"])
    assert found.class_id.tolist() == [1, 0]
    assert found.xyxy.tolist() == [[10, 20, 60, 70], [0, 0, 9, 9]]


def test_the_models_name_is_kept():
    with service(lambda h, _: reply(h, ONE)) as (url, _):
        one = client(url)
        one.suggest(GREY, ["lid"])
    assert one.name == "stub 1"


def test_a_key_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv("SUGGEST_API_KEY", "k3y-of-a-service")
    seen = []
    with service(lambda h, _: (seen.append(h.headers["Authorization"]), reply(h, b"{}", 401))) as (url, _):
        with pytest.raises(SuggestError) as e:
            client(url).suggest(GREY, ["lid"])
    assert seen == ["Bearer k3y-of-a-service"]
    assert "k3y" not in str(e.value)


def test_a_key_does_not_leave_in_the_open(monkeypatch):
    monkeypatch.setenv("SUGGEST_API_KEY", "k3y-of-a-service")
    with pytest.raises(ConfigError, match="without encryption"):
        HttpSuggester("http://models.example.org/suggest")


@pytest.mark.parametrize(
    "body, why",
    [
        (b"<html>login</html>", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[]", "no list `boxes`"),
        ({"boxes": {}}, "no list `boxes`"),
        ({"boxes": [7]}, "not an object"),
        ({"boxes": [{"prompt": "cat", "xyxy": [1, 2, 3, 4]}]}, "not requested"),
        ({"boxes": [{"prompt": ["lid"], "xyxy": [1, 2, 3, 4]}]}, "not requested"),
        ({"boxes": [{"prompt": "lid", "xyxy": [1, 2, 3]}]}, "four numbers"),
        ({"boxes": [{"prompt": "lid", "xyxy": [1, 2, 3, "4"]}]}, "four numbers"),
        ({"boxes": [{"prompt": "lid", "xyxy": [9, 2, 3, 4]}]}, "is empty"),
        ({"boxes": [{"prompt": "lid", "xyxy": [9, 2, 300, 4]}]}, "leaves the picture"),
        ({"boxes": [{"prompt": "lid", "xyxy": [1, 2, 3, 4], "score": 1.5}]}, "not in 0..1"),
        ({"boxes": [{"prompt": "lid", "xyxy": [0.1, 0.1, 0.5, 0.5]}] * 3}, "fractions"),
        ({"boxes": [{"prompt": "lid", "xyxy": [1, 2, 3, 4]}] * 2001}, "at most 2000"),
    ],
    ids=str,
)
def test_rubbish_is_a_typed_error(body, why):
    data = body if isinstance(body, bytes) else json.dumps(body)
    with pytest.raises(SuggestError, match=why):
        read_drafts(data, ["lid", "hand"], SIZE)


def test_a_box_a_little_beyond_the_border_is_cut():
    body = json.dumps({"boxes": [{"prompt": "lid", "xyxy": [-1.5, 2, 161, 40], "score": 1}]})
    assert read_drafts(body, ["lid"], SIZE)[0].xyxy.tolist() == [[0, 2, 160, 40]]


def test_nan_is_refused():
    body = '{"boxes": [{"prompt": "lid", "xyxy": [1, NaN, 3, 4], "score": 1}]}'
    with pytest.raises(SuggestError):
        read_drafts(body, ["lid"], SIZE)


def test_a_suggester_that_fails_is_a_failed_model():
    assert SuggestError("x").exit_code == BackendError("x").exit_code


# --- deadlines and retries


def test_a_busy_service_is_asked_again():
    def answer(handler, _):
        reply(handler, ONE if len(handler.asked) > 1 else b"", 200 if len(handler.asked) > 1 else 503)

    with service(answer) as (url, asked):
        assert len(client(url).suggest(GREY, ["lid"])) == 1
    assert len(asked) == 2


def test_a_refusal_is_not_asked_again():
    with service(lambda h, _: reply(h, b"no", 400)) as (url, asked):
        with pytest.raises(SuggestError, match="HTTP 400"):
            client(url).suggest(GREY, ["lid"])
    assert len(asked) == 1


def test_a_service_that_never_answers_meets_its_deadline():
    free = threading.Event()
    with service(lambda h, _: free.wait(60)) as (url, asked):
        with pytest.raises(SuggestError, match="2 attempts: .*(no response within|timed out)"):
            client(url, deadline_s=0.3).suggest(GREY, ["lid"])
        free.set()
    assert len(asked) == 2


def test_a_service_that_drips_meets_its_deadline():
    free = threading.Event()

    def drip(handler, _):
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        try:
            while not free.wait(0.05):  # each byte is in time, the whole never is
                handler.wfile.write(b" ")
        except OSError:
            pass

    with service(drip) as (url, _):
        with pytest.raises(SuggestError, match="no response within 0.5 s"):
            client(url, deadline_s=0.5, attempts=1).suggest(GREY, ["lid"])
        free.set()


def test_a_closed_port_is_a_typed_error():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with pytest.raises(SuggestError, match="no drafts after 2 attempts"):
        client(f"http://127.0.0.1:{port}/suggest").suggest(GREY, ["lid"])


def test_a_response_without_an_end_is_not_read_to_it():
    def endless(handler, _):
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * (1 << 20))
        except OSError:
            pass

    with service(endless) as (url, _):
        with pytest.raises(SuggestError, match="above 8 MB"):
            client(url, attempts=1).suggest(GREY, ["lid"])


@pytest.mark.parametrize("wrong", [{"deadline_s": 0}, {"attempts": 0}, {"pause_s": -1}, {"deadline_s": 1e9}])
def test_settings_are_checked(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        AskSettings(**wrong)


@pytest.mark.parametrize("url", ["models:80", "ftp://a/b", "http://", "http://me:secret@host/x"])
def test_addresses_are_checked(url):
    with pytest.raises(ConfigError) as e:
        HttpSuggester(url)
    assert "secret" not in str(e.value)


@pytest.mark.parametrize("text", ["", "lid,,hand", "lid, lid", " , "])
def test_prompts_are_checked(text):
    with pytest.raises(ConfigError, match="prompt"):
        read_prompts(text)


# --- pictures for another host are covered


@pytest.fixture
def portrait():
    from cv_pipeline.synthetic.passers import draw_face

    image, head = np.full((240, 320, 3), 140, np.uint8), draw_face(3, 90)
    h, w = head.alpha.shape
    image[20 : 20 + h, 60 : 60 + w] = head.image
    return image, [int(v) for v in np.array(head.box) + (60, 20, 60, 20)]


def sent_face(url, portrait):
    "Mean distance from the grey of a cover, where the face was, in what was sent."
    import base64

    bodies = []
    one = HttpSuggester(
        url, send=lambda *a: (bodies.append(json.loads(a[3])), (200, {}, b'{"boxes": []}'))[1]
    )
    one.suggest(portrait[0], ["lid"])
    image = cv2.imdecode(np.frombuffer(base64.b64decode(bodies[0]["image"]), np.uint8), cv2.IMREAD_COLOR)
    x1, y1, x2, y2 = portrait[1]
    return np.abs(image[y1:y2, x1:x2].astype(int) - 96).mean()


def test_a_face_is_covered_before_it_leaves_for_another_host(portrait):
    assert sent_face("https://models.example.org/suggest", portrait) < 6


def test_a_face_stays_for_a_service_on_this_machine(portrait):
    assert sent_face("http://127.0.0.1:8700/suggest", portrait) > 15


def test_a_reason_switches_the_cover_off(portrait, monkeypatch):
    monkeypatch.setenv("CV_PIPELINE_PRIVACY_OFF", "drawn faces")
    assert sent_face("https://models.example.org/suggest", portrait) > 15


# --- folders


class Draws:
    "A lid in every picture; fails where it is to."

    name = "stub 1"

    def __init__(self, fails=()):
        self.fails, self.seen = set(fails), 0

    def suggest(self, image, prompts):
        self.seen += 1
        if int(image[0, 0, 0]) // 20 in self.fails:
            raise SuggestError("no drafts after 3 attempts: HTTP 503", "stub")
        return Detections([[10, 20, 60, 70]], [0.8], [prompts.index("lid")])


def test_drafts_stand_beside_the_models_boxes(selected, tmp_path):
    suggest_drafts(selected, tmp_path / "out", Draws(), ["lid", "hand"])
    row = read_collected(tmp_path / "out")[0]
    assert [d["class_name"] for d in row.detections] == ["gear", "lid"]
    assert row.model == "line 4 + stub 1"


def test_alone_leaves_the_models_boxes_out(selected, tmp_path):
    suggest_drafts(selected, tmp_path / "out", Draws(), ["lid"], alone=True)
    assert [d["class_name"] for d in read_collected(tmp_path / "out")[0].detections] == ["lid"]


def test_of_a_prompted_class_the_drafts_count(selected, tmp_path):
    suggest_drafts(selected, tmp_path / "out", Draws(), ["lid", "gear"])
    assert [d["class_name"] for d in read_collected(tmp_path / "out")[0].detections] == ["lid"]


def test_label_studio_gets_them_as_predictions(selected, tmp_path):
    from cv_pipeline.annotation.label_studio import drafts_from
    from cv_pipeline.annotation.label_tasks import Project, to_task

    suggest_drafts(selected, tmp_path / "out", Draws(), ["lid"])
    drafts = drafts_from(read_collected(tmp_path / "out"), tmp_path / "out", ["gear", "lid"])
    (prediction,) = to_task(drafts[0], Project(1, "t", ("gear", "lid")), "/x")["predictions"]
    assert [r["value"]["rectanglelabels"] for r in prediction["result"]] == [["gear"], ["lid"]]
    assert prediction["model_version"] == "line 4 + stub 1"


def test_one_failure_leaves_the_others(selected, tmp_path):
    done = suggest_drafts(selected, tmp_path / "out", Draws({2}), ["lid"])
    assert (done.pictures, len(done.problems), len(read_collected(tmp_path / "out"))) == (5, 1, 5)
    assert done.problems[0].startswith("2.png: ")


def test_a_repeat_asks_for_what_is_missing_only(selected, tmp_path):
    suggest_drafts(selected, tmp_path / "out", Draws({2}), ["lid"])
    again = Draws()
    done = suggest_drafts(selected, tmp_path / "out", again, ["lid"])
    assert (again.seen, done.pictures, len(read_collected(tmp_path / "out"))) == (1, 6, 6)


def test_three_failures_in_sequence_end_it_with_what_there_is(selected, tmp_path):
    with pytest.raises(SuggestError, match="3 consecutive failures") as e:
        suggest_drafts(selected, tmp_path / "out", Draws({2, 3, 4, 5}), ["lid"])
    assert "2 of 6 pictures have drafts" in str(e.value)
    assert len(read_collected(tmp_path / "out")) == 2


def test_a_killed_process_continues(selected, tmp_path):
    class Killed(Draws):
        def suggest(self, image, prompts):
            if self.seen == 3:
                raise KeyboardInterrupt
            return super().suggest(image, prompts)

    with pytest.raises(KeyboardInterrupt):
        suggest_drafts(selected, tmp_path / "out", Killed(), ["lid"])
    file = tmp_path / "out" / "drafts.jsonl"
    file.write_bytes(file.read_bytes() + b'{"picture": "3.png", "bo')  # and a torn line
    assert len(read_suggested(tmp_path / "out")) == 3
    after = Draws()
    suggest_drafts(selected, tmp_path / "out", after, ["lid"])
    assert (after.seen, len(read_collected(tmp_path / "out"))) == (3, 6)


def test_a_changed_picture_is_drawn_again(selected, tmp_path):
    suggest_drafts(selected, tmp_path / "out", Draws(), ["lid"])
    cv2.imwrite(str(selected / "1.png"), np.full((120, 160, 3), 33, np.uint8))
    after = Draws()
    suggest_drafts(selected, tmp_path / "out", after, ["lid"])
    assert after.seen == 1
    assert (tmp_path / "out" / "1.png").read_bytes() == (selected / "1.png").read_bytes()


def test_another_prompt_needs_another_folder(selected, tmp_path):
    suggest_drafts(selected, tmp_path / "out", Draws(), ["lid"])
    with pytest.raises(ConfigError, match="holds drafts of"):
        suggest_drafts(selected, tmp_path / "out", Draws(), ["lid", "hand"])


def test_a_foreign_folder_is_left_alone(selected, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(ConfigError, match="not empty"):
        suggest_drafts(selected, tmp_path / "out", Draws(), ["lid"])
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


# --- objects


class Boxes:
    def __init__(self, xyxy, conf, cls):
        self.xyxy, self.conf, self.cls = np.array(xyxy), np.array(conf), np.array(cls)


class Found:
    def __init__(self, *boxes):
        self.boxes = Boxes(*boxes)


def test_yoloe_gets_words_and_their_vectors():
    calls = []

    class Yoloe:
        def get_text_pe(self, words):
            return ["vector"] * len(words)

        def set_classes(self, words, vectors):
            calls.append((words, vectors))

        def predict(self, image, conf, verbose):
            return [Found([[1, 2, 30, 40]], [0.9], [1.0])]

    one = ObjectSuggester(Yoloe())
    for _ in range(2):
        assert one.suggest(GREY, ["lid", "hand"]).class_id.tolist() == [1]
    assert calls == [(["lid", "hand"], ["vector", "vector"])]


def test_the_methods_are_those_of_ultralytics():
    models = require("ultralytics")
    yoloe, world = (inspect.signature(k.set_classes).parameters for k in (models.YOLOE, models.YOLOWorld))
    assert list(yoloe)[1:3] == ["classes", "embeddings"]
    assert list(world)[1] == "classes"
    assert "texts" in inspect.signature(models.YOLOE.get_text_pe).parameters
    assert not hasattr(models.YOLOWorld, "get_text_pe")


def test_a_model_that_takes_text():
    one = ObjectSuggester(lambda image, text: [Found([[1, 2, 30, 40]], [0.9], [text.index("hand")])], "sam")
    assert one.suggest(GREY, ["lid", "hand"]).class_id.tolist() == [1]


def test_a_class_beyond_the_prompt_is_an_error():
    one = ObjectSuggester(lambda image, text: [Found([[1, 2, 30, 40]], [0.9], [5])], "sam")
    with pytest.raises(SuggestError, match="the model failed"):
        one.suggest(GREY, ["lid"])


# --- the count


def answers(folder, boxes, names=("gear", "lid")):
    "One person's answers about all pictures."
    made = Detections([b for b, _ in boxes], class_id=[names.index(n) for _, n in boxes])
    return [Annotation(r.picture, "ana", SIZE, names, made) for r in read_collected(folder)]


@pytest.mark.parametrize(
    "boxes, action",
    [
        ([([10, 20, 60, 70], "lid")], "accepted"),
        ([([10, 20, 60, 50], "lid")], "moved"),
        ([([10, 20, 60, 70], "gear")], "removed"),  # gear was not prompted: the draft was wrong
        ([], "removed"),
        ([([10, 20, 60, 70], "lid"), ([80, 80, 100, 100], "lid")], "drawn"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_each_action_is_counted(selected, tmp_path, boxes, action):
    suggest_drafts(selected, tmp_path / "out", Draws(), ["lid"])
    (row,) = check_drafts(tmp_path / "out", answers(tmp_path / "out", boxes)).rows()
    assert row[action] == 6


def test_a_box_of_another_prompt_is_renamed(selected, tmp_path):
    suggest_drafts(selected, tmp_path / "out", Draws(), ["lid", "hand"])
    given = answers(tmp_path / "out", [([10, 20, 60, 70], "hand")], ("gear", "lid", "hand"))
    every = check_drafts(tmp_path / "out", given).rows()[-1]
    assert (every["renamed"], every["drawn"], every["wrong"]) == (6, 0, 1.0)


def test_minutes_are_sums_of_the_given_seconds(selected, tmp_path):
    suggest_drafts(selected, tmp_path / "out", Draws(), ["lid"])
    given = answers(tmp_path / "out", [([10, 20, 60, 70], "lid"), ([80, 80, 100, 100], "lid")])
    (row,) = check_drafts(tmp_path / "out", given, Effort(accept_s=10, draw_s=20)).rows()
    assert (row["minutes"], row["without drafts"], row["saved"]) == (3.0, 4.0, 0.25)
    assert row["labels saved"] == 6


def test_answers_about_other_pictures_are_no_answer(selected, tmp_path):
    suggest_drafts(selected, tmp_path / "out", Draws(), ["lid"])
    other = [Annotation("x.png", "ana", SIZE, ("lid",), Detections.empty())]
    with pytest.raises(DataError, match="no answer is about a picture"):
        check_drafts(tmp_path / "out", other)


def test_a_file_of_drafts_that_is_none(selected, tmp_path):
    suggest_drafts(selected, tmp_path / "out", Draws(), ["lid"])
    (tmp_path / "out" / "suggest.json").write_text("[1]")
    with pytest.raises(DataError):
        check_drafts(tmp_path / "out", answers(tmp_path / "out", []))
