"""Label Studio there and back, against the real server: repeated, interrupted, refused, deleted, stopped and
started again."""

import json
import logging
import pickle
import shutil
import traceback
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.annotation import label_studio as L
from cv_pipeline.annotation.annotations import Draft, read_annotations, settle
from cv_pipeline.annotation.collect import Collected
from cv_pipeline.annotation.label_tasks import write_tasks
from cv_pipeline.core.types import ConfigError, DataError, Detections, SinkError
from tests.helpers.label_studio_server import TOKEN, LabelStudio
from tests.helpers.services import free_port

NAMES = ("disc", "ring & <nut>")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    "One server for all tests of this file; each has a project of its own."
    started = LabelStudio(tmp_path_factory.mktemp("labelstudio"))
    yield started
    started.stop()


@pytest.fixture
def token(monkeypatch) -> str:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    return TOKEN


@pytest.fixture
def server(real, token) -> L.Server:
    return L.Server(real.url, pause_s=0.01)


def pictures(folder: Path, n: int, seed: int = 0) -> list[Draft]:
    "Drafts of n different pictures with two boxes each."
    rng, made = np.random.default_rng(seed), []
    for i in range(n):
        path = folder / "frames" / "cam 1" / f"{i:03d} ä.jpg"  # names that need quoting
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 255, (48, 64, 3), np.uint8))
        boxes = Detections([[1.5, 2.25, 30.0, 41.125], [40.0, 10.0, 64.0, 48.0]], [0.9, 0.35], [0, 1])
        made.append(
            Draft(
                path.relative_to(folder).as_posix(),
                path,
                (64, 48),
                NAMES,
                boxes,
                {"source_id": "cam 1", "frame_id": i, "reasons": ["low"]},
                "line 1.2",
            )
        )
    return made


class Cut:
    "The real transport, with a break before or after the n-th creating request."

    def __init__(self, n: int, after: bool, error: BaseException):
        self.n, self.after, self.error, self.calls = n, after, error, 0

    def __call__(self, method, url, headers, body, timeout_s):
        self.calls += method == "POST"
        hit = method == "POST" and self.calls == self.n
        if hit and not self.after:
            raise self.error
        reply = L.http(method, url, headers, body, timeout_s)
        if hit:
            raise self.error
        return reply


def tasks_of(server: L.Server, project: L.Project) -> list[dict]:
    return list(L.pages(server, f"/api/tasks?project={project.id}&fields=all", "tasks", "total", 3))


def answer(server: L.Server, task: int, regions: list[dict], by: int = 1, **more) -> dict:
    return server.call(
        "POST",
        f"/api/tasks/{task}/annotations",
        {"result": regions, "completed_by": by, "lead_time": 7.5, **more},
    )


# ---- the way there -----------------------------------------------------------------------------------------


def test_push_twice_adds_nothing_and_the_pictures_are_served(server, tmp_path):
    drafts, said = pictures(tmp_path, 7)[::-1], []
    first = L.push(
        server, drafts, "twice", several=3, batch=3, progress=lambda done, of: said.append((done, of))
    )
    again = L.push(server, drafts, "twice", batch=3)
    more = L.push(server, [*drafts, *pictures(tmp_path / "b", 2, seed=1)], "twice", batch=3)
    assert (first.new, first.there, again.new, again.there, more.new) == (7, 0, 0, 7, 2)
    assert said == [(3, 7), (6, 7), (7, 7)]
    tasks = tasks_of(server, first.project)
    assert len(tasks) == 9 and len({t["data"]["key"] for t in tasks}) == 9
    assert len(server.call("GET", f"/api/projects/{first.project.id}/file-uploads?all=true")) == 9
    assert [t["data"]["picture"] for t in tasks[:7]] == [d.picture for d in drafts], "the most wanted first"
    by_key = {d.sha256: d for d in drafts}
    for t in tasks[:3]:
        assert server.fetch(t["data"]["image"]) == by_key[t["data"]["key"]].path.read_bytes()
    assert L.read_config(server.call("GET", f"/api/projects/{first.project.id}/")) == L.Project(
        first.project.id, "twice", NAMES, several=3
    )
    [prediction] = tasks[0]["predictions"]
    assert prediction["model_version"] == "line 1.2" and prediction["score"] == pytest.approx(0.35)
    assert [r["value"]["rectanglelabels"] for r in prediction["result"]] == [[NAMES[0]], [NAMES[1]]]
    assert prediction["result"][0]["value"]["x"] == pytest.approx(100 * 1.5 / 64)
    assert "cam 1 · frame 0 · low" in {t["data"]["about"] for t in tasks}


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "answer lost"])
@pytest.mark.parametrize("n", range(1, 8))
def test_a_connection_that_breaks_anywhere_neither_loses_nor_doubles(real, token, tmp_path, n, after):
    cut = Cut(n, after, TimeoutError("timed out"))
    server = L.Server(real.url, pause_s=0.0, send=cut)
    drafts, title = pictures(tmp_path, 5), f"broken {n} {after}"
    done = L.push(server, drafts, title, batch=2)
    assert len(tasks_of(server, done.project)) == 5 == done.new
    assert len(server.call("GET", f"/api/projects/{done.project.id}/file-uploads?all=true")) == 5
    assert (
        sum(r["title"] == title for r in server.call("GET", "/api/projects?page_size=1000")["results"]) == 1
    )
    assert cut.calls >= n, "the break was never reached"


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_a_killed_run_is_finished_by_the_next(real, token, tmp_path, n):
    drafts = pictures(tmp_path, 5)
    with pytest.raises(KeyboardInterrupt):
        L.push(L.Server(real.url, send=Cut(n, True, KeyboardInterrupt())), drafts, f"killed {n}", batch=2)
    server = L.Server(real.url)
    done = L.push(server, drafts, f"killed {n}", batch=2)
    assert done.new + done.there == 5 and len(tasks_of(server, done.project)) == 5
    assert len(server.call("GET", f"/api/projects/{done.project.id}/file-uploads?all=true")) == 5, (
        "an upload without a task was not used again"
    )


def test_the_same_picture_under_two_names_is_one_task(server, tmp_path):
    drafts = pictures(tmp_path, 2)
    copy = tmp_path / "frames" / "z.jpg"
    shutil.copy(drafts[0].path, copy)
    done = L.push(server, [*drafts, Draft("frames/z.jpg", copy, (64, 48), NAMES)], "two names")
    assert done.new == 2 and [p.kind for p in done.problems] == ["picture under two names"]


def test_new_classes_are_added_and_none_taken_away(server, tmp_path):
    drafts = pictures(tmp_path, 2)
    L.push(server, drafts, "classes")
    other = Draft("frames/b.jpg", drafts[1].path, (64, 48), ("bolt",))
    assert L.push(server, [other], "classes").project.names == (*NAMES, "bolt")
    assert L.push(server, drafts, "classes").project.names == (*NAMES, "bolt")


def test_pictures_that_lie_on_the_server(real, server, tmp_path):
    folder = real.pictures / "line" / "week 3"
    drafts = pictures(folder, 3)
    done = L.push(server, drafts, "local files", serve=f"local-files:{real.pictures}/./line/week 3")
    L.push(
        server,
        [*drafts, *pictures(folder / "more", 1, 9)][:3],
        "local files",
        serve=f"local-files:{real.pictures}/./line/week 3",
    )
    task = next(t for t in tasks_of(server, done.project) if t["data"]["key"] == drafts[0].sha256)
    assert server.fetch(task["data"]["image"]) == drafts[0].path.read_bytes()
    assert len(server.call("GET", f"/api/storages/localfiles?project={done.project.id}")) == 1
    elsewhere = pictures(tmp_path, 1, 5)
    with pytest.raises(L.LabelStudioError, match="the server does not show"):
        L.push(
            server,
            [Draft("frames/none.jpg", elsewhere[0].path, (64, 48), NAMES)],
            "local files",
            serve=f"local-files:{real.pictures}/./line/week 3",
        )
    with pytest.raises(L.LabelStudioError, match="the server does not serve"):
        L.push(server, elsewhere, "local 2", serve="local-files:/etc/./ssl")
    with pytest.raises(L.LabelStudioError, match="shows another image"):
        shutil.copy(drafts[1].path, folder / "frames" / "swapped.jpg")
        L.push(
            server,
            [Draft("frames/swapped.jpg", elsewhere[0].path, (64, 48), NAMES)],
            "local files",
            serve=f"local-files:{real.pictures}/./line/week 3",
        )


# ---- and back ----------------------------------------------------------------------------------------------


def test_several_people_come_back_in_pixels(server, tmp_path):
    drafts = pictures(tmp_path, 4)
    project = L.push(server, drafts, "people", several=2).project
    ben = server.call(
        "POST",
        "/api/users/",
        {"email": f"ben{project.id}@line.co", "username": f"ben{project.id}", "first_name": "Ben"},
    )
    tasks = {t["data"]["key"]: t for t in tasks_of(server, project)}
    for d in drafts[:3]:
        drawn = tasks[d.sha256]["predictions"][0]["result"]
        answer(server, tasks[d.sha256]["id"], drawn)
        answer(server, tasks[d.sha256]["id"], drawn[:1], ben["id"])
    answer(server, tasks[drafts[2].sha256]["id"], [], ben["id"], was_cancelled=True)
    server.call(
        "POST", f"/api/tasks/{tasks[drafts[3].sha256]['id']}/drafts", {"result": [], "lead_time": 1}
    )  # begun, not submitted
    came = L.pull(server, "people")
    assert came.people == {"ana@line.co": 3, f"ben{project.id}@line.co": 3} and (
        came.tasks,
        came.waiting,
        came.skipped,
        came.problems,
    ) == (4, 1, 1, ())
    for a in came.annotations:
        d = next(d for d in drafts if d.sha256 == a.sha256)
        n = 2 if a.annotator == "ana@line.co" else 1
        assert (a.picture, a.size, a.names, a.lead_time_s) == (d.picture, (64, 48), NAMES, 7.5)
        np.testing.assert_allclose(a.boxes.xyxy, d.boxes.xyxy[:n], atol=1e-4)
        assert a.boxes.class_id.tolist() == [0, 1][:n] and a.created_at.tzinfo is not None
    assert set(L.pull(server, "people", people="number").people) == {"user-1", f"user-{ben['id']}"}
    one, two = (
        came.save(tmp_path / "a.jsonl").read_bytes(),
        L.pull(server, "people").save(tmp_path / "b.jsonl").read_bytes(),
    )
    assert one == two, "pulling twice gives the same bytes"
    assert len(settle(read_annotations(tmp_path / "a.jsonl", NAMES))[0]) == 6
    export = tmp_path / "export.json"
    export.write_bytes(server.fetch(f"/api/projects/{project.id}/export?exportType=JSON"))
    back = L.read_export(export, NAMES)
    assert sorted((a.picture, len(a.boxes)) for a in back.annotations) == sorted(
        (a.picture, len(a.boxes)) for a in came.annotations
    )


def test_a_file_of_tasks_imported_by_hand(real, server, tmp_path):
    drafts = pictures(real.pictures / "by hand", 3)
    project = L.open_project(server, "by hand", NAMES)
    L._serve_local(server, project, f"local-files:{real.pictures}/./by hand")
    assert write_tasks(drafts, tmp_path / "tasks.json", "/data/local-files/?d=by%20hand") == []
    server.call(
        "POST", f"/api/projects/{project.id}/import", files=[("tasks.json", tmp_path / "tasks.json")]
    )  # as the page does
    tasks = tasks_of(server, project)
    assert {t["data"]["key"] for t in tasks} == {d.sha256 for d in drafts} and len(
        tasks[0]["predictions"][0]["result"]
    ) == 2
    assert (
        server.fetch(tasks[0]["data"]["image"])
        == next(d for d in drafts if d.sha256 == tasks[0]["data"]["key"]).path.read_bytes()
    )
    assert L.push(server, drafts, "by hand").new == 0, "a push afterwards knows them"
    with pytest.raises(ConfigError):
        write_tasks(drafts, tmp_path / "t.json", "upload")
    with pytest.raises(DataError, match="no images to label"):
        write_tasks([], tmp_path / "t.json", "/x")


def region(project: L.Project, kind: str = "rectanglelabels", **value) -> dict:
    return {
        "id": "r1",
        "type": kind,
        "from_name": project.label,
        "to_name": project.image,
        "original_width": 64,
        "original_height": 48,
        "image_rotation": 0,
        "value": {
            "x": 10,
            "y": 20,
            "width": 30,
            "height": 10,
            "rotation": 0,
            "rectanglelabels": ["disc"],
            **value,
        },
    }


BAD = {
    "turned": (dict(rotation=40), "turned by 40 degrees instead of a box"),
    "pixels": (dict(x=320, y=240), "are not percent"),
    "unknown label": (dict(rectanglelabels=["dics"]), r"unknown labels: 'dics' \(1x, 'disc'\?\)"),
    "two labels": (dict(rectanglelabels=["disc", NAMES[1]]), "a box has 2 labels"),
    "no label": (dict(rectanglelabels=[]), "a box has 0 labels"),
    "nothing": (dict(width=None), "a region lacks"),
}


def test_answers_that_are_no_boxes_are_left_out_with_their_reason(server, tmp_path):
    drafts = pictures(tmp_path, len(BAD) + 3)
    project = L.push(server, drafts, "bad answers").project
    tasks = [t["id"] for t in tasks_of(server, project)]
    for (value, _), task in zip(BAD.values(), tasks):
        answer(server, task, [region(project, **value)])
    polygon = {
        **region(project),
        "type": "polygonlabels",
        "value": {"points": [[10, 10], [50, 20], [20, 60]], "polygonlabels": ["disc"]},
    }
    answer(server, tasks[-3], [polygon])
    answer(server, tasks[-2], [{**region(project), "original_width": 48, "original_height": 64}])
    answer(
        server,
        tasks[-1],
        [
            region(project),
            {
                "id": "c",
                "type": "choices",
                "from_name": "x",
                "to_name": "image",
                "value": {"choices": ["good"]},
            },
        ],
    )
    came = L.pull(server, "bad answers")
    assert len(came.annotations) == 1 and len(came.problems) == len(BAD) + 2
    for (name, (_, said)), task in zip(BAD.items(), tasks):
        import re

        problem = next(p for p in came.problems if p.where.startswith(f"task {task},"))
        assert re.search(said, problem.what), f"{name}: {problem.what}"
    around = L.pull(server, "bad answers", shapes="box", rename={"dics": "disc"})
    assert len(around.annotations) == 4
    shape = next(a for a in around.annotations if a.task == f"label-studio:{tasks[-3]}")
    np.testing.assert_allclose(shape.boxes.xyxy, [[6.4, 4.8, 32, 28.8]], atol=1e-4)


def test_nobody_has_answered_yet(server, tmp_path):
    L.push(server, pictures(tmp_path, 2), "nobody")
    came = L.pull(server, "nobody")
    assert (len(came.annotations), came.waiting, came.tasks) == (0, 2, 2)
    with pytest.raises(DataError, match="2 of 2 tasks are open"):
        came.save(tmp_path / "a.jsonl")


def test_tasks_of_another_origin_and_doubled_tasks(server, tmp_path):
    drafts = pictures(tmp_path, 2)
    project = L.push(server, drafts, "origins").project
    task = L.to_task(drafts[0], project, "/data/upload/x.jpg")
    server.call(
        "POST",
        f"/api/projects/{project.id}/import",
        [task, {"data": {"image": "https://example.invalid/a.jpg"}}],
    )  # two runs at once; somebody by hand
    done = L.push(server, drafts, "origins")
    assert (done.new, [p.kind for p in done.problems]) == (0, ["task twice"])
    for t in tasks_of(server, project):
        answer(server, t["id"], [region(project)])
    came = L.pull(server, "origins")
    assert len(came.annotations) == 3 and "it was not sent from here" in came.problems[0].what
    assert len(settle(came.annotations)[0]) == 2


# ---- what goes wrong ---------------------------------------------------------------------------------------


def test_wrong_token_says_so_once_and_never_shows_it(real, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "f00d" * 10)
    calls = []

    def send(*a):
        calls.append(a[0])
        return L.http(*a)

    caplog.set_level(logging.DEBUG)
    with pytest.raises(L.LabelStudioDenied, match="Invalid token") as e:
        L.push(L.Server(real.url, send=send), pictures(tmp_path, 1), "denied")
    assert calls == ["GET"], "a wrong token is not tried again"
    assert "f00d" not in "".join(traceback.format_exception(e.value)) + caplog.text and e.value.exit_code == 5


def test_personal_access_tokens_are_exchanged(real, server, monkeypatch):
    server.call(
        "POST",
        "/api/jwt/settings",
        {"api_tokens_enabled": True, "legacy_api_tokens_enabled": True, "api_token_ttl_days": 30},
    )
    personal = server.call("POST", "/api/token/", {})["token"]
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", personal)
    one = L.Server(real.url)
    assert one.call("GET", "/api/current-user/whoami")["email"] == "ana@line.co"
    one._access = "run.out.token"  # the server's tokens live for minutes
    assert one.call("GET", "/api/current-user/whoami")["email"] == "ana@line.co"
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "wrong.personal.token")
    with pytest.raises(L.LabelStudioDenied) as e:
        L.Server(real.url).call("GET", "/api/projects")
    assert "wrong.personal" not in str(e.value)


def test_a_deleted_project_is_an_error_and_not_a_new_project(server, tmp_path):
    drafts, book = pictures(tmp_path, 2), tmp_path / "labelling.json"
    project = L.push(server, drafts, "deleted", book=book).project
    assert TOKEN not in book.read_text()
    server.call("DELETE", f"/api/projects/{project.id}/")
    for do in (
        lambda: L.push(server, drafts, "deleted", book=book),
        lambda: L.pull(server, "deleted", book=book),
    ):
        with pytest.raises(L.LabelStudioGone, match="was deleted on the server") as e:
            do()
        assert "labelling.json" in e.value.hint
    with pytest.raises(L.LabelStudioGone, match="no project with the title"):
        L.pull(server, "deleted")
    book.unlink()
    assert L.push(server, drafts, "deleted", book=book).new == 2


def test_a_project_deleted_in_the_middle_of_a_push(real, token, tmp_path):
    server, state = L.Server(real.url), {}

    def send(method, url, *rest):
        if url.endswith("/import") and not state:
            state["gone"] = True
            server.call("DELETE", "/api/projects/" + url.split("/")[-2] + "/")
        return L.http(method, url, *rest)

    with pytest.raises(L.LabelStudioGone):
        L.push(L.Server(real.url, send=send), pictures(tmp_path, 2), "vanishing")


@pytest.mark.slow
def test_server_down_then_up_again(real, token, tmp_path):
    paused = []
    drafts = pictures(tmp_path, 4)

    class Stopping:  # the server goes down for good after the first tasks were made
        def __init__(self):
            self.made = 0

        def __call__(self, method, url, *rest):
            if self.made == 1 and real.process:
                real.stop()
            reply = L.http(method, url, *rest)
            self.made += url.endswith("/import")
            return reply

    try:
        with pytest.raises(L.LabelStudioDown, match="does not respond after 3 attempts") as e:
            L.push(
                L.Server(real.url, attempts=3, wait=paused.append, send=Stopping()), drafts, "down", batch=2
            )
        assert paused == [0.5, 1.0] and "continues where it stopped" in e.value.hint
    finally:
        if not real.process:
            real.start()
    server = L.Server(real.url)
    done = L.push(server, drafts, "down", batch=2)
    assert (done.new, done.there) == (2, 2) and len(tasks_of(server, done.project)) == 4
    with pytest.raises(L.LabelStudioDown):
        L.Server(f"http://127.0.0.1:{free_port()}", attempts=2, wait=paused.append).call(
            "GET", "/api/version"
        )


def test_rows_that_go_away_while_pages_are_read(server, tmp_path):
    project = L.push(server, pictures(tmp_path, 9), "shrinking").project
    ids = [t["id"] for t in tasks_of(server, project)]
    seen = []
    for row in L.pages(server, f"/api/tasks?project={project.id}&include=id,data", "tasks", "total", 3):
        if len(seen) == 3:
            [
                server.call("DELETE", f"/api/tasks/{i}/") for i in ids[:2]
            ]  # the others move to pages that were read
        seen.append(row["id"])
    assert len(seen) == len(set(seen)) and set(seen) >= set(ids[2:])


def test_projects_that_are_not_ours(server, tmp_path):
    config = (
        '<View><PolygonLabels name="p" toName="i"><Label value="disc"/></PolygonLabels>'
        '<Image name="i" value="$image"/></View>'
    )
    server.call("POST", "/api/projects", {"title": "polygons", "label_config": config})
    with pytest.raises(DataError, match="it has PolygonLabels"):
        L.push(server, pictures(tmp_path, 1), "polygons")
    for _ in range(2):
        server.call("POST", "/api/projects", {"title": "doubled", "label_config": config})
    with pytest.raises(ConfigError, match="2 projects have the title"):
        L.push(server, pictures(tmp_path, 1), "doubled")
    mine = (
        '<View><Image name="pic" value="$photo"/>'
        '<RectangleLabels name="box" toName="pic"><Label value="disc"/></RectangleLabels></View>'
    )
    server.call("POST", "/api/projects", {"title": "other names", "label_config": mine})
    project = L.push(server, pictures(tmp_path, 1), "other names").project
    assert (project.label, project.image, project.field, project.names) == ("box", "pic", "photo", NAMES)
    [task] = tasks_of(server, project)
    assert (
        task["data"]["photo"].startswith("/data/upload/")
        and task["predictions"][0]["result"][0]["from_name"] == "box"
    )


def test_nothing_is_sent_when_something_is_wrong(server, tmp_path):
    drafts = pictures(tmp_path, 2)
    gone = Draft("frames/gone.jpg", tmp_path / "gone.jpg", (64, 48), NAMES)
    with pytest.raises(DataError, match="the image is missing"):
        L.push(server, [*drafts, gone], "not made")
    with pytest.raises(DataError, match="no images to label"):
        L.push(server, [], "not made")
    with pytest.raises(ConfigError, match="not 3 to 50"):
        L.push(server, drafts, "ab")
    with pytest.raises(ConfigError, match="serve="):
        L.push(server, drafts, "not made", serve="ftp://x")
    with pytest.raises(ConfigError, match="several=0"):
        L.push(server, drafts, "not made", several=0)
    assert L.find_project(server, "not made") is None


# ---- without a server --------------------------------------------------------------------------------------


def test_the_token_comes_from_the_environment_and_stays_there(monkeypatch):
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="LABEL_STUDIO_API_KEY is not set"):
        L.Server("http://127.0.0.1:1")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "bad\nX-Header: 1")
    with pytest.raises(ConfigError) as e:
        L.Server("http://127.0.0.1:1")
    assert "X-Header" not in str(e.value)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "s3cret")
    made = L.Server("http://127.0.0.1:1")
    assert "s3cret" not in repr(made) + str(made)
    with pytest.raises(TypeError):
        pickle.dumps(made)
    for url, said in (
        ("ftp://x", "not a server address"),
        ("127.0.0.1:8080", "not a server address"),
        ("http://me:pw@x", "contains a user name"),
        ("http://x?token=1", "contains a user name"),
    ):
        with pytest.raises(ConfigError, match=said) as e:
            L.Server(url)
        assert "pw" not in str(e.value) and "token=1" not in str(e.value)


def test_a_redirect_to_another_host_does_not_see_the_token(token):
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    seen = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.server.server_port, self.headers.get("Authorization")))
            if self.server.server_port == first.server_port:
                self.send_response(302)
                self.send_header("Location", f"http://127.0.0.1:{second.server_port}/api")
                self.end_headers()
            else:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

        def log_message(self, *a):
            pass

    first, second = HTTPServer(("127.0.0.1", 0), Other), HTTPServer(("127.0.0.1", 0), Other)
    for s in (first, second):
        threading.Thread(target=s.serve_forever, daemon=True).start()
    try:
        with pytest.raises(L.LabelStudioError, match="redirects"):
            L.Server(f"http://127.0.0.1:{first.server_port}").call("GET", "/api")
    finally:
        for s in (first, second):
            s.shutdown()
            s.server_close()
    assert [port for port, _ in seen] == [first.server_port]


def answering(*replies):
    left = iter(replies)

    def send(*a):
        got = next(left)
        if isinstance(got, Exception):
            raise got
        return got

    return send


def test_what_is_asked_again_and_what_is_not(token):
    paused = []
    make = lambda *replies: L.Server("http://x", wait=paused.append, send=answering(*replies))
    ok = (200, {}, b"[]")
    assert make((503, {"Retry-After": "3"}, b""), (429, {"retry-after": "999"}, b""), ok).call(
        "POST", "/a"
    ) == [] and paused == [3.0, 20.0]  # both say: not done
    assert make((502, {}, b""), ConnectionResetError(), ok).call("GET", "/a") == []
    for lost in ((502, {}, b""), (500, {}, b""), ConnectionResetError("reset"), TimeoutError("late")):
        with pytest.raises(L.LabelStudioDown) as e:
            make(lost, ok).call("POST", "/a")
        assert e.value.uncertain
    assert make(ConnectionRefusedError("no"), ok).call("POST", "/a") == []  # nobody heard it
    for status, error in (
        (401, L.LabelStudioDenied),
        (404, L.LabelStudioGone),
        (400, L.LabelStudioError),
        (503, L.LabelStudioDown),
    ):
        with pytest.raises(error) as e:
            make(*[(status, {}, json.dumps({"detail": f"what is {TOKEN}?"}).encode())] * 6).call("GET", "/a")
        assert TOKEN not in str(e.value) and "what is ***?" in str(e.value)
    with pytest.raises(L.LabelStudioDown) as e:
        make(*[ConnectionRefusedError(f"header {TOKEN}")] * 6).call("POST", "/a")
    assert TOKEN not in str(e.value)
    with pytest.raises(L.LabelStudioError, match="not JSON") as e:
        make((200, {}, b"<html>login")).call("GET", "/a")
    with pytest.raises(L.LabelStudioError, match="label_config: too short"):
        make((400, {}, json.dumps({"validation_errors": {"label_config": ["too short"]}}).encode())).call(
            "POST", "/a"
        )


sizes = st.tuples(st.integers(8, 4000), st.integers(8, 4000))
unit = st.floats(0, 1, width=32)


@given(sizes, st.lists(st.tuples(unit, unit, unit, unit, st.integers(0, 1)), max_size=6))
def test_there_and_back_is_the_same_box(size, rows):
    rows = [
        (min(a, c), min(b, d), max(a, c), max(b, d), k)
        for a, b, c, d, k in rows
        if abs(a - c) > 1e-3 and abs(b - d) > 1e-3
    ]
    boxes = Detections(
        np.array([r[:4] for r in rows]).reshape(-1, 4) * [*size, *size], class_id=[r[4] for r in rows]
    )
    project = L.Project(1, "t", NAMES)
    task = L.to_task(Draft("a.jpg", Path(__file__), size, NAMES, boxes, model="m"), project, "/a.jpg")
    task = json.loads(json.dumps(task))  # what the wire does
    back = L.read_annotation({"result": task["predictions"][0]["result"]}, task["data"], NAMES, "ana")
    np.testing.assert_allclose(back.boxes.xyxy, boxes.xyxy, atol=1e-3 * max(size) / 100 + 1e-3)
    assert back.boxes.class_id.tolist() == boxes.class_id.tolist() and back.size == size


@given(st.floats(1, 359), sizes)
def test_a_turned_rectangle_is_never_read_as_upright(degrees, size):
    project = L.Project(1, "t", NAMES)
    data = {"picture": "a.jpg", "size": list(size), "key": ""}
    turned = {
        **region(project, x=40, y=40, width=10, height=10, rotation=degrees),
        "original_width": size[0],
        "original_height": size[1],
    }
    with pytest.raises(DataError, match="turned by"):
        L.read_annotation({"result": [turned]}, data, NAMES, "ana")
    try:
        box = (
            L.read_annotation({"result": [turned]}, data, NAMES, "ana", shapes="box")
            .boxes.xyxy[0]
            .astype(float)
        )
    except DataError as e:
        assert "are not percent" in str(e)
        return  # a tall picture: turned out of it
    (w, h), a = (
        np.array(size) * 0.1,
        np.deg2rad(degrees),
    )  # clockwise about the upper left corner, as the page draws it
    x, y = np.array([0, w, w, 0]), np.array([0, 0, h, h])
    xs, ys = 0.4 * size[0] + x * np.cos(a) - y * np.sin(a), 0.4 * size[1] + x * np.sin(a) + y * np.cos(a)
    np.testing.assert_allclose(box, [xs.min(), ys.min(), xs.max(), ys.max()], atol=0.006 * max(size))


def test_a_picture_turned_while_labelling_is_refused():
    data = {"picture": "a.jpg", "size": [64, 48]}
    with pytest.raises(DataError, match="was turned by 90"):
        L.read_annotation(
            {"result": [{**region(L.Project(1, "t", NAMES)), "image_rotation": 90}]}, data, NAMES, "ana"
        )


PROJECT, DATA = L.Project(1, "t", NAMES), {"picture": "a.jpg", "size": [64, 48], "key": "k"}
POLYGON = {
    "id": "p",
    "type": "polygonlabels",
    "value": {"points": [[10, 10], [50, 20], [20, 60]], "polygonlabels": ["disc"]},
}
ODD = {
    "turned by a word": {"result": [region(PROJECT, rotation="abc")]},
    "a day in words": {"result": [], "created_at": "yesterday"},
    "no zone": {"result": [], "created_at": "2026-01-05T09:00:00"},
    "time in words": {"result": [], "lead_time": "long"},
    "value a list": {"result": [{**region(PROJECT), "value": [1, 2]}]},
    "result a table": {"result": {"a": 1}},
    "result a word": {"result": "nothing"},
    "no result": {},
    "regions no tables": {"result": [3]},
    "person a list": {"result": [], "completed_by": [1]},
    "no points": {"result": [{**POLYGON, "value": {"polygonlabels": ["disc"]}}]},
    "points none": {"result": [{**POLYGON, "value": {**POLYGON["value"], "points": []}}]},
    "points ragged": {"result": [{**POLYGON, "value": {**POLYGON["value"], "points": [[1, 2], [3]]}}]},
    "points words": {"result": [{**POLYGON, "value": {**POLYGON["value"], "points": [["a", "b"]]}}]},
    "points NaN": {
        "result": [{**POLYGON, "value": {**POLYGON["value"], "points": [[1, float("nan")], [3, 4]]}}]
    },
    "label a list": {"result": [region(PROJECT, rectanglelabels=[["disc"]])]},
    "labels null": {"result": [region(PROJECT, rectanglelabels=None)]},
    "size in words": {"result": [{**region(PROJECT), "original_width": "wide"}]},
    "turned picture in words": {"result": [{**region(PROJECT), "image_rotation": "left"}]},
    "another size as text": {"result": [{**region(PROJECT), "original_width": "640"}]},
    "endless": {"result": [], "lead_time": float("inf")},
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_one_odd_answer_costs_itself_only(odd):
    good = {
        "id": 7,
        "completed_by": 1,
        "result": [region(PROJECT)],
        "created_at": "2026-01-05T09:00:00Z",
        "lead_time": 2.5,
    }
    tasks = [
        {"id": 1, "data": DATA, "annotations": [{"id": 5, "completed_by": 2, **odd}, good]},
        {"id": 2, "data": {**DATA, "picture": "b.jpg"}, "annotations": [good]},
    ]
    came = L.read_tasks(tasks, NAMES, shapes="box")
    assert [a.picture for a in came.annotations] == ["a.jpg", "b.jpg"] and {
        a.annotator for a in came.annotations
    } == {"user-1"}
    assert [(p.kind, p.where) for p in came.problems] == [
        ("answer left out", "task 1, answer 5")
    ] and came.problems[0].what


def test_odd_tasks_cost_themselves_only():
    good = {"id": 1, "completed_by": 1, "result": [region(PROJECT)]}
    tasks = [
        {"id": i, "data": d, "annotations": a}
        for i, d, a in [
            (3, DATA, [good]),
            ("x", DATA, [good]),
            (None, DATA, [good]),
            (1, {**DATA, "picture": "b.jpg"}, [{**good, "id": "z"}, good, 3, {**good, "id": None}]),
            (2, [1], [good]),
            (4, {**DATA, "size": [float("inf"), 48]}, [good]),
            (5, {**DATA, "size": 3}, [good]),
            (6, DATA, {"a": good}),
            (7, DATA, "done"),
            (8, DATA, None),
        ]
    ]
    came = L.read_tasks(tasks, NAMES)
    assert [a.picture for a in came.annotations] == ["b.jpg"] * 3 + ["a.jpg"] * 3 and (
        came.tasks,
        came.waiting,
    ) == (10, 1)
    assert [p.where for p in came.problems] == [
        "task 1, answer ?",
        "task 2, answer 1",
        "task 4, answer 1",
        "task 5, answer 1",
        "task 6, answer None",
        "task 7, answer ?",
    ]


def test_numbers_that_come_as_text_are_numbers():
    text = {
        **region(PROJECT, x="10", rotation="0"),
        "original_width": "64",
        "original_height": "48.0",
        "image_rotation": "0",
    }
    one, two = (
        L.read_annotation({"result": [r], "lead_time": t}, DATA, NAMES, "ana")
        for r, t in ((region(PROJECT), 3.2), (text, "3.2"))
    )
    assert one.to_dict() == two.to_dict() and one.lead_time_s == 3.2


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        "{}",
        "null",
        '"tasks"',
        "3",
        '{"tasks": 3, "total": 1}',
        '{"tasks": [3], "total": 1}',
        '{"tasks": [{}], "total": 1}',
        '{"tasks": [{"id": 1}]}',
        '{"tasks": [{"id": 1}], "total": "many"}',
        '{"tasks": [], "total": null}',
    ],
)
def test_a_server_that_answers_something_else(token, body):
    server = L.Server("http://x", send=lambda *a: (200, {}, body.encode()))
    with pytest.raises(L.LabelStudioError, match="unexpected response"):
        list(L.pages(server, "/api/tasks?project=1", "tasks", "total"))
    for ask in (
        lambda: L.find_project(server, "line"),
        lambda: L._keys(server, PROJECT),
        lambda: L._uploads(server, PROJECT),
        lambda: L._serve_local(server, PROJECT, "local-files:/a/./b"),
    ):
        try:
            ask()
        except (L.LabelStudioError, DataError):
            pass  # and nothing else
    if body != "[]":
        with pytest.raises(L.LabelStudioError, match="unexpected response"):
            L._uploads(server, PROJECT)
    with pytest.raises(DataError, match="not a project"):
        L.read_config(json.loads(body))


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"url": "http://127.0.', "cannot read the project file"),
        ("[]", "does not name a project"),
        ('{"url": "http://x"}', "does not name a project"),
    ],
)
def test_a_torn_book_is_named(token, tmp_path, text, message):
    book = tmp_path / "label_studio.json"
    book.write_text(text)
    with pytest.raises(DataError, match=message) as e:
        L.find_project(L.Server("http://x", send=lambda *a: (500, {}, b"")), "line", book)
    assert e.value.where == book and "delete it" in e.value.hint


@pytest.mark.slow
def test_books_and_tasks_are_written_whole_or_not_at_all(token, tmp_path, monkeypatch):
    config = L.labelling_config(NAMES)
    server = L.Server(
        "http://x",
        send=answering(
            (200, {}, b'{"results": [], "count": 0}'),
            (201, {}, json.dumps({"id": 4, "title": "line", "label_config": config}).encode()),
        ),
    )
    (tmp_path / "tasks.json").write_text("old")

    def full(*a):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(SinkError, match="No space left"):
        L.open_project(server, "line", NAMES, book=tmp_path / "label_studio.json")
    with pytest.raises(SinkError, match="No space left"):
        write_tasks(pictures(tmp_path, 1), tmp_path / "tasks.json", "/d")
    assert not (tmp_path / "label_studio.json").exists() and (tmp_path / "tasks.json").read_text() == "old"


@pytest.mark.slow
def test_what_is_pulled_replaces_answers_of_the_same_person_only(tmp_path):
    tasks = lambda who, *boxes: [
        {
            "id": 1,
            "data": DATA,
            "annotations": [{"id": 1, "completed_by": {"email": who}, "result": list(boxes)}],
        }
    ]
    file = tmp_path / "a.jsonl"
    for who, boxes in (
        ("ana", [region(PROJECT)]),
        ("ben", [region(PROJECT, rectanglelabels=[NAMES[1]])]),
        ("ana", []),
    ):
        L.read_tasks(tasks(who, *boxes), NAMES).save(file)
    assert {a.annotator: a.class_names for a in read_annotations(file)} == {"ana": (), "ben": (NAMES[1],)}


@pytest.mark.slow
def test_exports_in_another_form(tmp_path):
    for text, said in (
        ("nothing", "not a readable export"),
        ("{}", "JSON-MIN"),
        ('[{"image": "a", "label": []}]', "JSON-MIN"),
    ):
        (tmp_path / "e.json").write_text(text)
        with pytest.raises(DataError, match=said):
            L.read_export(tmp_path / "e.json", NAMES)
    with pytest.raises(DataError, match="not a readable export"):
        L.read_export(tmp_path / "none.json", NAMES)


@pytest.mark.slow
def test_drafts_of_a_collection(tmp_path):
    at = datetime(2026, 1, 2, tzinfo=timezone.utc)
    row = Collected(
        "a.jpg",
        "cam",
        3,
        at,
        (64, 48),
        ("low",),
        0.5,
        "0" * 16,
        detections=[{"class_name": "ring", "confidence": 0.4, "xyxy": [1, 2, 3, 4], "tracker_id": -1}],
    )
    [draft] = L.drafts_from([row], tmp_path)
    assert (
        draft.names == ("ring",)
        and draft.meta["reasons"] == ["low"]
        and draft.boxes.confidence[0] == np.float32(0.4)
    )
    with pytest.raises(DataError, match="not known here"):
        L.drafts_from([row], tmp_path, ("disc",))
    empty = Collected("a.jpg", "cam", 3, at, (64, 48), ("none",), 0.5, "0" * 16)
    with pytest.raises(ConfigError, match="no class names"):
        L.drafts_from([empty], tmp_path)


# ---- disagreements of two models ---------------------------------------------------------------------------


def test_frames_on_which_two_models_disagree_come_back_as_votes(server, tmp_path):
    "A shadow keeps them, people label them on the server, and their answers decide between the models."
    from cv_pipeline.annotation.collect import read_collected
    from cv_pipeline.core.config import load_config
    from cv_pipeline.core.files import read_json, read_json_lines, write_json
    from cv_pipeline.inference.loading import load_model
    from cv_pipeline.inference.manifest import bundled_models
    from cv_pipeline.release.registry import Registry
    from cv_pipeline.release.trial import add_answers, advance_trial, collect_runs, start_trial
    from cv_pipeline.service.assembly import run_config

    stricter, registry = tmp_path / "stricter", Registry.init(tmp_path / "registry")
    shutil.copytree(bundled_models()["factory_line"], stricter)
    book = read_json(stricter / "manifest.json", dict)
    book["postprocess"] |= {"conf": 0.85, "class_conf": {}}
    write_json(stricter / "manifest.json", book | {"version": "1.1"})
    for model in (bundled_models()["factory_line"], stricter):
        registry.add(model, force=True, reason="a test")
    registry.move("factory_line@1.0", "production", force=True, reason="a test")
    start_trial(tmp_path / "trial", tmp_path / "registry", "factory_line@1.1", {"belt": "hall"})
    given = {
        "sources": [{"uri": "line:seed=5,fps=1,frames=120", "id": "belt"}],
        "delivery.out": str(tmp_path / "run"),
    }
    shadow = {"model": str(stricter), "rollout": str(tmp_path / "trial"), "wait": True, "tracker": "none"}
    run_config(load_config(None, {**given, "shadow": shadow}))
    collect_runs(tmp_path / "trial", [tmp_path / "run"])
    folder = tmp_path / "run" / "shadow" / "disagree"
    rows = read_collected(folder)
    both = {r["sha256"]: r for _, r in read_json_lines(folder.with_name("disagreements.jsonl"))}
    assert len(rows) >= 3 and {r.reasons for r in rows} == {("disagree",)}

    names = load_model("factory_line").manifest.names
    pushed = L.push(server, L.drafts_from(rows, folder, names), "disagreements")
    tasks = {t["data"]["key"]: t for t in tasks_of(server, pushed.project)}
    assert pushed.new == len(rows) and set(tasks) == set(both)
    width, height = rows[0].size
    for key, task in tasks.items():  # a person sees what the old model has seen
        regions = []
        for n, box in enumerate(both[key]["old"]):
            x1, y1, x2, y2 = box["xyxy"]
            place = {"x": 100 * x1 / width, "y": 100 * y1 / height}
            size = {"width": 100 * (x2 - x1) / width, "height": 100 * (y2 - y1) / height}
            label = {"rectanglelabels": [box["class_name"]]}
            made = region(pushed.project, **place, **size, **label)
            regions.append(made | {"id": f"r{n}", "original_width": width, "original_height": height})
        answer(server, task["id"], regions)
    came = L.pull(server, "disagreements")
    assert came.problems == () and add_answers(tmp_path / "trial", came.annotations) == len(rows)
    status = advance_trial(tmp_path / "trial")
    assert status.votes == (0, len(rows))
