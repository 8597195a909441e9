"""`pipeline.serve`: it says its address when it is ready, and a signal ends it cleanly while it works."""

import http.client
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from pipeline.command_line import STOPPED
from pipeline.serve import main
from tests.support.web_folder import jpeg_bytes


def _answers(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, {"Content-Type": "application/octet-stream"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def _ask_and_stop(port: int, number: signal.Signals, found: dict[str, tuple[int, bytes]]) -> None:
    """Open the page as soon as it is there, ask for a caption, and leave more work behind than is waited for."""
    try:
        while "page" not in found:
            try:
                found["page"] = _answers(port, "GET", "/")
            except ConnectionError:
                time.sleep(0.05)
        found["caption"] = _answers(port, "POST", "/caption", b"{}\n" + jpeg_bytes(5))
        for _ in range(3):
            threading.Thread(target=_answers_or_not, args=(port,), daemon=True).start()
    finally:
        os.kill(os.getpid(), number)


def _answers_or_not(port: int) -> None:
    try:
        _answers(port, "POST", "/caption", b"{}\n" + jpeg_bytes(6))
    except (OSError, http.client.HTTPException):
        return  # the server ended first


@pytest.mark.parametrize(("number", "host"), [(signal.SIGINT, "127.0.0.1"), (signal.SIGTERM, "0.0.0.0")])
def test_a_signal_ends_it_while_it_works(
    number: signal.Signals, host: str, weights: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found: dict[str, tuple[int, bytes]] = {}
    user = threading.Thread(target=_ask_and_stop, args=(port, number, found))
    user.start()
    assert main(["--weights", str(weights["t5"]), "--host", host, "--port", str(port)]) == STOPPED
    user.join()
    assert found["page"][0] == 200 and b"Try BLIP-2" in found["page"][1]
    assert found["caption"][0] == 200 and json.loads(found["caption"][1])["text"]
    out, err = capsys.readouterr()
    shown = host if host == "127.0.0.1" else socket.gethostname()
    assert out == f"http://{shown}:{port}/ is ready; Ctrl-C ends it\n"
    assert err.splitlines()[-1] == f"stopped by {number.name}"  # nothing to continue
    assert ("warning: --host 0.0.0.0: whoever reaches this machine" in err) == (host == "0.0.0.0")
    with pytest.raises(ConnectionError):
        _answers(port, "GET", "/")


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [(["--port", "65536"], 2, "'65536' is not a port, 0 to 65535"), (["--port", "-1"], 2, "'-1' is not a port"),
     (["--host", "no.such.host.invalid"], 1, "error: --host no.such.host.invalid, --port 7860: cannot be listened at"),
     (["--port", "0"], 1, "error: weights gone")],
)  # fmt: skip
def test_wrong_usage_is_one_line(flags: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(["--weights", "gone", *flags]) == code
    except SystemExit as end:
        assert end.code == code
    errors = capsys.readouterr().err
    assert message in errors and len(errors.splitlines()) == 1
