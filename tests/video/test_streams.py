"""Network cameras: a real RTSP server that is killed, locked, stopped and resized, and plain sockets that
misbehave."""

import io
import itertools
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from fractions import Fraction
from http.server import HTTPServer, SimpleHTTPRequestHandler
from urllib.parse import quote

import av
import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cv_pipeline.core.masking import masked
from cv_pipeline.core.types import ConfigError, Source, SourceError
from cv_pipeline.video.decoding import DEVICES, DecoderChoice, choose_decoder, probe_device
from cv_pipeline.video.reconnect import Backoff, ReconnectingSource
from cv_pipeline.video.sources import open_source, unique_ids
from cv_pipeline.video.streams import (
    Address,
    CatchUp,
    Mailbox,
    SourceAuthError,
    StreamClock,
    StreamSettings,
    StreamSource,
    explain,
    is_stream,
    stream_id,
)
from tests.helpers.waiting import paced, until


@contextmanager
def listener(handle):
    "A TCP server whose `handle(client)` runs for each connection in a thread."
    door, clients = socket.create_server(("127.0.0.1", 0)), []

    def accept():
        while True:
            try:
                client = door.accept()[0]
            except OSError:
                return
            clients.append(client)
            threading.Thread(target=handle, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield door.getsockname()[1]
    finally:
        with suppress(OSError):
            door.shutdown(socket.SHUT_RDWR)
        door.close()
        for client in clients:
            client.close()


def transport_stream(count=100, size=(160, 120), gop=10, fps=25, start=0.0):
    "MPEG-TS with H.264 in memory; picture i has a bar at column 2 i."
    store = io.BytesIO()
    with av.open(store, "w", format="mpegts") as out:
        stream = out.add_stream(
            "libx264", rate=fps, options={"preset": "ultrafast", "tune": "zerolatency", "g": str(gop)}
        )
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        texture = cv2.resize(
            np.random.default_rng(0).integers(40, 160, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8), size
        )
        for i in range(count):
            picture = np.roll(texture, i, axis=0)
            picture[:, 2 * i % size[0] : 2 * i % size[0] + 8] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = round((start + i / fps) * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return store.getvalue()


def send(data, hold=True, slowly=False):
    "A handler that sends `data`; then it hangs, or ends."

    def handle(client):
        with suppress(OSError):
            step = len(data) // 40 if slowly else len(data)
            for at in paced(range(0, len(data), step), 0.02):
                client.sendall(data[at : at + step])
            if hold:
                client.recv(1)
            client.shutdown(socket.SHUT_RDWR)
            client.close()

    return handle


# --- a real RTSP server


def test_frames_of_a_camera(serve):
    server = serve("--size", "320x240", "--fps", 25)
    before = datetime.now(timezone.utc)
    with StreamSource(server.uri, "gate") as source:
        assert isinstance(source, Source) and source.live and source.source_id == "gate"
        assert (source.info.kind, source.info.width, source.info.height, source.info.fps) == (
            "stream",
            320,
            240,
            25.0,
        )
        assert source.info.decoder.startswith("h264, software") and source.info.choice.used == "software"
        frames = list(itertools.islice(source, 40))
        assert all(f.size == (320, 240) and f.source_id == "gate" for f in frames)
        assert source.skipped_count == 0
        until(
            lambda: source._link.stamps.uses_camera
        )  # the server's sender reports carry its wall clock, which here is ours
        source._link.box.take()
        source._link.box.take()
        later = next(iter(source))
    numbers, times = [f.frame_id for f in frames], [f.captured_at for f in frames]
    assert numbers == sorted(set(numbers)) and times == sorted(set(times)) and times[0] > before
    steps = np.diff([t.timestamp() for t in times]) / np.maximum(np.diff(numbers), 1)
    assert abs(np.median(steps) - 0.04) < 0.01
    assert -0.05 < (datetime.now(timezone.utc) - later.captured_at).total_seconds() < 60
    with pytest.raises(SourceError, match="the source is closed"):
        next(iter(source))


def test_killed_brought_back_with_another_size(serve):
    server, notes = serve("--size", "320x240"), []
    seen, again = [], []

    def noted(change):
        "A camera that is lost is plugged in again, with another size."
        notes.append(change)
        if change.state == "lost":
            again.append(serve("--size", "640x480", port=server.port))

    camera = ReconnectingSource(
        lambda: StreamSource(server.uri, settings=StreamSettings(open_timeout_s=5, read_timeout_s=2)),
        "gate",
        backoff=Backoff(0.1, 0.5),
        on_state=noted,
    )
    for frame in camera:
        seen.append((frame.frame_id, frame.captured_at, frame.size))
        if len(seen) == 10:
            assert camera.state == "live"
            server.kill()
        if frame.size == (640, 480) and len(seen) > 15:
            camera.close()
    assert {s for *_, s in seen} == {(320, 240), (640, 480)}
    assert [n for n, *_ in seen] == sorted({n for n, *_ in seen}) and [t for _, t, _ in seen] == sorted(
        {t for _, t, _ in seen}
    )
    assert camera.reconnects == 1 and seen[-1][2] == (640, 480)
    assert camera.status().decoder.startswith("h264") and camera.status().fps == 25.0
    assert [c.state for c in camera.state_changes] == ["connecting", "live", "lost", "live", "closed"]
    assert notes == camera.state_changes[1:]
    assert camera.state_changes[2].reason in (
        "the stream ended",
        "lost: no frame for 2 s",
    )  # a killed server looks like the end of a file


def test_the_resolution_changes_under_way(serve):
    server = serve("--size", "320x240")
    with StreamSource(server.uri) as source:
        sizes = []
        for frame in source:
            sizes.append(frame.size)
            if len(sizes) == 5:
                server.tell("size 480x360")
            if frame.size == (480, 360):
                break
            assert len(sizes) < 200
        assert (source.info.width, source.info.height) == (480, 360) and sizes[0] == (320, 240)


@pytest.mark.parametrize("method", ["basic", "digest"])
def test_passwords(serve, method):
    user, password = "ad min", "p@ss:w/rd%41?#&"
    server = serve("--user", user, "--password", password, "--auth", method)
    place = f"127.0.0.1:{server.port}/live"
    with StreamSource(f"rtsp://{quote(user, safe='')}:{quote(password, safe='')}@{place}") as source:
        next(iter(source))
    with StreamSource(f"rtsp://{place}", settings=StreamSettings(user, password)) as source:
        next(iter(source))
        assert password not in repr(vars(source)) and quote(password, safe="") not in repr(
            vars(source)
        ) + str(source.address)
    for uri, message in (
        (f"rtsp://admin:Tr0ub4dor@{place}", "rejects this user name or password"),
        (f"rtsp://{place}", "requires a user name and a password"),
    ):
        with pytest.raises(SourceAuthError, match=message) as caught:
            StreamSource(uri)
        assert (
            "Tr0ub4dor" not in str(caught.value)
            and caught.value.__cause__ is None
            and caught.value.__context__ is None
        )


def test_a_wrong_password_is_tried_rarely_and_a_new_one_is_found(serve):
    server, waits, passwords = serve("--user", "admin", "--password", "new"), [], ["old", "old", "old", "new"]
    camera = ReconnectingSource(
        lambda: StreamSource(server.uri, settings=StreamSettings("admin", passwords.pop(0))),
        "gate",
        wait=waits.append,
        backoff=Backoff(1, 300, lambda: 0.5),
    )
    for _frame in camera:
        break
    assert waits == [300, 300, 300] and isinstance(camera.last_error, SourceAuthError)
    assert [c.state for c in camera.state_changes] == [
        "connecting",
        "auth_failed",
        "live",
    ] and camera.reconnects == 0
    camera.close()


def test_a_server_that_stops_is_lost_in_time(serve):
    server = serve()
    with StreamSource(server.uri, settings=StreamSettings(read_timeout_s=1.0)) as source:
        stream = iter(source)
        next(stream)
        server.signal(signal.SIGSTOP)  # the process stands still, its connections stay
        with pytest.raises(SourceError, match="lost: no frame for 1 s"):
            for _frame in stream:
                pass
    with pytest.raises(SourceError, match="within 1 s|no frame"):
        StreamSource(server.uri, settings=StreamSettings(open_timeout_s=1.0))


def test_no_such_stream_and_a_path_of_its_own(serve):
    server = serve()
    with pytest.raises(SourceError, match=r"stream not found on the server \(404\)"):
        StreamSource(server.uri.replace("/live", "/nowhere"))
    with open_source(server.uri) as source:
        assert source.source_id == "127.0.0.1_live" and isinstance(source, StreamSource)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_hardware_that_is_not_there_falls_back_with_a_reason(serve, device):
    with StreamSource(serve().uri, hardware=device) as source:
        next(iter(source))
        expected = choose_decoder(device)
        assert (
            source.info.choice == expected
            and expected.used.replace("software", "software, ") in source.info.decoder
        )


@pytest.mark.parametrize("device", DEVICES)
def test_hardware_that_fails_on_the_stream_falls_back_with_a_reason(serve, device):
    if probe_device(device) is None:
        pytest.skip(f"{device} is here")
    with StreamSource(
        serve().uri, hardware=DecoderChoice(device, device)
    ) as source:  # the probe said yes; the real decoder then says no
        next(iter(source))
        assert source.info.choice.used == "software" and source.info.choice.requested == device
        assert source.info.choice.reason.startswith(
            "qsv: none of 25 packets" if device == "qsv" else f"{device}: "
        )


def test_udp_too(serve):
    with StreamSource(serve().uri, settings=StreamSettings(transport="udp")) as source:
        assert len(list(itertools.islice(source, 10))) == 10


def test_other_encoders(serve):
    with StreamSource(serve("--codec", "mjpeg").uri) as source:
        assert next(iter(source)).size == (320, 240) and source.info.decoder.startswith("mjpeg")
    with StreamSource(serve("--bframes", 2, "--gop", 25).uri) as source:
        times = [f.captured_at for f in itertools.islice(source, 20)]
        assert times == sorted(set(times))


LOG_SCRIPT = """
import av, logging, sys
logging.basicConfig(level=1, stream=sys.stderr)
av.logging.set_level(av.logging.TRACE)
from cv_pipeline.video.streams import StreamSettings, StreamSource
for password in ("Tr0ub4dor", "p@ss/C0rrect?horse"):
    try:
        source = StreamSource(sys.argv[1], settings=StreamSettings("admin", password))
        print(source, source.info, vars(source), next(iter(source)).frame_id, source._link)
    except Exception: logging.exception("no")
"""


@pytest.mark.parametrize("method", ["basic", "digest"])
def test_not_even_the_whole_log_of_ffmpeg_holds_the_password_and_nobody_needs_to_close(serve, method):
    server = serve("--user", "admin", "--password", "p@ss/C0rrect?horse", "--auth", method)
    done = subprocess.run(
        [sys.executable, "-c", LOG_SCRIPT, server.uri], capture_output=True, text=True, timeout=60
    )
    said = done.stdout + done.stderr
    assert (
        done.returncode == 0
        and "StreamSource" in done.stdout
        and "SourceAuthError" in done.stderr
        and "libav" in done.stderr
    ), said[-2000:]
    import base64

    for secret in (
        "Tr0ub4dor",
        "C0rrect",
        "p%40ss",
        base64.b64encode(b"admin:Tr0ub4dor").decode(),
        base64.b64encode(b"admin:p@ss/C0rrect?horse").decode(),
    ):
        assert secret not in said


# --- servers that misbehave


def test_a_server_that_accepts_and_never_sends():
    with listener(lambda client: None) as port:
        for scheme in ("rtsp", "http", "tcp"):
            with pytest.raises(SourceError, match="no response within 0.6 s|no frame within 0.6 s") as caught:
                StreamSource(
                    f"{scheme}://admin:secret@127.0.0.1:{port}/live",
                    settings=StreamSettings(open_timeout_s=0.6),
                )
            assert "secret" not in str(caught.value) and caught.value.hint


def test_nobody_listens_and_schemes_that_are_none():
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    with pytest.raises(SourceError, match="connection refused"):
        StreamSource(f"rtsp://127.0.0.1:{port}/live")
    with pytest.raises(SourceError, match="unsupported stream address"):
        open_source("gopher://admin:secret@127.0.0.1/live")
    with pytest.raises(SourceError, match="has no scheme") as caught:
        open_source("admin:secret@127.0.0.1/live")
    assert "secret" not in str(caught.value)
    for bad in ({"settings": StreamSettings(transport="sctp")}, {"hardware": "gpu"}):
        with pytest.raises(ConfigError):
            StreamSource("rtsp://127.0.0.1/live", **bad)


@pytest.mark.parametrize("hold", [True, False], ids=["hangs", "resets"])
def test_one_that_dies_in_the_middle_of_a_frame(hold):
    whole = transport_stream(60)
    with (
        listener(send(whole[: len(whole) * 2 // 3 + 77], hold=hold, slowly=True)) as port,
        StreamSource(f"tcp://127.0.0.1:{port}", settings=StreamSettings(read_timeout_s=1)) as source,
    ):
        frames = []
        with pytest.raises(SourceError, match="lost: no frame for 1 s" if hold else "the stream ended"):
            for frame in source:
                frames.append(frame)
        assert frames and 20 < frames[-1].frame_id < 60


def test_sound_without_pictures_is_no_life_sign(tmp_path):
    path = tmp_path / "x.ts"
    with av.open(str(path), "w") as out:
        sound, stream = (
            out.add_stream("aac", rate=44100),
            out.add_stream("libx264", rate=25, options={"tune": "zerolatency"}),
        )
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for i in range(250):
            if i < 50:
                out.mux(
                    stream.encode(
                        av.VideoFrame.from_ndarray(np.full((120, 160, 3), i, np.uint8), format="bgr24")
                    )
                )
            wave = av.AudioFrame.from_ndarray(
                np.random.default_rng(i).normal(0, 0.1, (1, 1764)).astype(np.float32),
                format="fltp",
                layout="mono",
            )
            wave.sample_rate, wave.pts, wave.time_base = 44100, i * 1764, Fraction(1, 44100)
            out.mux(sound.encode(wave))
    data = path.read_bytes()

    def handle(client):
        with suppress(OSError):
            for at in paced(range(0, len(data), 1880), 0.05):
                client.sendall(data[at : at + 1880])

    with (
        listener(handle) as port,
        StreamSource(f"tcp://127.0.0.1:{port}", "deaf", StreamSettings(read_timeout_s=0.5)) as source,
    ):
        with pytest.raises(SourceError, match="lost: no frame for 0.5 s"):
            list(source)
        until(lambda: not any(t.name == "stream deaf" for t in threading.enumerate()), 5)


def test_broken_packets_are_skipped_and_counted():
    data = bytearray(transport_stream(100))
    for at in (len(data) * 4 // 10, len(data) * 6 // 10):
        data[at : at + 300] = np.random.default_rng(1).bytes(300)
    with (
        listener(send(bytes(data), hold=False, slowly=True)) as port,
        StreamSource(f"tcp://127.0.0.1:{port}", settings=StreamSettings(buffer=200)) as source,
    ):
        frames = []
        with pytest.raises(SourceError, match="the stream ended"):
            for frame in source:
                frames.append(frame)
        assert source.skipped_count + sum("damaged" in f.meta for f in frames) >= 1
        assert frames[-1].pts > 3.5 and "damaged" not in frames[-1].meta  # to the end, healed by a key frame
        times = [f.captured_at for f in frames]
        assert times == sorted(set(times))


def test_the_size_changes_and_the_counter_begins_anew():
    data = transport_stream(50, start=100.0) + transport_stream(50, size=(320, 240))
    with (
        listener(send(data, hold=False, slowly=True)) as port,
        StreamSource(f"tcp://127.0.0.1:{port}", settings=StreamSettings(buffer=200)) as source,
    ):
        assert (source.info.width, source.info.height) == (160, 120)
        frames = []
        with pytest.raises(SourceError, match="the stream ended"):
            for frame in source:
                frames.append(frame)
    assert (frames[0].size, frames[-1].size, frames[-1].frame_id) == ((160, 120), (320, 240), 99) and (
        source.info.width,
        source.info.height,
    ) == (320, 240)
    assert [f.captured_at for f in frames] == sorted({f.captured_at for f in frames})
    assert [f.pts for f in frames] == sorted({f.pts for f in frames})


@pytest.mark.parametrize("start", [5000.0, 20_000.0])
def test_a_counter_that_leaps_ahead_under_way_leaps_nowhere(start):
    data = transport_stream(50) + transport_stream(50, start=start)
    with (
        listener(send(data, hold=False, slowly=True)) as port,
        StreamSource(f"tcp://127.0.0.1:{port}", settings=StreamSettings(buffer=200)) as source,
    ):
        frames = []
        with pytest.raises(SourceError, match="the stream ended"):
            for frame in source:
                frames.append(frame)
    assert frames[-1].frame_id == 99
    assert frames[-1].pts < 10
    assert (frames[-1].captured_at - frames[0].captured_at).total_seconds() < 10
    status = source.status()
    assert status.clock_jumps == 1
    assert any(note.startswith("clock jumped by ") for note in status.notes)


def test_joining_in_the_middle_of_a_group_shows_nothing_smeared():
    whole, cut = transport_stream(80, gop=40), 188 * 30
    with (
        listener(send(whole[cut:], slowly=True)) as port,
        StreamSource(f"tcp://127.0.0.1:{port}", settings=StreamSettings(buffer=200)) as source,
    ):
        first = next(iter(source))
        assert source.skipped_count == 0  # to come in the middle is no fault of the camera
    reference = list(av.open(io.BytesIO(whole)).decode(video=0))
    assert min(np.abs(first.image.astype(int) - f.to_ndarray(format="bgr24")).max() for f in reference) == 0


def test_a_stalled_consumer_gets_the_freshest_frame():
    def film(client):
        with (
            suppress(OSError),
            client,
            client.makefile("wb") as wire,
            av.open(wire, "w", format="mpegts") as out,
        ):
            stream = out.add_stream(
                "libx264", rate=50, options={"preset": "ultrafast", "tune": "zerolatency", "g": "10"}
            )
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in paced(range(1000), 0.02):
                out.mux(
                    stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="bgr24"))
                )
                wire.flush()

    with listener(film) as port, StreamSource(f"tcp://127.0.0.1:{port}") as source:
        stream = iter(source)
        first = next(stream)
        before = source.dropped
        until(lambda: source.dropped >= before + 40)  # the consumer does something else for a second
        fresh = next(stream)
        assert fresh.frame_id - first.frame_id >= 35


def test_a_network_that_held_back_and_then_sends_all_at_once():
    "The backlog is left out up to a key frame, and what is shown after it is whole."
    pieces, store, written = [], io.BytesIO(), 0
    with av.open(store, "w", format="mpegts") as out:
        stream = out.add_stream(
            "libx264", rate=25, options={"preset": "ultrafast", "tune": "zerolatency", "g": "10"}
        )
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        texture = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
        for k in range(100):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(texture, k, axis=1), format="bgr24")))
            pieces.append(store.getvalue()[written:])
            written = store.tell()
    whole = [f.to_ndarray(format="bgr24") for f in av.open(io.BytesIO(store.getvalue())).decode(video=0)]

    def handle(client):
        held = b""
        with suppress(OSError), client:
            for k, piece in paced(enumerate(pieces), 1 / 25):
                held += piece
                if 20 <= k < 60:
                    continue  # frames 20 to 59 are held back, up to 1.6 s
                client.sendall(held)
                held = b""

    with listener(handle) as port, StreamSource(f"tcp://127.0.0.1:{port}") as source:
        frames = []
        with pytest.raises(SourceError, match="the stream ended"):
            for frame in source:
                frames.append((frame, datetime.now(timezone.utc)))
        assert (
            source._link.catch_up.left_out > 0
            and not source._link.catch_up.behind
            and source.skipped_count == 0
        )
    for frame, _ in frames:
        assert any(np.array_equal(frame.image, image) for image in whole[round(frame.pts * 25) :][:3]), (
            frame.frame_id
        )
    last = [(now - frame.captured_at).total_seconds() for frame, now in frames[-10:]]
    assert min(last) < 0.5 and frames[-1][0].pts > 3.8


def test_a_burst_and_then_silence_shows_its_last_frame():
    with (
        listener(send(transport_stream(20))) as port,
        StreamSource(f"tcp://127.0.0.1:{port}", settings=StreamSettings(read_timeout_s=0.5)) as source,
    ):
        seen = []
        with pytest.raises(SourceError, match="lost: no frame for 0.5 s"):
            for frame in source:
                seen.append(frame.frame_id)
        assert (
            seen == sorted(seen) and seen[-1] >= 15
        )  # however slow this machine is, the last of the burst is shown


def test_close_from_another_thread_wakes_the_reader():
    with listener(send(transport_stream(60), slowly=True)) as port:
        source, seen = StreamSource(f"tcp://127.0.0.1:{port}", settings=StreamSettings(read_timeout_s=30)), []
        reader = threading.Thread(target=lambda: seen.extend(source), daemon=True)
        reader.start()
        until(lambda: seen)
        source.close()
        source.close()
        reader.join(5)
        assert not reader.is_alive()


def test_the_thread_ends_when_nobody_wants_the_source_any_more():
    with listener(send(transport_stream(200), slowly=True)) as port:
        source = StreamSource(f"tcp://127.0.0.1:{port}", "unwanted", StreamSettings(read_timeout_s=1))
        name = f"stream {source.source_id}"
        assert any(t.name == name for t in threading.enumerate())
        del source
        until(lambda: not any(t.name == name for t in threading.enumerate()))


@pytest.fixture
def web(tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), lambda *args: Quiet(*args, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_recording_behind_a_web_address_is_no_camera(web):
    folder, address = web
    with av.open(io.BytesIO(transport_stream(25))) as into, av.open(str(folder / "clip.mp4"), "w") as out:
        stream = out.add_stream_from_template(into.streams.video[0])
        for packet in into.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    with pytest.raises(SourceError, match="a recording of 1.0 s, not a live stream"):
        StreamSource(f"{address}/clip.mp4")
    with pytest.raises(SourceError, match=r"stream not found on the server \(404\)"):
        StreamSource(f"{address}/nothing.mp4")


def test_a_playlist_from_the_network_cannot_name_a_file_of_this_machine(web):
    folder, address = web
    (folder / "secret.ts").write_bytes(transport_stream(25))
    (folder / "live.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\nfile://{folder}/secret.ts\n"
    )
    with pytest.raises(SourceError):
        StreamSource(f"{address}/live.m3u8", settings=StreamSettings(open_timeout_s=3))


def test_segments_of_a_live_playlist_are_shown_when_due(web):
    folder, address = web
    for k in range(3):
        (folder / f"{k}.ts").write_bytes(transport_stream(25, start=k * 1.0))
    (folder / "live.m3u8").write_text(
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n"
        + "".join(f"#EXTINF:1.0,\n{k}.ts\n" for k in range(3))
    )
    with StreamSource(
        f"{address}/live.m3u8", settings=StreamSettings(open_timeout_s=5, read_timeout_s=5)
    ) as source:
        frames = list(itertools.islice(source, 20))
    assert frames[-1].frame_id < 30  # 20 frames, not the last ones of three segments that came at once


# --- addresses

odd = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, blacklist_categories=("Cs", "Cc")),
    min_size=1,
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(user=odd, password=odd, form=st.sampled_from(["encode", "raw", "query", "query raw", "path"]))
def test_no_form_of_any_password_is_ever_shown(user, password, form):
    password = f"Zq9{password}X7k"
    safe_user, safe = quote(user, safe=""), quote(password, safe="")
    if form == "query raw":
        assume("&" not in password + user)  # such an address means something else to a server, too
    if form == "raw":
        assume(":" not in user)  # no user name can hold one, in HTTP or RTSP
    if form == "path":
        assume(not set("?&/=_") & set(user + password))
    uri = {
        "encode": f"rtsp://{safe_user}:{safe}@10.0.0.7:554/live?channel=1",
        "raw": f"rtsp://{user}:{password}@10.0.0.7:554/live",
        "query": f"https://10.0.0.7/cgi?user={safe_user}&password={safe}&channel=1",
        "query raw": f"http://10.0.0.7/cgi?user={user}&pwd={password}",
        "path": f"rtsp://10.0.0.7/user={user}_password={password}_channel=1_stream=0.sdp",
    }[form]
    address = Address(uri)
    error = explain(av.error.HTTPUnauthorizedError(1, f"refused {uri} for {password}", uri), address, 0.1, 5)
    other = explain(av.error.InvalidDataError(1, f"bad {uri} for {user}:{password}", uri), address, 0.1, 5)
    shown = [
        masked(uri),
        str(address),
        repr(address),
        repr({"a": address}),
        stream_id(uri),
        *unique_ids([uri]),
        str(error),
        repr(error),
        str(other),
        address.hide(f"open {uri} failed; {password}; {safe}"),
    ]
    for text in shown:
        assert password not in text and safe not in text and "Zq9" not in text, text
    assert isinstance(error, SourceAuthError) and ("10.0.0.7" in masked(uri) or "@" in user + password)


def test_given_credentials_go_before_the_host_and_nowhere_else():
    for uri, expected in (
        ("rtsp://10.0.0.7/live?x=a@b", "rtsp://me:p%40%2F@10.0.0.7/live?x=a@b"),
        ("rtsp://old:one@10.0.0.7:554", "rtsp://me:p%40%2F@10.0.0.7:554"),
        ("https://cam.local?channel=1", "https://me:p%40%2F@cam.local?channel=1"),
    ):
        assert Address(uri, "me", "p@/").reveal() == expected
    for nonsense in ("10.0.0.7/live", "rtsp:/x", "", "file:///etc/passwd"):
        with pytest.raises(SourceError, match="unsupported stream address"):
            StreamSource(nonsense, settings=StreamSettings("me", "p@/"))


def test_what_is_harmless_stays_readable():
    assert (
        masked("rtsp://10.0.0.7:554/cam/realmonitor?channel=1&subtype=0")
        == "rtsp://10.0.0.7:554/cam/realmonitor?channel=1&subtype=0"
    )
    assert (
        masked("http://a:b@c/d") == "http://***@c/d"
        and masked("a=b/c.mp4") == "a=b/c.mp4"
        and masked(3) == "3"
    )
    assert is_stream("rtsp://x") and not is_stream("C:\\x.mp4") and not is_stream("a/b") and not is_stream(0)
    assert (
        stream_id("rtsp://u:p@[::1]:8554/live") == "1-_live"
        and stream_id("rtsp://u:p@cam.local:8554/a/b") == "cam.local_a_b"
        and stream_id("rtsp://?") == "stream"
    )


# --- clocks and boxes


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    drift=st.floats(-2e-4, 2e-4),
    jitter=st.floats(0, 0.2),
    fps=st.sampled_from([5, 25]),
    camera=st.booleans(),
)
def test_capture_times_increase_and_stay_near_the_truth(seed, drift, jitter, fps, camera):
    rng = np.random.default_rng(seed)
    truth = np.cumsum(rng.uniform(0.5, 1.5, 120 * fps)) / fps
    delay = 0.01 + rng.exponential(jitter, len(truth)) * (rng.random(len(truth)) > 0.1)
    arrival = np.maximum.accumulate(truth + delay)
    clock = StreamClock()
    got = np.array([clock.at(t * (1 + drift), a, t if camera else None) for t, a in zip(truth, arrival)])
    assert (np.diff(got) > 0).all()
    late = (got - truth)[len(truth) // 4 :]
    assert (
        np.abs(late).max() < 0.001
        if camera
        else (late > -0.02).all() and late.max() < max(0.05, 1.2 * jitter)
    )
    steps = np.diff(got) / np.diff(truth * (1 + drift))
    assert steps.min() > 0.499 and steps.max() < 1.501  # corrected slowly: a speed is wrong by half at worst


def test_a_camera_whose_clock_is_wrong_is_not_believed_and_a_restarted_counter_is_no_jump():
    clock = StreamClock()
    times = [clock.at(k / 25, 1000 + k / 25, camera=5e8 + k / 25) for k in range(50)]
    assert not clock.uses_camera and times == pytest.approx([1000 + k / 25 for k in range(50)])
    again = [clock.at(k / 25, 1003 + k / 25) for k in range(50)]  # pts back at zero
    assert again == pytest.approx([1003 + k / 25 for k in range(50)])


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 5), st.floats(0, 0.1)), max_size=80))
def test_catching_up_always_shows_key_frames_and_resumes_only_at_one(steps):
    rule, before = CatchUp(), False
    for key, lag, waited in steps:
        wanted = rule.wants(key, lag, waited)
        assert wanted or not key
        if before and not rule.behind:
            assert key and waited >= rule.waited_s
        assert wanted == (key or not rule.behind)
        before = rule.behind


@given(room=st.integers(1, 5), count=st.integers(0, 20), taken=st.integers(0, 10))
def test_a_mailbox_keeps_the_newest(room, count, taken):
    box = Mailbox(room)
    for k in range(count):
        box.put(k)
    got = [x for x in (box.take() for _ in range(taken)) if x is not None]
    assert got == list(range(max(0, count - room), count))[:taken] and box.dropped == max(0, count - room)
    if len(got) == min(count, room):
        box.put("old", old=True)
        box.put("older still", old=True)
    if len(got) == min(count, room):
        assert not box.wait(0) and box.look(0) == "older still" == box.take() and box.take() is None
    error = SourceError("first")
    box.end(error)
    box.end(SourceError("second"))
    assert box.wait(0) and box.error is error
    assert not Mailbox(1).wait(0)
