"""Talks to a running ComfyUI: queue a prompt, follow its progress, cancel it, upload and fetch pictures."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

logger = logging.getLogger(__name__)

Prompt = dict[str, dict[str, Any]]  # API format: node id -> {"class_type": ..., "inputs": {...}}
PREVIEW = 1  # kind of a binary message: 4 bytes with this number, 4 with the format, the picture
Picture = dict[str, str]  # what the server calls an output file: {"filename", "subfolder", "type"}


class ComfyUIError(RuntimeError):
    """The server refused a request, a node raised, or the server is not there."""


class PromptRejected(ComfyUIError):
    """The server found a mistake in the prompt before running it. `node_errors`: node id -> what is wrong there."""

    def __init__(self, message: str, node_errors: dict[str, Any]):
        super().__init__(message)
        self.node_errors = node_errors


class NodeFailed(ComfyUIError):
    """A node raised while the prompt ran. `data` is the server's whole `execution_error` message."""

    def __init__(self, data: dict[str, Any]):
        super().__init__(
            f"node {data.get('node_id')} ({data.get('node_type')}) raised {data.get('exception_type')}: "
            f"{str(data.get('exception_message')).strip()}"
        )
        self.data = data


class Interrupted(ComfyUIError):
    """The prompt was cancelled."""


@dataclass
class Result:
    """A finished prompt.

    Attributes:
        outputs: node id -> what the node showed, mostly `{"images": [Picture, ...]}`; only nodes that show something.
        seconds: wall time from queueing to the end.
        progress: `(node id, value, maximum)` of every progress message, in the order they came.
        previews: the preview pictures that the server sent while sampling, as JPEG or PNG files.
        cached: ids of the nodes that were not run again.
    """

    prompt_id: str
    outputs: dict[str, dict[str, Any]]
    seconds: float
    progress: list[tuple[str, int, int]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)

    def pictures(self, node_id: str | int) -> list[Picture]:
        """The pictures that this node saved or previewed, in batch order; raises KeyError if it showed nothing."""
        return self.outputs[str(node_id)]["images"]


class Client:
    """One client of the ComfyUI at `url`, like `http://127.0.0.1:8188`. Every method raises ComfyUIError on refusal."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.id = uuid.uuid4().hex

    def get(self, path: str, timeout: float = 30) -> Any:
        """The decoded JSON of `GET path`."""
        return json.loads(self._request(path, timeout=timeout))

    def post(self, path: str, body: dict[str, Any], timeout: float = 30) -> Any:
        """POSTs `body` as JSON; the decoded JSON answer, or None where the server answers nothing."""
        answer = self._request(path, json.dumps(body).encode(), {"Content-Type": "application/json"}, timeout)
        return json.loads(answer) if answer else None

    def system_stats(self) -> dict[str, Any]:
        return self.get("/system_stats")

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """Node id -> its sockets and widgets; of every node of the host, or of one (empty if the host lacks it)."""
        return self.get(f"/object_info/{quote(node)}" if node else "/object_info", timeout=120)

    def templates(self) -> dict[str, list[str]]:
        """Custom node folder -> names of the workflow templates it ships."""
        return self.get("/workflow_templates")

    def upload(self, path: Path | str, name: str | None = None) -> str:
        """Puts a picture into the server's input folder (overwriting); the name that a LoadImage node takes."""
        path = Path(path)
        boundary = uuid.uuid4().hex
        field = f"--{boundary}\r\nContent-Disposition: form-data; name="
        parts = [
            f'{field}"overwrite"\r\n\r\ntrue\r\n'.encode(),
            f'{field}"image"; filename="{name or path.name}"\r\nContent-Type: image/png\r\n\r\n'.encode(),
            path.read_bytes() + f"\r\n--{boundary}--\r\n".encode(),
        ]
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        answer = json.loads(self._request("/upload/image", b"".join(parts), headers))
        return f"{answer['subfolder']}/{answer['name']}" if answer.get("subfolder") else answer["name"]

    def view(self, picture: Picture) -> bytes:
        """The file behind an entry of `Result.pictures`."""
        return self._request("/view?" + urlencode(picture))

    def queue(self, prompt: Prompt) -> str:
        """Queues a prompt without waiting; its id. Raises PromptRejected if the server finds it wrong."""
        return self.post("/prompt", {"prompt": prompt, "client_id": self.id})["prompt_id"]

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """What the server keeps of a finished prompt (`outputs`, `status`), or None while it is not finished."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def interrupt(self) -> None:
        """Cancels the prompt that runs now."""
        self.post("/interrupt", {})

    def free(self) -> None:
        """Unloads the models and forgets cached results, so that the next prompt runs every node again."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def run(
        self,
        prompt: Prompt,
        timeout: float = 600,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> Result:
        """Queues a prompt and waits for its end.

        Args:
            timeout: seconds after which the prompt is cancelled and TimeoutError raised.
            on_progress: called with `(node id, value, maximum)` for each progress message; it may call `interrupt`.

        Raises PromptRejected, NodeFailed, Interrupted or TimeoutError.
        """
        # A thread of its own: the caller may sit in an event loop already (a browser test does).
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(lambda: asyncio.run(asyncio.wait_for(self._run(prompt, on_progress), timeout)))
            try:
                return future.result()
            except (TimeoutError, asyncio.TimeoutError):  # two classes on Python 3.10
                self.interrupt()
                raise TimeoutError(f"the prompt did not finish within {timeout:g} s and was cancelled") from None
            except KeyboardInterrupt:
                self.interrupt()  # ends the thread, for which leaving the pool waits
                raise

    async def _run(self, prompt: Prompt, on_progress: Callable[[str, int, int], None] | None) -> Result:
        import aiohttp

        start = time.monotonic()
        address = f"{self.url}/ws?clientId={self.id}".replace("http", "ws", 1)
        # Listen first, queue afterwards: no message of the prompt can be missed.
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            result = Result(await asyncio.to_thread(self.queue, prompt), {}, 0.0)
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    event, picture = int.from_bytes(message.data[:4], "big"), message.data[8:]
                    if event == PREVIEW:
                        result.previews.append(picture)
                elif message.type == aiohttp.WSMsgType.TEXT:
                    event = json.loads(message.data)
                    kind, data = event["type"], event["data"]
                    if data.get("prompt_id", result.prompt_id) != result.prompt_id:
                        continue
                    if kind == "progress":
                        step = (str(data["node"]), data["value"], data["max"])
                        result.progress.append(step)
                        if on_progress:
                            await asyncio.to_thread(on_progress, *step)
                    elif kind == "execution_cached":
                        result.cached = [str(node) for node in data["nodes"]]
                    elif kind == "executed" and data.get("output"):
                        result.outputs[str(data["node"])] = data["output"]
                    elif kind == "execution_error":
                        raise NodeFailed(data)
                    elif kind == "execution_interrupted":
                        raise Interrupted(f"cancelled in node {data.get('node_id')} ({data.get('node_type')})")
                    elif kind == "execution_success":
                        result.seconds = time.monotonic() - start
                        return result
        raise ComfyUIError("the server closed the connection before the prompt finished: see its log")

    def _request(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, timeout: float = 30
    ) -> bytes:
        request = Request(self.url + path, data=body, headers=headers or {})
        try:
            with urlopen(request, timeout=timeout) as answer:
                return answer.read()
        except HTTPError as error:
            raise _refusal(error, f"{request.get_method()} {path}") from error
        except OSError as error:
            raise ComfyUIError(f"no ComfyUI answers at {self.url}: {error}") from error


def _refusal(error: HTTPError, request: str) -> ComfyUIError:
    """The error that says in one text what the server objects to."""
    text = error.read().decode(errors="replace")
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or "node_errors" not in answer:
        return ComfyUIError(f"{request}: HTTP {error.code}: {text[:2000].strip()}")
    lines = [answer["error"].get("message", "") if isinstance(answer["error"], dict) else str(answer["error"])]
    for node, found in answer["node_errors"].items():
        for one in found["errors"]:
            lines.append(f"node {node} ({found['class_type']}): {one['message']}: {one['details']}")
    return PromptRejected("\n".join(lines), answer["node_errors"])
