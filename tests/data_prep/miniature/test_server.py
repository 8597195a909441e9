"""The miniature web behaves as its routes say, on the loopback interface only."""

import http.client
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.support.web_folder import jpeg_bytes, make_web, requested, served

ROUTES = {
    "/ok.jpg": {"behaviour": "ok", "file": "images/0.jpg"},
    "/recovering.jpg": {"behaviour": "recovering", "file": "images/1.jpg"},
    "/slow.jpg": {"behaviour": "slow", "file": "images/2.jpg", "delay_s": 0.3},
    "/moved.jpg": {"behaviour": "redirect", "location": "/ok.jpg"},
    "/cut.jpg": {"behaviour": "truncated", "file": "images/3.jpg"},
    "/page.jpg": {"behaviour": "not_image"},
    "/gone.jpg": {"behaviour": "missing"},
}


@pytest.fixture
def web(tmp_path):
    make_web(tmp_path / "web", ROUTES)
    with served(tmp_path / "web", tmp_path / "log") as url:
        yield url


def get(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read()


def test_pictures_are_served_as_they_lie(web):
    assert get(web + "/ok.jpg") == jpeg_bytes(0)


def test_a_503_recovers_at_the_second_visit(web):
    with pytest.raises(urllib.error.HTTPError, match="503"):
        get(web + "/recovering.jpg")
    assert get(web + "/recovering.jpg") == jpeg_bytes(1)


def test_a_slow_answer_arrives_whole(web):
    started = time.monotonic()
    assert get(web + "/slow.jpg") == jpeg_bytes(2)
    assert time.monotonic() - started >= 0.3


def test_redirects_lead_to_the_picture(web, tmp_path):
    assert get(web + "/moved.jpg") == jpeg_bytes(0)
    assert requested(tmp_path / "log") == ["/moved.jpg", "/ok.jpg"]


def test_a_truncated_body_is_shorter_than_promised(web):
    with pytest.raises(http.client.IncompleteRead):
        get(web + "/cut.jpg")


def test_a_page_comes_instead_of_a_picture(web):
    assert get(web + "/page.jpg").startswith(b"<!DOCTYPE html>")


@pytest.mark.parametrize("path", ["/gone.jpg", "/never-planned.jpg", "/../routes.json"])
def test_what_is_not_routed_is_missing(web, path):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(web + path)


def test_only_the_loopback_address_listens(web):
    port = int(web.rsplit(":", 1)[1])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=2)


def run_server(*arguments):
    command = [sys.executable, "-m", "data_prep.miniature.server", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)


def test_a_port_in_use_is_one_clear_line(web, tmp_path):
    port = web.rsplit(":", 1)[1]
    answer = run_server("--root", tmp_path / "web", "--port", port)
    assert answer.returncode == 1
    assert (
        answer.stderr == f"error: --port {port}: is in use; stop the program that listens there or name another port\n"
    )


def test_a_missing_world_is_one_clear_line(tmp_path):
    answer = run_server("--root", tmp_path / "none", "--port", 0)
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"error: {tmp_path}/none/routes.json: no such file")
    assert answer.stderr.count("\n") == 1


def test_a_free_port_is_printed(tmp_path):
    make_web(tmp_path / "web", ROUTES)
    command = [sys.executable, "-m", "data_prep.miniature.server", "--root", str(tmp_path / "web"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        line = server.stdout.readline()
        assert get(line.split(" at ")[1].strip() + "/ok.jpg") == jpeg_bytes(0)
        server.terminate()
        assert server.wait(10) == 75
    assert Path(tmp_path / "web" / "routes.json").exists()
