"""A server of bodies and redirects that no downloader should swallow whole."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hostile(BaseHTTPRequestHandler):
    """Answers by path; `asked` and `sent` say what was requested and how many body bytes went out."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.agents.append(self.headers["User-Agent"])
        getattr(self, "answer_" + self.path.split("/")[1].split("?")[0])()

    def _head(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def answer_ok(self):
        self._head(Content_Length="5")
        self.wfile.write(b"hello")

    def answer_to(self):
        self._head(302, Location=self.server.location, Content_Length="0")

    def answer_loop(self):
        self._head(302, Location=f"/loop?{len(self.server.asked)}", Content_Length="0")

    def answer_endless(self):
        self._head()
        while True:
            self.wfile.write(bytes(65536))
            self.server.sent += 65536

    def answer_endlessto(self):
        self._head(302, Location=self.server.location)
        while True:
            self.wfile.write(bytes(65536))
            self.server.sent += 65536

    def answer_endlesshead(self):
        self.wfile.write(b"HTTP/1.0 200 OK\r\n")
        while True:
            self.wfile.write(b"X-More: and more\r\n")

    def answer_promised(self):
        self._head(Content_Length=str(10**9))
        self.wfile.write(bytes(1000))

    def answer_drip(self):
        self._head(Content_Length="1000")
        for _ in range(1000):
            self.wfile.write(b"x")
            time.sleep(0.05)

    def answer_slowhead(self):
        self.wfile.write(b"HTTP/1.0 200 OK\r\n")
        for number in range(1000):
            self.wfile.write(f"X-{number}: drip\r\n".encode())
            time.sleep(0.05)

    def answer_unmeasured(self):
        """A drip feed that does not say how long it is, so that hanging up looks like its end."""
        self._head()
        for _ in range(1000):
            self.wfile.write(b"x")
            time.sleep(0.05)

    def answer_cut(self):
        self._head(Content_Length="1000")
        self.wfile.write(b"short")

    def answer_packed(self):
        """As a content encoding that nobody asked for; `location` is its name."""
        self._head(Content_Encoding=self.server.location, Content_Length=str(len(self.server.body)))
        self.wfile.write(self.server.body)

    def answer_said(self):
        """An answer whose every word is the server's: `body`."""
        self.wfile.write(self.server.body)

    def answer_badgateway(self):
        self._head(502, Content_Length="0")

    def log_message(self, *_):
        pass


class HostileServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host="127.0.0.1", port=0):
        super().__init__((host, port), Hostile)
        self.asked, self.agents, self.sent, self.location, self.body = [], [], 0, "", b""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, *_):
        pass

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    @property
    def url(self):
        return f"http://{self.server_address[0]}:{self.server_address[1]}"
