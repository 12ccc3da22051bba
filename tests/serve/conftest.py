"""A real server on `mini`, one for all tests, and a client of it that knows nothing but HTTP."""

import http.client
import importlib.util
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

KEY = "sk-of-the-tests"
for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    if importlib.util.find_spec(package) is None:
        collect_ignore_glob = ["test_*.py"]


@dataclass
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen
    url: str
    lines: queue.Queue = field(default_factory=queue.Queue)

    @property
    def address(self):
        return urlsplit(self.url).netloc

    def connect(self):
        return http.client.HTTPConnection(self.address, timeout=120)

    def ask(self, method, path, body=None, headers=None):
        """Status, headers and body of one request."""
        connection = self.connect()
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {KEY}"} | (headers or {}))
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def edit(self, image, headers=None, **fields):
        """Status, headers and JSON of an edit that is asked for as a form."""
        body, kind = form(fields, image)
        status, answered, data = self.ask("POST", "/v1/images/edits", body, {"Content-Type": kind} | (headers or {}))
        return status, answered, json.loads(data)

    def begin(self, image, **fields):
        """A connection on which an edit was asked for."""
        body, kind = form({"prompt": "make it sepia"} | fields, image)
        connection = self.connect()
        connection.request("POST", "/v1/images/edits", body, {"Authorization": f"Bearer {KEY}", "Content-Type": kind})
        return connection

    def metric(self, name):
        """The value of a metric; 0 of one with labels that was never set."""
        text = self.ask("GET", "/metrics")[2].decode()
        return float(next((line.split()[1] for line in text.splitlines() if line.split()[0] == name), 0))

    def until(self, name, value):
        """Wait until a metric has that value."""
        end = time.monotonic() + 60
        while self.metric(name) != value:
            assert time.monotonic() < end, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.02)

    def line(self, request_id):
        """The line of the log of a request."""
        while True:
            if (line := json.loads(self.lines.get(timeout=60)))["id"] == request_id:
                return line

    def stop(self, sent=signal.SIGTERM):
        self.process.send_signal(sent)
        return self.process.wait(60)


def form(fields, image):
    """A multipart body and its type; a list is sent as name[]. Text fields first, the file last, as OpenAI's client."""
    boundary, parts = "b0undary", []
    for name, value in fields.items():
        for each in value if isinstance(value, list) else [value]:
            key = f"{name}[]" if isinstance(value, list) else name
            parts.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{each}\r\n'.encode())
    for name, data in image.items() if isinstance(image, dict) else [("image", image)]:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="upload"\r\n\r\n'
        parts += [head.encode(), data, b"\r\n"]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def start(*flags, model="mini", program=("-m", "mrc_edit.serve.command"), **environment):
    command = [sys.executable, *program, str(model), "--port", "0", *flags]
    own = {name: value for name, value in os.environ.items() if not name.startswith("MRC_API")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own | environment
    )  # fmt: skip
    first = process.stdout.readline()
    url = first.strip().partition(" at ")[2]
    assert url.startswith("http://"), first + process.stderr.read()
    server = Server(process, url)

    def collect():
        for line in process.stdout:
            server.lines.put(line)

    threading.Thread(target=collect, daemon=True).start()
    return server


@pytest.fixture(scope="session")
def start_server():
    """`start_server(*flags)`: one more server, with the tests' key unless `keys` is None; it ends with the session."""
    servers = []

    def make(*flags, keys=KEY, **more):
        servers.append(start(*flags, **({"MRC_API_KEYS": keys} if keys else {}), **more))
        return servers[-1]

    yield make
    for server in servers:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def server(start_server):
    """One on `mini` that lets 8 edits wait and takes requests of 2 MB that come within 3 s."""
    return start_server("--max-waiting", "8", "--max-bytes", "2000000", "--read-timeout", "3", "--timeout", "60")


@pytest.fixture
def key():
    return KEY


@pytest.fixture
def as_form():
    return form


@pytest.fixture(scope="session")
def picture():
    """A smooth picture of 96×64 as a PNG."""
    coarse = np.random.RandomState(0).randint(0, 256, (4, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((96, 64)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def mini():
    from mrc_edit.engine import Engine

    return Engine.from_pretrained("mini")
