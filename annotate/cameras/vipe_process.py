"""One ViPE driver process: started, asked, timed, ended. The owner decides what a failure means."""

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

DRIVER = Path(__file__).with_name("vipe_driver.py")
START_SECONDS = 900.0
"""Loading every network from a cold disk."""

TAIL_BYTES = 2000


class VipeError(ValueError):
    """ViPE said no, or said nothing. `kind` is its own word: oom, no_cuda, load, config, timeout, died, RuntimeError, ..."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Driver:
    """A running driver. Its standard error goes to a file whose tail explains a death."""

    def __init__(self, command: list[str], environment: dict[str, str], start_seconds: float = START_SECONDS) -> None:
        self.served = 0
        self._log = tempfile.NamedTemporaryFile(prefix="vipe-", suffix=".log")  # noqa: SIM115 - lives as long as we do
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | environment,
            process_group=0,  # its children go with it on a timeout; when we die, its standard input ends and it leaves
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self.facts = self._answer("ready", time.monotonic() + start_seconds)
        except VipeError:
            self.close()
            raise

    def run(self, clip_id: str, image_dir: Path, out: Path, fps: float, timeout_s: float) -> dict[str, Any]:
        """Annotate a folder of PNG into `out`. Raises VipeError; after `timeout` and `died` this driver is gone."""
        request = {"id": clip_id, "image_dir": str(image_dir), "out": str(out), "fps": fps}
        assert self._process.stdin is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except OSError:
            raise self._died() from None
        self.served += 1
        return self._answer("done", time.monotonic() + timeout_s)

    def close(self) -> None:
        """End the driver and its children, and wait until they are gone."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._log.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _answer(self, expected: str, deadline: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            self.close()
            raise VipeError("timeout", f"ViPE did not say {expected!r} in time and was ended") from None
        if line is None:
            raise self._died()
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            raise VipeError("protocol", f"ViPE's driver said {line[:200]!r}, expected a line of JSON") from None
        if answer.get("event") == expected:
            return answer
        raise VipeError(answer.get("kind", "unknown"), f"ViPE: {answer.get('kind')}: {answer.get('msg')}")

    def _died(self) -> VipeError:
        status = self._process.wait()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return VipeError("died", f"ViPE's process ended with {how}; its last words: {self._tail()}")

    def _tail(self) -> str:
        if self._log.closed:
            return "none"
        with open(self._log.name, "rb") as log:
            log.seek(max(0, os.path.getsize(self._log.name) - TAIL_BYTES))
            return " / ".join(log.read().decode(errors="replace").strip().splitlines()[-4:]) or "none"
