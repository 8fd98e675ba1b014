"""Nothing is fetched for a config without ``--allow-download``: a local server counts what arrives."""

import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from zoo._cli.offline import NotFetched, downloads, refused

FIT = ("fit", "--trust", "my_model", "--config", "small.yaml", "--trainer.max_epochs", "4")


class Server(HTTPServer):
    """Gives one content to whoever asks, and keeps count."""

    content = b"no checkpoint"
    hits = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.hits += 1  # type: ignore[attr-defined]
        content = self.server.content  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if self.command == "GET" else b"")

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def test_a_checkpoint_elsewhere_is_refused_and_not_asked_for(zoo, server):
    for address in (f"{server.address}/x.ckpt", "s3://bucket/x.ckpt", "gs://b/x", "hf://a/b"):
        result = zoo(*FIT, "--ckpt_path", address)
        assert result.code == 2
        assert result.err.startswith(
            f"error: ckpt_path: {address} is on another machine, and nothing is fetched"
        )
        assert "--allow-download" in result.err
    assert server.hits == 0
    assert not Path("runs").exists()


def test_an_allowed_checkpoint_is_fetched_checked_and_gone_on_from(zoo, server):
    assert zoo(*FIT, "--trainer.max_steps", "1").code == 0
    server.content = next(Path("runs").rglob("*.ckpt")).read_bytes()
    words = (*FIT, "--trainer.max_steps", "2", "--allow-download", "--ckpt_path", f"{server.address}/x.ckpt")
    result = zoo(*words)
    assert result.code == 0, result.err
    assert server.hits == 1
    saved = torch.load(next(Path("runs/small/version_1").rglob("*.ckpt")), weights_only=True)
    assert saved["global_step"] == 2


def test_bad_content_is_one_line(zoo, server):
    result = zoo(*FIT, "--allow-download", "--ckpt_path", f"{server.address}/x.ckpt")
    assert (result.code, server.hits) == (2, 1)
    assert len(result.err.splitlines()) == 1 and "cannot be loaded as tensors and plain values" in result.err


@pytest.mark.parametrize("allowed", [False, True])
def test_libraries_that_fetch(server, tmp_path, allowed):
    """What the parts of a config may call: none of it arrives, all of it does where it is allowed."""
    fetches = [
        lambda: torch.hub.download_url_to_file(f"{server.address}/a", str(tmp_path / "a"), progress=False),
        lambda: urllib.request.urlopen(f"{server.address}/b").read(),
        lambda: socket.create_connection(("127.0.0.1", server.server_port)).close(),
    ]
    before = socket.socket.connect
    for fetch in fetches:
        with downloads(allowed):
            if allowed:
                fetch()
                continue
            with pytest.raises(OSError, match="nothing is fetched") as error:
                fetch()
        assert "nothing is fetched without --allow-download" in str(refused(error.value))
    assert (server.hits > 0) == allowed
    assert socket.socket.connect is before
    assert issubclass(NotFetched, OSError)


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [False, True])
def test_check_does_not_ask_the_hub(workspace, server, allowed):
    """A process of its own: the hub's address and its offline mode are read when its library is imported."""
    Path("hub.yaml").write_text(
        "model: {class_path: CausalLM, init_args: {pretrained: some/repo}}\ndata: Text\n"
    )
    environment = os.environ | {"HF_ENDPOINT": server.address, "HF_HOME": str(workspace / "hub")}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "zoo", "check", "hub.yaml", *["--allow-download"] * allowed]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert (server.hits > 0) == allowed, done.stderr
    assert "pretrained='some/repo'" in done.stderr
    assert ("nothing is fetched without --allow-download" in done.stderr) != allowed, done.stderr
    assert "Traceback" not in done.stderr
