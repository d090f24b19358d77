"""A camera for the tests: a real RTSP server on loopback.

Runs under the system's Python, which has GStreamer's bindings. It prints `ready PORT` when clients may come,
takes `size WxH` as a line on its standard input, and ends when that input ends: a test that dies leaves no
server behind.
"""

import argparse
import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402


def pipeline(size: tuple[int, int], fps: int, gop: int, codec: str, bframes: int) -> str:
    """What the camera films. One encoder thread: with more, the payloader sends the first slice of a key
    frame as a frame of its own."""
    encode = {
        "h264": f"x264enc threads=1 tune=zerolatency speed-preset=ultrafast bitrate=800 key-int-max={gop} "
        f"bframes={bframes} ! rtph264pay name=pay0 pt=96 config-interval=-1",
        "mjpeg": "jpegenc ! rtpjpegpay name=pay0 pt=26",
    }[codec]
    if bframes:
        encode = encode.replace("tune=zerolatency ", "")
    width, height = size
    return (
        "( videotestsrc is-live=true pattern=ball ! capsfilter name=size "
        f"caps=video/x-raw,format=I420,width={width},height={height},framerate={fps}/1 ! "
        f"{encode} )"
    )


def protect(
    server: GstRtspServer.RTSPServer,
    factory: GstRtspServer.RTSPMediaFactory,
    user: str,
    password: str,
    method: str,
) -> None:
    "Only `user` with `password` may look."
    auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    if method == "digest":
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(user, password, token)
    else:
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("viewer", "media.factory.access", True)
    permissions.add_permission_for_role("viewer", "media.factory.construct", True)
    factory.set_permissions(permissions)


def listen(loop: GLib.MainLoop, media: list) -> None:
    "Commands from the test; the end of the input is the end of the server."
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "size":
            width, height = map(int, rest[0].split("x"))
            for one in media:
                caps = one.get_element().get_by_name("size")
                old = caps.get_property("caps").copy()
                old.set_value("width", width)
                old.set_value("height", height)
                caps.set_property("caps", old)
        print("done", line.strip(), flush=True)
    loop.quit()


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("--port", default="0")
    ask.add_argument("--size", default="320x240")
    ask.add_argument("--fps", type=int, default=25)
    ask.add_argument("--gop", type=int, default=12)
    ask.add_argument("--codec", default="h264", choices=("h264", "mjpeg"))
    ask.add_argument("--bframes", type=int, default=0)
    ask.add_argument("--user")
    ask.add_argument("--password", default="")
    ask.add_argument("--auth", default="basic", choices=("basic", "digest"))
    a = ask.parse_args()
    Gst.init(None)
    server, factory, loop, media = (
        GstRtspServer.RTSPServer(),
        GstRtspServer.RTSPMediaFactory(),
        GLib.MainLoop(),
        [],
    )
    server.set_address("127.0.0.1")
    server.set_service(a.port)
    factory.set_launch(pipeline(tuple(map(int, a.size.split("x"))), a.fps, a.gop, a.codec, a.bframes))
    factory.set_shared(True)
    factory.connect("media-configure", lambda _, m: media.append(m))
    if a.user:
        protect(server, factory, a.user, a.password, a.auth)
    server.get_mount_points().add_factory("/live", factory)
    if not server.attach(None):
        sys.exit("the port is taken")
    print("ready", server.get_bound_port(), flush=True)
    threading.Thread(target=listen, args=(loop, media), daemon=True).start()
    loop.run()


if __name__ == "__main__":
    main()
