"Calls leave by real servers: signed, with their key, and without a secret anywhere."

import base64
import email
import json
import os
import socket
import ssl
import threading
from contextlib import contextmanager
from email import policy as mail_policy
from html.parser import HTMLParser

import pytest

from cv_pipeline.alerts.channels import (
    Apprise,
    Email,
    Notice,
    Webhook,
    mail_of,
    notice_html,
    open_channels,
    scrubbed,
    secret_of,
    signature,
    verify_signature,
)
from cv_pipeline.alerts.policy import read_policy
from cv_pipeline.core.http_server import Answer, Guard
from cv_pipeline.core.types import ConfigError, MissingExtraError, SinkError
from cv_pipeline.edge.forward import InboxServer
from tests.helpers.services import free_port, require

NASTY = "<script>alert(1)</script>\r\nBcc: all@example.com\x00"
PLANTED = "-".join(["planted", "value", "17"])
CALL = Notice(
    "book-7.0.0.0-desk", 7, "call", "critical", 1, False, "Brno", NASTY, NASTY, NASTY, NASTY,
    1_780_000_000.0, 3, 2, "https://alerts.example/a/token", (b"\xff\xd8picture",),
)  # fmt: skip


class Receiver:
    "A web server that keeps what it gets."

    def __init__(self, status=204, **how):
        self.got, self.status = [], status
        self.server = InboxServer(self.answer, **how)
        self.url = self.server.url + "/hook?x=1"

    def answer(self, request):
        self.got.append(request)
        return Answer(self.status, "text/plain", b"", (("Location", "/elsewhere"),))


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.server.close()


def hook(url, **more):
    return Webhook("desk", {"kind": "webhook", "url": url, "timeout_s": 2, **more}, lambda: 1000.0)


# -- what a call says


def test_a_title_is_one_line():
    assert "\n" not in CALL.title and CALL.title.startswith("CRITICAL Brno / <script>")


@pytest.mark.parametrize("kind", ["call", "reminder", "resolved", "test"])
def test_every_kind_says_what_it_is(kind):
    word = {"call": "WARNING", "reminder": "REMINDER", "resolved": "RESOLVED", "test": "TEST"}[kind]
    assert Notice("k", 1, kind, camera="gate", rule="fence").title == f"{word} gate: fence"


def test_html_has_no_tag_of_its_fields():
    tags = []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attrs: tags.append(tag)
    reader.feed(notice_html(CALL))
    assert set(tags) == {"h2", "p"}


# -- webhooks


def test_a_webhook_posts_the_call_with_its_key(receiver):
    hook(receiver.url).send(CALL)
    (request,) = receiver.got
    assert (request.method, request.path) == ("POST", "/hook?x=1")
    assert request.headers["idempotency-key"] == CALL.key
    assert json.loads(request.body)["camera"] == NASTY


def test_its_signature_covers_time_and_body(receiver, monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", "a secret of this test")
    hook(receiver.url, secret_env="HOOK_SECRET").send(CALL)
    header, body = receiver.got[0].headers["x-signature"], receiver.got[0].body
    assert verify_signature("a secret of this test", header, body, 1200.0)
    assert not verify_signature("a secret of this test", header, body + b" ", 1200.0)
    assert not verify_signature("a secret of this test", header, body, 1400.0)
    assert not verify_signature("another secret", header, body, 1200.0)


@pytest.mark.parametrize(
    "header", ["", "t=,v1=", "t=1e3,v1=00", "t=9" * 40, "v1=00", "t=1000", "t=١٠٠٠,v1=0", "é=x"]
)
def test_a_signature_that_is_none_is_refused(header):
    assert not verify_signature("secret", header, b"{}", 1000.0)


def test_a_signature_is_the_usual_construction():
    import hashlib
    import hmac

    good = hmac.new(b"key", b"17.{}", hashlib.sha256).hexdigest()
    assert signature("key", b"{}", 17) == f"t=17,v1={good}"


def test_pictures_go_only_where_they_are_wanted(receiver):
    hook(receiver.url).send(CALL)
    hook(receiver.url, pictures=True).send(CALL)
    without, with_them = (json.loads(r.body) for r in receiver.got)
    assert "pictures" not in without
    assert base64.b64decode(with_them["pictures"][0]) == CALL.pictures[0]


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 429, 500, 503])
def test_any_other_answer_has_not_taken_it(status):
    receiver = Receiver(status)
    with pytest.raises(SinkError, match=f"answered {status}"):
        hook(receiver.url).send(CALL)
    receiver.server.close()
    assert len(receiver.got) == 1  # a redirect is not followed


def test_a_receiver_that_is_away_is_a_sentence():
    with pytest.raises(SinkError, match="was not reached: ConnectionRefused"):
        hook(f"http://127.0.0.1:{free_port()}/x").send(CALL)


def test_a_receiver_that_hangs_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(SinkError, match="was not reached.*timed out|was not reached: Timeout"):
            hook(f"http://127.0.0.1:{silent.getsockname()[1]}/x", timeout_s=0.3).send(CALL)


def test_a_receiver_that_says_nonsense_is_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def nonsense():
            client, _ = server.accept()
            client.recv(100)
            client.sendall(b"SSH-2.0-what\r\n\r\n")
            client.close()

        threading.Thread(target=nonsense, daemon=True).start()
        with pytest.raises(SinkError, match="was not reached"):
            hook(f"http://127.0.0.1:{server.getsockname()[1]}/x").send(CALL)


def test_tls_with_an_authority_of_ones_own(tmp_path):
    trustme = require("trustme")
    authority, cert, key = trustme.CA(), tmp_path / "cert.pem", tmp_path / "key.pem"
    made = authority.issue_cert("127.0.0.1", "localhost")
    made.private_key_pem.write_to_path(key)
    made.cert_chain_pems[0].write_to_path(cert)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    receiver = Receiver(guard=Guard(cert=cert, key=key))
    with pytest.raises(SinkError, match="CERTIFICATE_VERIFY_FAILED"):
        hook(receiver.url).send(CALL)
    hook(receiver.url, ca=tmp_path / "ca.pem").send(CALL)
    receiver.server.close()
    assert len(receiver.got) == 1


def test_a_proxy_of_the_environment_is_used(receiver, monkeypatch):
    monkeypatch.setenv("http_proxy", receiver.server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    hook("http://desk.invalid/hook", insecure=True).send(CALL)
    assert receiver.got[0].path == "http://desk.invalid:80/hook"


# -- secrets


def test_a_secret_comes_from_the_environment_or_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("ONE", "from the environment")
    (tmp_path / "two").write_text("from a file\n")
    assert secret_of({"key_env": "ONE"}, "key", "x") == "from the environment"
    assert secret_of({"key_file": tmp_path / "two"}, "key", "x") == "from a file"
    assert secret_of({}, "key", "x") is None


@pytest.mark.parametrize(
    ("given", "text"), [({"key_env": "NOWHERE"}, "NOWHERE is not set"), ({}, "give key_env: VARIABLE")]
)
def test_a_secret_that_is_missing_is_named(given, text):
    with pytest.raises(ConfigError, match=text):
        secret_of(given, "key", "channels.desk", needed=True)


def test_an_empty_file_is_not_a_secret(tmp_path):
    (tmp_path / "two").write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        secret_of({"key_file": tmp_path / "two"}, "key", "x")


def test_a_secret_in_the_policy_is_refused_and_not_shown():
    with pytest.raises(ConfigError, match="secret_env") as caught:
        hook("http://127.0.0.1/", secret=PLANTED)
    assert PLANTED not in str(caught.value)
    with pytest.raises(ConfigError, match="holds a password") as caught:
        hook(f"http://user:{PLANTED}@127.0.0.1/")
    assert PLANTED not in str(caught.value)


def test_an_address_with_a_key_is_never_in_a_problem(monkeypatch):
    monkeypatch.setenv("HOOK_URL", f"http://127.0.0.1:{free_port()}/services/planted-path-1234567")
    channel = Webhook("desk", {"kind": "webhook", "url_env": "HOOK_URL"})
    with pytest.raises(SinkError) as caught:
        channel.send(CALL)
    assert "planted-path" not in str(caught.value)


def test_scrubbed_is_one_short_line():
    found = scrubbed(f"GET https://host/x?token={PLANTED}\nfailed " + "y" * 1000, [PLANTED])
    assert PLANTED not in found and "\n" not in found and len(found) <= 300


# -- mail


@contextmanager
def smtp(tmp_path, starttls=True, login=None, refuse=False):
    "A real mail server."
    require("aiosmtpd", "aiosmtpd is not installed: pip install aiosmtpd")
    from aiosmtpd.controller import Controller
    from aiosmtpd.smtp import AuthResult

    got, context, how = [], None, {}

    class Handler:
        async def handle_RCPT(self, server, session, envelope, address, options):
            if refuse and address.startswith("gone"):
                return "550 unknown"
            envelope.rcpt_tos.append(address)
            return "250 OK"

        async def handle_DATA(self, server, session, envelope):
            got.append((session.ssl is not None, envelope))
            return "250 OK"

    if starttls:
        trustme = require("trustme")
        authority = trustme.CA()
        made = authority.issue_cert("127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.configure_cert(context)
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        how |= {"tls_context": context, "require_starttls": True}
    if login:

        def check(server, session, envelope, mechanism, data):
            good = (data.login.decode(), data.password.decode()) == login
            return AuthResult(success=good, handled=False)

        how |= {"authenticator": check, "auth_required": True, "auth_require_tls": starttls}
    server = Controller(Handler(), "127.0.0.1", free_port(), **how)
    server.start()
    try:
        yield server.port, got
    finally:
        server.stop()


def mailer(port, **more):
    given = {
        "kind": "email",
        "host": "127.0.0.1",
        "port": port,
        "sender": "line@example.com",
        "to": ["a@example.com"],
    }
    return Email("mail", {**given, "timeout_s": 5, **more}, lambda: 1_780_000_000.0)


def test_a_mail_is_sent_over_starttls_with_its_pictures(tmp_path):
    with smtp(tmp_path) as (port, got):
        mailer(port, ca=tmp_path / "ca.pem", to=["a@example.com", "b@example.com"]).send(CALL)
    ((encrypted, envelope),) = got
    mail = email.message_from_bytes(envelope.content, policy=mail_policy.default)
    assert encrypted and envelope.rcpt_tos == ["a@example.com", "b@example.com"]
    assert mail["X-Idempotency-Key"] == CALL.key and mail["Bcc"] is None
    assert [p.get_payload(decode=True) for p in mail.iter_attachments()] == [CALL.pictures[0]]


def test_a_certificate_that_is_not_trusted_is_refused(tmp_path):
    with smtp(tmp_path) as (port, got):
        with pytest.raises(SinkError, match="CERTIFICATE_VERIFY_FAILED"):
            mailer(port).send(CALL)
    assert got == []


def test_a_login_with_a_secret_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MAIL_PASSWORD", "planted-password-9")
    with smtp(tmp_path, login=("line", "planted-password-9")) as (port, got):
        mailer(port, ca=tmp_path / "ca.pem", user="line", password_env="MAIL_PASSWORD").send(CALL)
        monkeypatch.setenv("MAIL_PASSWORD", "planted-password-8")
        wrong = mailer(port, ca=tmp_path / "ca.pem", user="line", password_env="MAIL_PASSWORD")
        with pytest.raises(SinkError, match="SMTPAuthenticationError") as caught:
            wrong.send(CALL)
    assert len(got) == 1 and "planted-password" not in str(caught.value)


def test_a_receiver_that_is_refused_is_reported(tmp_path):
    with smtp(tmp_path, starttls=False, refuse=True) as (port, got):
        with pytest.raises(SinkError, match="refused for 1 receivers"):
            mailer(port, to=["a@example.com", "gone@example.com"]).send(CALL)
        with pytest.raises(SinkError, match="SMTPRecipientsRefused"):
            mailer(port, to=["gone@example.com"]).send(CALL)
    assert len(got) == 1


def test_the_id_of_a_mail_comes_from_the_key():
    ids = [mail_of(CALL, "a@example.com", ["b@example.com"], True, at)["Message-ID"] for at in (1.0, 2.0)]
    assert ids[0] == ids[1]
    assert mail_of(Notice("other", 7), "a@example.com", ["b@example.com"], True, 1.0)["Message-ID"] != ids[0]


def test_a_mail_server_that_hangs_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(SinkError, match="was not taken"):
            mailer(silent.getsockname()[1], timeout_s=0.3).send(CALL)


# -- Apprise


def apprise(receiver, monkeypatch):
    require("apprise", "apprise is not installed: pip install 'cv_pipeline[alerts]'")
    host = receiver.server.url.partition("//")[2]
    monkeypatch.setenv("APPRISE_URLS", f"json://{host}/planted-path-12345")
    return Apprise("phones", {"kind": "apprise", "url_env": "APPRISE_URLS"})


def test_apprise_delivers_text_key_and_picture(receiver, monkeypatch):
    apprise(receiver, monkeypatch).send(CALL)
    found = json.loads(receiver.got[0].body)
    assert CALL.key in found["message"] and found["type"] == "failure" and len(found["attachments"]) == 1


def test_apprise_that_does_not_deliver_is_a_sentence(receiver, monkeypatch):
    receiver.status = 500
    with pytest.raises(SinkError, match="did not deliver") as caught:
        apprise(receiver, monkeypatch).send(CALL)
    assert "planted-path" not in str(caught.value)


def test_an_address_that_apprise_does_not_know(receiver, monkeypatch):
    apprise(receiver, monkeypatch)
    monkeypatch.setenv("APPRISE_URLS", "nothing://planted-1")
    with pytest.raises(ConfigError, match="does not know") as caught:
        Apprise("phones", {"kind": "apprise", "url_env": "APPRISE_URLS"})
    assert "planted-1" not in str(caught.value)


def test_without_apprise_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "apprise", None)
    monkeypatch.setenv("APPRISE_URLS", "json://127.0.0.1")
    with pytest.raises(MissingExtraError, match=r"cv_pipeline\[alerts\]"):
        Apprise("phones", {"kind": "apprise", "url_env": "APPRISE_URLS"})


# -- all of a policy


def test_every_channel_that_cannot_be_opened_is_listed():
    channels = {
        "a": {"kind": "webhook", "url_env": "NOWHERE"},
        "b": {"kind": "email", "host": "x"},
        "c": {"kind": "webhook", "url": "http://far.example/"},
    }
    levels = [{"after_s": 0, "channels": list(channels), "repeat_s": 60}]
    with pytest.raises(ConfigError) as caught:
        open_channels(read_policy({"channels": channels, "levels": levels}))
    text = str(caught.value)
    assert "NOWHERE is not set" in text and "sender: Field required" in text and "plain text" in text
    assert os.environ.get("NOWHERE") is None
