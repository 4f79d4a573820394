"""A captioning server of one's own, such as vLLM: started beside the process that needs it, and ended with it.

One process has one replica, which it keeps over all its shards. Launched with `--shard all/COUNT` on many ranks, every
rank of the job starts a replica on its share of the node's GPUs and describes its share of the shards; the servers live
as long as the job.

The server gets a key of its own, and none that is for others: what runs on the node besides cannot ask it.
"""

import atexit
import ctypes
import http.client
import logging
import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

from brickreel.captions.ledger import FOLDER
from brickreel.cluster import ranks
from brickreel.config import CaptionServer

logger = logging.getLogger("brickreel")

_LOOK_AGAIN_S = 0.5
_GRACE_S = 30.0  # between SIGTERM and SIGKILL
_LAST_WORDS = 5  # lines of a server's output that an error repeats
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
KEY_VARIABLE = "VLLM_API_KEY"
"""Where vLLM looks for the key that it demands; other programs may be told by a wrapper."""

_running: dict[tuple[str, ...], "Server"] = {}


class Server:
    """The running program."""

    def __init__(self, settings: CaptionServer, model: str, hidden: str = "") -> None:
        """Start it on a free port; `health` says when it can be asked. It does not see the variable `hidden`."""
        me = ranks.discover()
        self.port = _free_port()
        self.settings, self.key = settings, secrets.token_hex(16)
        environment = _environment(os.environ, me)
        environment.pop(hidden, None)
        self.log = FOLDER / f"server-{me.node}-{me.local_rank}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        words = [word.replace("{port}", str(self.port)).replace("{model}", model) for word in settings.command]
        try:
            with self.log.open("wb") as output:
                self.process = subprocess.Popen(
                    words,
                    env=environment | {KEY_VARIABLE: self.key},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_end_with_parent,
                )
        except OSError as error:
            raise ValueError(f"caption.server.command cannot be started: {error}") from None
        atexit.register(self.end)
        logger.info("caption: started %s on port %d, its output is in %s", words[0], self.port, self.log)

    @property
    def url(self) -> str:
        """Base URL of its API."""
        return f"http://127.0.0.1:{self.port}/v1"

    def wait(self) -> None:
        """Return when it is healthy. Raises ValueError when it ends or takes too long, with its last words."""
        started = time.monotonic()
        while not self._healthy():
            self.check()
            if time.monotonic() - started > self.settings.start_s:
                self.end()
                raise ValueError(
                    f"the captioning server was not healthy after {self.settings.start_s:g} s "
                    f"(caption.server.start_s); {self._last_words()}"
                )
            time.sleep(_LOOK_AGAIN_S)
        self.check()
        if self._answer("/v1/models") in (401, 403):
            raise ValueError(
                f"port {self.port} is another server's, which refuses this one's key: start again; or the program of "
                f"caption.server.command demands another key than the one in {KEY_VARIABLE}"
            )
        logger.info("caption: the server is healthy after %.0f s", time.monotonic() - started)

    def check(self) -> None:
        """Raise ValueError when the program has ended."""
        status = self.process.poll()
        if status is not None:
            raise ValueError(f"the captioning server ended with status {status}; {self._last_words()}")

    def end(self) -> None:
        """Ask the program and its children to stop, wait, then make them."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(_GRACE_S)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        atexit.unregister(self.end)

    def _healthy(self) -> bool:
        return self._answer(self.settings.health) == 200

    def _answer(self, path: str) -> int | None:
        """Status of the answer; None when there is none."""
        # A proxy of the site has no business between a process and its own machine.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        headers = {"Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with direct.open(request, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except (OSError, http.client.HTTPException):
            return None

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{self.log} ends with: {' | '.join(lines[-_LAST_WORDS:]) or 'nothing'}"


def running(settings: CaptionServer, model: str, hidden: str = "") -> Server:
    """This process's server, started at the first call and healthy when this returns."""
    key = (*settings.command, model)
    server = _running.get(key)
    if server is None or server.process.poll() is not None:
        server = _running[key] = Server(settings, model, hidden)
        try:
            server.wait()
        except BaseException:
            del _running[key]
            server.end()
            raise
    return server


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _environment(environment: "os._Environ[str]", me: ranks.Ranks) -> dict[str, str]:
    """The environment with this rank's equal share of the GPUs that its node's ranks see."""
    found = dict(environment)
    visible = found.get("CUDA_VISIBLE_DEVICES")
    devices = _all_gpus() if visible is None else [word for word in visible.split(",") if word]
    share = len(devices) // me.local_world_size
    if share:
        found["CUDA_VISIBLE_DEVICES"] = ",".join(devices[me.local_rank * share : (me.local_rank + 1) * share])
    return found


def _all_gpus() -> list[str]:
    """Numbers of the GPUs of this machine; none where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return [str(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _end_with_parent() -> None:
    """In the child: get SIGTERM when the parent dies, however it dies, so that no server outlives its job."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
