"""The parts of the ComfyUI harness that need no ComfyUI; tests/host runs the rest for real."""

import io
import json
import socket
import subprocess
import time
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError

import pytest

from demo import comfyui
from demo.client import Client, ComfyUIError, PromptRejected, _refusal


def refusal(body: str) -> ComfyUIError:
    answer = io.BytesIO(body.encode())
    return _refusal(HTTPError("http://x/prompt", 400, "Bad Request", Message(), answer), "POST /prompt")


def test_a_refused_prompt_names_node_and_input():
    missing = {"message": "Required input is missing", "details": "image"}
    errors = {"7": {"class_type": "UniGSSampler", "errors": [missing]}}
    error = refusal(json.dumps({"error": {"message": "Prompt outputs failed validation"}, "node_errors": errors}))
    assert isinstance(error, PromptRejected)
    assert error.node_errors == errors
    assert str(error).splitlines()[1] == "node 7 (UniGSSampler): Required input is missing: image"


def test_any_other_refusal_shows_what_the_server_said():
    error = refusal("no such route")
    assert not isinstance(error, PromptRejected)
    assert str(error) == "POST /prompt: HTTP 400: no such route"


def test_no_server_is_a_clear_error():
    url = f"http://127.0.0.1:{comfyui.free_port()}"
    with pytest.raises(ComfyUIError, match=f"no ComfyUI answers at {url}"):
        Client(url).system_stats()


def test_a_taken_port_is_not_chosen():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert comfyui.free_port(port) != port
    free = comfyui.free_port()
    assert comfyui.free_port(free) == free


def test_the_pack_is_linked_under_its_own_name_and_again_after_a_move(tmp_path: Path):
    custom_nodes = tmp_path / "some folder" / "custom_nodes"
    place = comfyui.link_pack(custom_nodes)
    assert place == custom_nodes / "comfyui-unigs"
    assert (place / "unigs" / "__init__.py").is_file()
    assert comfyui.link_pack(custom_nodes) == place
    place.unlink()
    place.symlink_to(tmp_path / "where the clone was", target_is_directory=True)
    assert comfyui.link_pack(custom_nodes).resolve() == comfyui.REPO


def test_a_folder_without_comfyui_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(ComfyUIError, match=r"holds no main\.py"):
        comfyui.get()


def test_a_server_that_dies_shows_the_end_of_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    host = tmp_path / "a host"
    host.mkdir()
    (host / "main.py").write_text("import sys\nprint('one', sys.argv[1:3])\nsys.exit('out of luck')\n")
    monkeypatch.setenv("COMFYUI_PATH", str(host))
    server = comfyui.ComfyUI(data=tmp_path / "data", log=tmp_path / "log", args=("--some-option",))
    with pytest.raises(ComfyUIError, match="ended with code 1") as caught:
        server.start()
    assert "one ['--listen', '127.0.0.1']" in str(caught.value)
    assert "out of luck" in str(caught.value)
    assert not server.running()


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"  # dead, and not yet collected
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_server_is_stopped_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    host = tmp_path / "host"
    host.mkdir()
    (host / "main.py").write_text(
        "import json, subprocess, sys\n"
        "from http.server import BaseHTTPRequestHandler, HTTPServer\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "class Handler(BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        "        self.wfile.write(json.dumps({'child': child.pid}).encode())\n"
        "HTTPServer(('127.0.0.1', int(sys.argv[sys.argv.index('--port') + 1])), Handler).serve_forever()\n"
    )
    monkeypatch.setenv("COMFYUI_PATH", str(host))
    with comfyui.ComfyUI(data=tmp_path / "data", log=tmp_path / "log") as server:
        child = server.client.system_stats()["child"]
        assert server.running()
    assert not server.running()
    deadline = time.monotonic() + 10  # a process that was killed may be seen for a moment
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(child)
    server.stop()  # a second time does nothing


def git(folder: Path, *command: str) -> str:
    options = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", "-C", str(folder), *options, *command], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository in the place of ComfyUI's, and nothing fetched yet."""
    folder = tmp_path / "upstream"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "main.py").write_text("one\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "one")
    (folder / "main.py").write_text("two\n")
    git(folder, "commit", "--quiet", "-am", "two")
    git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    monkeypatch.setattr(comfyui, "REPOSITORY", folder.as_uri())
    monkeypatch.setattr(comfyui, "HOME", tmp_path / "home")
    monkeypatch.setenv("COMFYUI_VERSION", "1.0")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return folder


def test_a_release_is_fetched_by_its_commit_and_once(upstream: Path, monkeypatch: pytest.MonkeyPatch):
    release = comfyui.Release(commit=git(upstream, "rev-parse", "HEAD~1"))
    monkeypatch.setattr(comfyui, "RELEASES", {"1.0": release})
    folder = comfyui.get()
    assert [path.name for path in folder.iterdir()] == ["main.py"] and (folder / "main.py").read_text() == "one\n"
    (folder / "main.py").write_text("still there\n")
    assert comfyui.get() == folder and (folder / "main.py").read_text() == "still there\n"
    assert [path.name for path in comfyui.HOME.iterdir()] == [folder.name]


def test_a_commit_that_cannot_be_had_leaves_nothing_and_says_what_to_do(
    upstream: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(comfyui, "RELEASES", {"1.0": comfyui.Release(commit="0" * 40)})
    with pytest.raises(ComfyUIError, match="as COMFYUI_PATH"):
        comfyui.get()
    assert list(comfyui.HOME.iterdir()) == []


def test_a_release_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMFYUI_VERSION", "9.9.9")
    with pytest.raises(ComfyUIError, match="COMFYUI_VERSION=9.9.9 is none of 0.3.75, 0.33.0"):
        comfyui.get()


def test_each_release_says_where_it_comes_from_and_how_it_is_checked():
    assert comfyui.DEFAULT_VERSION in comfyui.RELEASES
    for release in comfyui.RELEASES.values():
        assert bool(release.wheel) != bool(release.commit)
        assert len(release.sha256) == 64 if release.wheel else len(release.commit) == 40
        assert not [package for package in release.packages if package.split("=")[0] in ("torch", "numpy")]
