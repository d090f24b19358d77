"""Files, names and requests made to harm: each is refused in the words that are promised, or harmless."""

import argparse
import http.client
import json
import re
import signal
import socket
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns import Outcome

SECONDS = 20  # that one attack may take


@dataclass(frozen=True)
class Attack:
    "One input, what reads it, and what must come of it."

    kind: str
    name: str
    act: Callable[[Path], object]  # in an empty folder
    refusal: str | None  # regular expression of the typed error's text; None: no error
    harmless: Callable[[object], bool] | None = None  # of what comes back; None: it must be refused


# --- text formats: payload × reader

DEEP = 200_000
JSON = {  # name → bytes, words of the refusal
    "lists in lists": (b"[" * DEEP, "nested too deeply"),
    "tables in tables": (b'{"a":' * DEEP, "nested too deeply"),
    "a number of 100,000 digits": (
        b'{"a": ' + b"9" * 100_000 + b"}",
        "invalid JSON|must be|no |not |missing",
    ),
    "not a number": (b'{"names": NaN, "version": NaN}', "."),
    "not UTF-8": (b'{"a": "\xff\xfe\xfd"}', "is not UTF-8"),
    "zero bytes": (b"\0" * 64, "invalid JSON|is not UTF"),
    "half a UTF-16 character": ("{}".encode("utf-16")[:-1], "is not UTF-16|invalid"),
    "nothing": (b"", "invalid JSON|empty|no "),
    "a list": (b"[1, 2, 3]", "must be an object|not |no "),
    "a word": (b'"../../etc/passwd"', "must be an object|not "),
    "an object of nothing": (b'{"": {"": [{}, []]}}', "."),
    "a cut file": (b'{"names": ["a", "b"', "invalid JSON"),
}
YAML = {
    "ten to the ninth by aliases": (
        b"a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + b"".join(
            b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 10)) for i in range(9)
        ),
        "expands to more than",
    ),
    "an alias inside itself": (b"a: &a [*a]\n", "invalid YAML|contains itself"),
    "a command": (b'names: !!python/object/apply:os.system ["touch PWNED"]\n', "invalid YAML"),
    "a module": (b"names: !!python/module:os {}\n", "invalid YAML"),
    "lists in lists": (b"[" * 5000, "nested too deeply|invalid YAML"),
    "a key twice": (b"names: [a]\nnames: [b]\n", "duplicate key"),
    "tabs": (b"names:\n\t- a\n", "invalid YAML"),
    "not UTF-8": (b"names: [\xff\xfe\xfd]\n", "is not UTF-8"),
    "zero bytes": (b"\0\0\0", "invalid YAML"),
    "a list": (b"- 1\n- 2\n", "must be|invalid|not |missing"),
    "a character that is none": (b'names: ["\\Uffffffff"]\n', "invalid YAML"),
}
PARQUET = {
    "a footer of two gigabytes": (b"PAR1" + b"\0" * 40 + struct.pack("<I", 2**31 - 1) + b"PAR1", "Parquet"),
    "a footer of junk": (b"PAR1" + b"\x15\xff" * 40 + struct.pack("<I", 80) + b"PAR1", "Parquet"),
    "only its mark": (b"PAR1PAR1", "Parquet"),
    "nothing": (b"", "Parquet"),
    "another format": (b'{"a": 1}', "Parquet"),
    "footers in footers": (b"PAR1" + b"\x1c" * 5000 + struct.pack("<I", 5000) + b"PAR1", "Parquet"),
}


def _json_readers() -> dict[str, tuple[str, Callable[[Path], object]]]:
    "reader → where its file lies, and what reads it."
    from cv_pipeline.annotation.datasets import read_frozen
    from cv_pipeline.annotation.inspection import read_inspection
    from cv_pipeline.annotation.label_studio import read_export
    from cv_pipeline.annotation.review import read_suspects
    from cv_pipeline.annotation.versions import read_version
    from cv_pipeline.core.formats import read_dataset
    from cv_pipeline.evaluation.records import read_coco
    from cv_pipeline.inference.manifest import open_model_folder
    from cv_pipeline.monitoring.audit import read_audit
    from cv_pipeline.monitoring.retraining import read_drift
    from cv_pipeline.optimization.benchmark import read_benchmark
    from cv_pipeline.training.train import read_card

    return {
        "a model's manifest": ("manifest.json", lambda p: open_model_folder(p.parent)),
        "a COCO file": ("coco.json", read_dataset),
        "COCO truth": ("truth.json", lambda p: read_coco(p, p)),
        "a frozen set": ("set.json", read_frozen),
        "a dataset version": ("version.json", lambda p: read_version(p.parent)),
        "label checks": ("qa.json", lambda p: read_inspection(p.parent)),
        "suspects": ("qa.json", read_suspects),
        "an export of Label Studio": ("export.json", lambda p: read_export(p, ["a"])),
        "an audit": ("audit.json", lambda p: read_audit(p.parent)),
        "a drift report": ("metrics.json", lambda p: read_drift(p.parent)),
        "a benchmark": ("benchmark.json", lambda p: read_benchmark(p.parent)),
        "a training": ("run.json", lambda p: read_card(p.parent)),
        "records": ("truth.json", _records),
    }


def _records(path: Path) -> object:
    "What a report kept: two files."
    from cv_pipeline.evaluation.failures import read_records

    (path.parent / "predictions.json").write_bytes(path.read_bytes())
    return read_records(path.parent)


def _yaml_readers() -> dict[str, tuple[str, Callable[[Path], object]]]:
    from cv_pipeline.core.config import load_config
    from cv_pipeline.core.formats import read_dataset
    from cv_pipeline.inference.manifest import open_model_folder
    from cv_pipeline.monitoring.retraining import read_changes

    return {
        "a configuration": ("line.yaml", load_config),
        "a data.yaml": ("data.yaml", read_dataset),
        "a manifest": ("manifest.yaml", lambda p: open_model_folder(p.parent)),
        "declared changes": ("changes.yaml", read_changes),
    }


def _parquet_readers() -> dict[str, tuple[str, Callable[[Path], object]]]:
    from cv_pipeline.core.results import read_results
    from cv_pipeline.evaluation.tracking_scores import read_run
    from cv_pipeline.video.events import read_events

    return {
        "results": ("results.parquet", lambda p: read_results(p.parent)),
        "events": ("events.parquet", lambda p: read_events(p.parent)),
        "tracks": ("results.parquet", lambda p: read_run(p.parent)),
    }


def _files() -> Iterator[Attack]:
    for payloads, readers in (
        (JSON, _json_readers()),
        (YAML, _yaml_readers()),
        (PARQUET, _parquet_readers()),
    ):
        for reader, (name, read) in readers.items():
            for payload, (data, refusal) in payloads.items():

                def act(folder: Path, name: str = name, data: bytes = data, read: Callable = read) -> object:
                    (folder / name).write_bytes(data)
                    return read(folder / name)

                yield Attack(reader, payload, act, refusal)


# --- models

NOT_OF_A_MODEL = (
    "posix.system",
    "builtins.eval",
    "builtins.exec",
    "builtins.getattr",
    "builtins.open",
    "__builtin__.eval",
    "subprocess.Popen",
    "shutil.rmtree",
    "importlib.import_module",
    "pickle.loads",
    "torch.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.storage._load_from_bytes",
    "torch.utils.cpp_extension.load",
    "torch.nn.modules.module.register_module_forward_hook",
    "numpy.load",
    "numpy.core.multiarray.fromfile",
    "ultralytics.YOLO",
    "ultralytics.utils.checks.check_requirements",
    "ultralytics.utils.downloads.safe_download",
    "ultralytics.nn.tasks.torch_safe_load",
    "collections.namedtuple",
    "pathlib.Path.unlink",
)


def checkpoint(path: Path, name: str) -> Path:
    "A checkpoint that names one function."
    module, _, what = name.rpartition(".")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", f"c{module}\n{what}\n.")
    return path


def _message(number: int, content: bytes) -> bytes:
    size, head = len(content), bytearray([number << 3 | 2])
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes(head) + bytes([size]) + content


def onnx_with_weights_in(name: str) -> bytes:
    "A model with one tensor whose weights lie in another file."
    entry = _message(1, b"location") + _message(2, name.encode())
    return _message(7, _message(5, _message(13, entry)))


def _models() -> Iterator[Attack]:
    from cv_pipeline.core.model_files import artefact_sha256, check_checkpoint

    for name in NOT_OF_A_MODEL:
        yield Attack(
            "a checkpoint",
            name,
            lambda folder, name=name: check_checkpoint(checkpoint(folder / "x.pt", name)),
            re.escape(name),
        )
    for name in ("/etc/passwd", "../up", "a/../../up", "..\\up", "C:\\up", "\\\\host\\share", "", "a\0b"):

        def act(folder: Path, name: str = name) -> object:
            (folder / "x.onnx").write_bytes(onnx_with_weights_in(name))
            return artefact_sha256(folder / "x.onnx")

        yield Attack("an ONNX file", f"weights in {name!r}", act, "outside of its folder")
    for what, data in {
        "nothing": b"",
        "junk": b"\xff" * 999,
        "a text": b"hello",
        "a picture": b"\x89PNG\r\n",
    }.items():

        def load(folder: Path, data: bytes = data) -> object:
            from cv_pipeline.inference.loading import load_model

            (folder / "x.onnx").write_bytes(data)
            (folder / "x.yaml").write_text("names: [a]\npreprocess: {imgsz: 32}\n")
            return load_model(folder / "x.onnx")

        yield Attack("an ONNX file", what, load, "cannot open it|not an ONNX|INVALID|empty")
    for field, value in {
        "file": "../../../etc/passwd",
        "file ": "/etc/passwd",
        "file  ": "..\\up.onnx",
        "name": ["x"],
        "names": {"0": "a", "2": "b"},
        "preprocess": {"imgsz": [10**9, 10**9]},
        "preprocess ": {"imgsz": -1},
        "postprocess": {"conf": 7},
        "artefacts": [{"file": "../x.engine", "backend": "tensorrt", "precision": "fp16"}],
        "unknown": 1,
    }.items():

        def open_it(folder: Path, field: str = field.strip(), value: object = value) -> object:
            from cv_pipeline.inference.manifest import open_model_folder

            good = {"name": "m", "file": "m.onnx", "names": ["a"], "preprocess": {"imgsz": 32}}
            (folder / "manifest.json").write_text(json.dumps({**good, field: value}))
            return open_model_folder(folder)

        yield Attack("a manifest", f"{field.strip()}: {str(value)[:40]}", open_it, ".")


# --- pictures, films, lists of addresses


def png(width: int, height: int) -> bytes:
    "A PNG that promises this size and holds almost nothing."

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 999))
        + chunk(b"IEND", b"")
    )


PICTURES = {
    "a PNG of 60,000 × 60,000": ("x.png", png(60_000, 60_000)),
    "a PNG of 2³¹ × 2³¹": ("x.png", png(2**31 - 1, 2**31 - 1)),
    "a PNG of nothing": ("x.png", png(0, 0)),
    "a GIF of 65,535 × 65,535": (
        "x.gif",
        b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x4c\x01\0;",
    ),
    "a BMP of 2³¹": (
        "x.bmp",
        b"BM"
        + struct.pack("<IHHIIiiHHIIIIII", 70, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
    ),
    "a PPM of 10⁹": ("x.ppm", b"P6 1000000000 1000000000 255\n" + b"\0" * 99),
    "a script called .jpg": ("x.jpg", b"<script>alert(1)</script>"),
    "an SVG called .png": (
        "x.png",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    ),
    "a zip called .tif": ("x.tif", b"PK\x03\x04" + b"\0" * 99),
}
LISTS = {
    "HLS to a file": (
        "x.mp4",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    ),
    "HLS to a host": (
        "x.mp4",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://{host}/x.ts\n#EXT-X-ENDLIST\n",
    ),
    "concat to a file": ("x.mp4", "ffconcat version 1.0\nfile /etc/passwd\n"),
    "concat to a host": ("x.mp4", "ffconcat version 1.0\nfile http://{host}/x.mp4\n"),
    "SDP to a host": (
        "x.mp4",
        "v=0\no=- 0 0 IN IP4 {ip}\ns=x\nc=IN IP4 {ip}\nt=0 0\n"
        "m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ),
}


def _pictures() -> Iterator[Attack]:
    from cv_pipeline.core.images import read_image
    from cv_pipeline.video.sources import open_source

    for what, (name, data) in PICTURES.items():

        def act(folder: Path, name: str = name, data: bytes = data) -> object:
            (folder / name).write_bytes(data)
            return read_image(folder / name)

        yield Attack("a picture", what, act, ".")
    for what, (name, text) in LISTS.items():

        def play(folder: Path, name: str = name, text: str = text) -> object:
            with listening() as (ip, port, visitors):
                (folder / name).write_text(text.format(host=f"{ip}:{port}", ip=ip, port=port))
                try:
                    with open_source(folder / name, hardware="none") as source:
                        return next(iter(source))
                finally:
                    assert not visitors(), "an address in a file was visited"

        yield Attack("a film", what, play, ".")


@contextmanager
def listening() -> Iterator[tuple[str, int, Callable[[], bool]]]:
    "A port that notices visitors."
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)

        def visited() -> bool:
            try:
                server.accept()[0].close()
            except BlockingIOError:
                return False
            return True

        yield *server.getsockname()[:2], visited


# --- requests to the health port

REQUESTS = {
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200 + b"\r\n\r\n", 400),
    "no method": (b"\r\n\r\n", 400),
    "an old request": (b"GET /healthz\r\n\r\n", 400),
    "a proxy request": (b"GET http://169.254.169.254/latest HTTP/1.1\r\n\r\n", 400),
    "CONNECT": (b"CONNECT example.com:443 HTTP/1.1\r\n\r\n", 400),
    "a path upwards": (b"GET /../../../etc/passwd HTTP/1.1\r\n\r\n", 404),
    "an encoded path upwards": (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n\r\n", 404),
    "a script": (b"GET /<script>alert(1)</script> HTTP/1.1\r\n\r\n", 404),
    "a header of 100 KB": (b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431),
    "ten thousand headers": (b"GET /healthz HTTP/1.1\r\n" + b"A: b\r\n" * 10_000 + b"\r\n", 431),
    "POST": (b"POST /healthz HTTP/1.1\r\nContent-Length: 9999999999\r\n\r\n", 405),
    "DELETE": (b"DELETE /metrics HTTP/1.1\r\n\r\n", 405),
    "two lengths": (b"GET /healthz HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nGET /", 200),
    "headers that split": (b"GET /healthz?a=%0d%0aSet-Cookie:x HTTP/1.1\r\n\r\n", 200),
    "bytes that are no text": (b"GET /\xff\xfe\xfd HTTP/1.1\r\n\r\n", 404),
}


def asked(port: int, data: bytes) -> int:
    "The status that comes back."
    with socket.create_connection(("127.0.0.1", port), timeout=10) as guest:
        guest.sendall(data)
        answer = http.client.HTTPResponse(guest)
        answer.begin()
        body = answer.read()
        assert b"<script>" not in body and b"root:" not in body
        assert "Set-Cookie" not in answer.headers
        return answer.status


def _requests() -> Iterator[Attack]:
    from cv_pipeline.core.http_server import Answer, HttpServer

    for what, (data, status) in REQUESTS.items():

        def act(folder: Path, data: bytes = data) -> object:
            page = {"/healthz": lambda: Answer(200, "text/plain", b"ok\n")}
            with HttpServer(page, 0) as server:
                return asked(int(server.url.rpartition(":")[2]), data)

        yield Attack("the health port", what, act, None, lambda found, status=status: found == status)


# --- names

NAMES = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    '" onmouseover="alert(1)',
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "+1-1",
    "a|b|c\n|---|",
    "[x](javascript:alert(1))",
    "${{ secrets.TOKEN }}",
    "$(touch PWNED)",
    "`touch PWNED`",
    "; touch PWNED;",
    "%\n* * * * * touch PWNED",
    "\x1b]0;gone\x07\x1b[2J",
    "../../../../tmp/PWNED",
    "/etc/passwd",
    "con",
    "a" * 300,
    "\u202egpj.exe",
    "\udcff\udcfe",
    "",
    ".",
    "..",
)


def _names() -> Iterator[Attack]:
    from cv_pipeline.core.escaping import csv_text, html_text, markdown_text, one_line
    from cv_pipeline.core.files import safe_name

    def page(name: str) -> bool:
        text = html_text(name)
        return not re.search(r"[<>\"'\x1b]", text)

    def file(name: str) -> bool:
        made = safe_name(name)
        plain = made == Path(made).name and made not in ("", ".", "..")
        return plain and len(made.encode()) < 256 and re.fullmatch(r"[\w.-]+", made) is not None

    def cell(name: str) -> bool:
        return not str(csv_text(name)).lstrip().startswith(("=", "+", "-", "@"))

    def line(name: str) -> bool:
        text = markdown_text(name) + one_line(name)
        return "\n" not in text and "\x1b" not in text and "<" not in markdown_text(name)

    for name in NAMES:
        for where, holds in (("HTML", page), ("a file name", file), ("CSV", cell), ("Markdown", line)):
            yield Attack(
                f"a name in {where}",
                ascii(name)[:40],
                lambda folder, n=name, h=holds: h(n),
                None,
                lambda ok: ok is True,
            )


def _schedules() -> Iterator[Attack]:
    import shlex

    import yaml

    from cv_pipeline.reporting.runner import cron_line, github_workflow

    for name in NAMES:

        def cron(folder: Path, name: str = name) -> object:
            line = cron_line("evaluation", {"model": name})
            words = shlex.split(line.split(maxsplit=5)[5].replace(r"\%", "%"))
            given = [w for w in words if w.startswith("model=")]
            return line.count("\n") == 0 and "PWNED" not in " ".join(w for w in words if w not in given)

        def workflow(folder: Path, name: str = name) -> object:
            text = github_workflow("evaluation", {"model": name})
            steps = yaml.safe_load(text)["jobs"]["report"]["steps"]
            command = next(
                s["run"] for s in steps if "report" in s.get("run", "") and "cv-pipeline" in s["run"]
            )
            return "${{ secrets" not in command.replace("${{ '${{' }}", "")

        for where, act in (("crontab", cron), ("a workflow", workflow)):
            yield Attack(
                f"a name in {where}", ascii(name)[:40], act, "line|control|character|%|expression", bool
            )


def attacks() -> list[Attack]:
    "All of them, in a fixed order."
    parts = (_files, _models, _pictures, _requests, _names, _schedules)
    return [attack for part in parts for attack in part()]


# --- striking


@contextmanager
def hurried(seconds: int) -> Iterator[None]:
    "TimeoutError when it takes longer; in the main thread."

    def late(*_: object) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def struck(attack: Attack, folder: Path) -> str | None:
    "What went wrong; None when the promise holds."
    from cv_pipeline.core.types import CVPipelineError

    try:
        with hurried(SECONDS):
            found = attack.act(folder)
    except CVPipelineError as e:
        if attack.refusal is None:
            return f"refused: {e}"
        if not re.search(attack.refusal, str(e)):
            return f"other words: {e}"
        return None
    except BaseException as e:
        return f"{type(e).__name__}: {str(e)[:200]}"
    finally:
        assert not list(folder.rglob("PWNED")) and not Path("PWNED").exists(), "it was run"
    if attack.harmless is not None and attack.harmless(found):
        return None
    return f"went through: {found!r:.200}"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", action="store_true", help="print every attack")


def run(options: argparse.Namespace) -> Iterable[Outcome]:
    kinds: dict[str, list[str | None]] = {}
    for attack in attacks():
        with tempfile.TemporaryDirectory() as place:
            wrong = struck(attack, Path(place))
        kinds.setdefault(attack.kind, []).append(wrong)
        if options.list or wrong:
            print(f"{attack.kind}: {attack.name}: {wrong or 'as promised'}")
    for kind, found in kinds.items():
        bad = sum(w is not None for w in found)
        yield Outcome(
            kind, len(found), bad, "refused in the promised words, or harmless; nothing run, nothing visited"
        )
