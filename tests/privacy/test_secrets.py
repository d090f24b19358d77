"""Secrets in files: what is planted is found and masked, what only looks alike is not reported."""

import base64
import json
import random
import string
from pathlib import Path

import pytest

from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.privacy.secrets import (
    ALLOWED,
    find_secrets,
    known_values,
    mark_of,
    mask_secrets,
    plausible,
    secrets_in,
    secrets_of_file,
)

ROOT = Path(__file__).parents[2]
ALNUM, HEX = string.ascii_letters + string.digits, string.digits + "abcdef"


def drawn(rng, n, of=ALNUM):
    return "".join(rng.choice(of) for _ in range(n))


def lines(rng):
    "Kind → a line with a secret, and the secret."
    upper = string.ascii_uppercase + string.digits
    aws, hexes, word = (
        "AKIA" + drawn(rng, 16, upper),
        drawn(rng, 40, HEX),
        drawn(rng, 11) + rng.choice("!#$+*7"),
    )
    made = {
        "rtsp": (f"rtsp://admin:{word}@192.168.1.{rng.randint(2, 250)}:554/Streaming/101", word),
        "https": (f"remote https://deploy:{word}@git.example.com/x.git", word),
        "bearer": (f'curl -H "Authorization: Bearer {hexes}" https://x', hexes),
        "label studio": (f"Authorization: Token {hexes}", hexes),
        "aws": (f"[default]\naws_access_key_id = {aws}", aws),
        "yaml": (f"cameras:\n  - password: {word}\n", word),
        "quoted yaml": (f'mqtt_password: "{word}"', word),
        "env": (f"export GRAFANA_API_KEY={word}", word),
        "cron": (f"*/5 * * * * TOKEN={hexes} /usr/bin/send", hexes),
        "flag": (f"label pull --token {hexes}", hexes),
        "python": (f"client = Client(api_key='{word}')", word),
        "json": (json.dumps({"smtp": {"password": word, "port": 25}}), word),
        "query": (f"GET http://cam/video.cgi?user=a&pwd={word} HTTP/1.1", word),
        "html": (f"<code>secret=&quot;{word.replace('&', '')}&quot;</code>", word.replace("&", "")),
        "github": ("ghp_" + (t := drawn(rng, 36)), "ghp_" + t),
        "jwt": ("eyJ" + (a := drawn(rng, 20)) + ".eyJ" + a + "." + a, f"eyJ{a}.eyJ{a}.{a}"),
    }
    return made


@pytest.mark.parametrize("seed", range(8))
def test_planted_secrets_are_found_where_they_are(seed):
    for kind, (text, secret) in lines(random.Random(seed)).items():
        found = secrets_in("first line\n" + text, known={})
        assert found, (kind, text)
        assert any(secret in ("first line\n" + text)[s.start : s.end] for s in found), (kind, text, found)
        assert all(secret not in s.hint for s in found), kind


def notebook(path, source, output):
    cell = {
        "cell_type": "code",
        "id": "a",
        "metadata": {},
        "execution_count": 1,
        "source": source,
        "outputs": [],
    }
    cell["outputs"] = [
        {"output_type": "stream", "name": "stdout", "text": output},
        {
            "output_type": "display_data",
            "metadata": {},
            "data": {"image/png": base64.b64encode(bytes(900)).decode()},
        },
    ]
    book = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")
    return path


@pytest.mark.parametrize("suffix", [".ipynb", ".html", ".log", ".yaml"])
def test_a_masked_file_holds_none_of_them_and_all_the_rest(tmp_path, suffix):
    rng, path = random.Random(3), tmp_path / f"file{suffix}"
    texts = lines(rng)
    body = "\n".join(text for text, _ in texts.values()) + "\nthe last line stays\n"
    if suffix == ".ipynb":
        notebook(path, ["x = 1\n", "show()"], body.splitlines(keepends=True))
    else:
        path.write_text(body)
    assert mask_secrets(path, {}) >= len(texts)
    left = path.read_text()
    assert not [kind for kind, (_, secret) in texts.items() if secret in left]
    assert "the last line stays" in left and find_secrets([path], {}).secrets == ()
    assert mask_secrets(path, {}) == 0
    if suffix == ".ipynb":
        book = json.loads(left)
        assert book["cells"][0]["source"] == ["x = 1\n", "show()"]
        assert "image/png" in book["cells"][0]["outputs"][1]["data"]


@pytest.mark.parametrize(
    "text",
    [
        "password_env: CAMERA_PASSWORD",
        "password: str | None = None",
        "token = os.environ['LABEL_STUDIO_API_KEY']",
        "api_key=settings.api_key,",
        "token: ${TOKEN}",
        "password: <your password>",
        "rtsp://user:***@10.0.0.7/live",
        "rtsp://{user}:{password}@{host}/live",
        "the secret of a good report: it is short",
        "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "tokens: 1234567 of 15000000",
        "token_file: /run/secrets/token",
        "def masked(secret: str, tokens: list[str]) -> str:",
        "Basic information about the camera is in the manual",
        "https://example.com/page?key=abc",
    ],
)
def test_what_only_looks_alike_is_not_reported(text):
    assert secrets_in(text, known={}) == []


@pytest.mark.slow
def test_our_own_files_have_less_than_one_false_alarm_in_a_thousand_cells():
    books = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
    search = find_secrets([p for p in books if p.stem != "01_secrets"], {})
    cells = sum(len(json.loads(p.read_text())["cells"]) for p in books)
    assert search.searched == len(books) - 1 and len(search.secrets) <= cells / 1000
    assert (
        find_secrets([ROOT / "README.md", ROOT / "docs", ROOT / "reports", ROOT / "deploy"], {}).secrets == ()
    )


def test_values_of_this_machines_environment_are_known(tmp_path):
    known = known_values({"DB_PASSWORD": "correct horse", "HOME": "/root/long-name", "X_TOKEN": "short"})
    assert known == {"correct horse": "DB_PASSWORD"}
    (tmp_path / "a.txt").write_text("it says correct horse battery")
    found = find_secrets([tmp_path], known).secrets
    assert [(s.kind, s.hint) for s in found] == [("value of an environment variable", "DB_PASSWORD")]


def test_examples_are_allowed_by_their_mark(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.md").write_text("rtsp://admin:s3cret@cam/1 and rtsp://admin:Kl9-really@cam/1")
    (tmp_path / ALLOWED).write_text(f"# examples\n\n{mark_of('s3cret')} in the manual\n")
    found = find_secrets([tmp_path / "deep"], {}).secrets
    assert len(found) == 1 and found[0].start > 30
    mask_secrets(tmp_path / "deep" / "a.md", {})
    assert (tmp_path / "deep" / "a.md").read_text() == "rtsp://admin:s3cret@cam/1 and rtsp://admin:***@cam/1"


def test_folders_of_tools_links_and_binaries_are_left_out(tmp_path):
    for folder in (".git", ".venv", "node_modules"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config").write_text("https://a:Kl9-really@host/x")
    (tmp_path / "model.onnx").write_bytes(b"\0https://a:Kl9-really@host/x")
    (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1"))
    (tmp_path / "link").symlink_to(tmp_path / ".git" / "config")
    search = find_secrets([tmp_path], {})
    assert search.secrets == () and search.searched + search.skipped == 2


def test_bad_input_is_a_typed_error(tmp_path):
    with pytest.raises(ConfigError, match="this file or folder does not exist"):
        find_secrets([tmp_path / "gone"])
    (tmp_path / "cut.ipynb").write_text('{"cells": [')
    with pytest.raises(DataError, match="invalid JSON"):
        secrets_of_file(tmp_path / "cut.ipynb")
    (tmp_path / "large.txt").write_text("x" * 3_000_000)
    with pytest.raises(DataError, match="MiB"):
        secrets_of_file(tmp_path / "large.txt", max_mb=1)


def test_a_picture_inside_a_page_is_not_searched(tmp_path):
    picture = base64.b64encode(bytes(range(256)) * 40).decode()
    (tmp_path / "r.html").write_text(f"<img src='data:image/png;base64,{picture}'>password: Kl9-really")
    found = find_secrets([tmp_path], {}).secrets
    assert [s.kind for s in found] == ["value of a secret setting"]


def test_a_long_line_takes_little_time(tmp_path):
    text = "token " * 200_000 + "://" + "a" * 100_000 + ":" * 50_000
    assert secrets_in(text, known={}) == []


@pytest.mark.parametrize(
    "value", ["", "short", "PASSWORD_OF_CAMERA", "lowercase", "CamelCaseName", "None", "xxxx"]
)
def test_names_and_placeholders_are_not_plausible(value):
    assert not plausible(value)
