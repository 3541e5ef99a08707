"""milvus-lite as a server of its own, that can be killed and come back."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class MilvusServer:
    """A process that serves one folder of collections at one address.

    Args:
        directory: where the collections are kept.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return when somebody listens."""
        command = [sys.executable, "-m", "milvus_lite", "server", "--host", "127.0.0.1"]
        place = ["--port", str(self.port), "--data-dir", str(self._directory)]
        self._process = subprocess.Popen([*command, *place], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not self._is_listening():
            assert time.monotonic() < deadline, "milvus-lite does not come to serve"
            time.sleep(0.05)

    def kill(self) -> None:
        """End it without a word."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """Have it do nothing while the block runs, though its connections stay."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
