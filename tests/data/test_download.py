from __future__ import annotations

import hashlib
import http.server
import re
import ssl
import threading
from pathlib import Path

import pytest

from jittor_lora.data import download
from jittor_lora.data.download import RemoteFile, fetch
from jittor_lora.errors import UserError
from jittor_lora.system.locks import alone

BODY = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(BODY).hexdigest()
CERTIFICATE = Path(__file__).with_name("loopback.pem")  # for 127.0.0.1, with its key, for tests only


class Server(http.server.ThreadingHTTPServer):
    """Serves `body` over TLS; `script` has, for each of the next requests, a status to answer, an address to redirect
    to, or the number of bytes to stop after."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.ranges, self.script, self.seen = BODY, True, [], []
        self.url = f"https://127.0.0.1:{self.server_address[1]}/file.json"
        encrypted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        encrypted.load_cert_chain(CERTIFICATE)
        self.socket = encrypted.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request, client_address):
        pass  # from clients that do not trust the certificate


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server: Server = self.server
        wanted = self.headers.get("Range")
        server.seen.append(wanted)
        step = server.script.pop(0) if server.script else None
        if isinstance(step, str) and "://" in step:
            self.send_response(302)
            self.send_header("Location", step)
            self.end_headers()
            return
        if isinstance(step, str):
            self.send_error(int(step))
            return
        start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        self.wfile.write(server.body[start:][:step])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def remote(server, **changes):
    return RemoteFile(**{"url": server.url, "size": len(BODY), "sha256": SHA256, **changes})


def test_a_file_is_downloaded_once_with_progress_on_stderr(server, tmp_path, capsys):
    path = tmp_path / "deep" / "file.json"
    for _ in range(2):
        assert fetch(remote(server), path, "").read_bytes() == BODY
    assert server.seen == [None]
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]
    captured = capsys.readouterr()
    assert "file.json" in captured.err
    assert captured.out == ""


def test_a_broken_connection_is_resumed(server, tmp_path):
    server.script = [300_000, "503", 400_000]
    path = tmp_path / "file.json"
    with pytest.raises(UserError, match="700,000 of 1,024,000 bytes are kept"):
        fetch(remote(server), path, "")
    assert not path.exists()
    assert fetch(remote(server), path, "").read_bytes() == BODY
    assert server.seen == [None, "bytes=300000-", "bytes=300000-", "bytes=700000-"]


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.script, server.ranges = [300_000], False
    assert fetch(remote(server), tmp_path / "file.json", "").read_bytes() == BODY


def test_another_file_is_refused_and_removed(server, tmp_path):
    path = tmp_path / "file.json"
    server.body = BODY[::-1]
    with pytest.raises(UserError, match=rf"expected a file with sha256 {SHA256}, found [0-9a-f]{{64}}.*Do this"):
        fetch(remote(server), path, "Do this.")
    assert list(tmp_path.iterdir()) == []
    server.body = BODY
    (tmp_path / "file.json.part").write_bytes(b"x" * (len(BODY) + 1))
    assert fetch(remote(server), path, "").read_bytes() == BODY
    path.write_bytes(b"x" * len(BODY))
    assert fetch(remote(server), path, "").read_bytes() == BODY


def test_a_larger_file_is_not_read_to_its_end(server, tmp_path):
    server.body = BODY + b"more"
    assert fetch(remote(server), tmp_path / "file.json", "").read_bytes() == BODY


def test_a_permanent_failure_is_not_retried(server, tmp_path):
    server.script = ["404", "404"]
    with pytest.raises(UserError, match=r"the server answered 404 Not Found\). Place it by hand"):
        fetch(remote(server), tmp_path / "file.json", "Place it by hand.")
    assert server.seen == [None]


def test_offline_is_a_message(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*refused.*Place it by hand"):
        fetch(remote(server), tmp_path / "file.json", "Place it by hand.")


def test_a_folder_that_cannot_be_created_is_a_message(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        fetch(remote(server), tmp_path / "file" / "file.json", "")


def test_processes_that_want_the_same_wait_for_each_other(server, tmp_path, capfd):
    path, done = tmp_path / "file.json", []
    with alone(tmp_path / ".file.json.lock", "Downloading file.json"):
        other = threading.Thread(target=lambda: done.append(fetch(RemoteFile(server.url, len(BODY), SHA256), path, "")))
        other.start()
        other.join(0.3)
        assert not done and not server.seen
        path.write_bytes(BODY)  # the first process has finished
    other.join()
    assert done == [path] and not server.seen and "waiting for another process" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_an_untrusted_certificate_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(UserError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(remote(server), tmp_path / "file.json", "")
    assert server.seen == [] and not (tmp_path / "file.json").exists()


def test_certificates_are_checked_even_if_the_process_turned_checks_off(server, tmp_path, monkeypatch):
    """Jittor sets such a default."""
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setattr(ssl, "_create_default_https_context", ssl._create_unverified_context)
    with pytest.raises(UserError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(remote(server), tmp_path / "file.json", "")


def test_redirects_are_followed_to_https_only(server, tmp_path):
    server.script = [server.url]
    assert fetch(remote(server), tmp_path / "file.json", "").read_bytes() == BODY
    for number, other in enumerate(("http://127.0.0.1:9/file.json", "ftp://127.0.0.1/file.json")):
        server.script, server.seen = [other, other], []
        with pytest.raises(UserError, match=f"redirects to {other}, which is not https"):
            fetch(remote(server), tmp_path / f"{number}.json", "")
        assert server.seen == [None]


def test_an_address_without_encryption_is_refused(server):
    with pytest.raises(ValueError, match="starts with https"):
        remote(server, url=server.url.replace("https", "http"))
