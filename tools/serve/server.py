"""Servers under test: `polylora serve` and llama.cpp's llama-server as child processes, and the
adapters that they are given.

The scripts beside this one import it; it does nothing by itself.
"""

import json
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

# A model of a gigabyte is read and laid out within this many seconds, also on a busy machine.
START_SECONDS = 300
STOP_SECONDS = 60


class Server:
    """A server that runs until the block ends; its log lies in a temporary file."""

    def __init__(self, command, name):
        self.command, self.name = [str(part) for part in command], name
        self.url = None
        self.process = None
        self.log = None

    def __enter__(self):
        self.log = tempfile.NamedTemporaryFile(prefix=f"{self.name}-", suffix=".log", delete=False)
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT
        )
        try:
            self.wait_until_ready()
        except BaseException:
            self.process.kill()
            raise
        return self

    def wait_until_ready(self):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}")
            if self.is_ready():
                return
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} did not come up:\n{self.tail()}")

    def is_ready(self):
        raise NotImplementedError

    def text(self):
        """What it has written to its log."""
        return Path(self.log.name).read_text(errors="replace")

    def tail(self, lines=30):
        return "\n".join(self.text().splitlines()[-lines:])

    def resident_bytes(self):
        """`RssAnon`: memory of its own, without the mapped model."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024

    def get(self, path, key=None):
        """The JSON that it answers a GET with."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(self.url + path, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def stop(self):
        """Asks it to end, and returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def __exit__(self, *_):
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


class Ours(Server):
    """`polylora serve`, on a port that is free."""

    def __init__(self, polylora, model, *options, name="polylora"):
        super().__init__([polylora, "serve", model, "--port", 0, *options], name)

    def is_ready(self):
        found = re.search(r"listening on (http://\S+)", self.text())
        self.url = found and found[1].rstrip("/")
        return self.url is not None


class Theirs(Server):
    """llama-server, on a given port."""

    def __init__(self, llama_server, model, port, *options):
        command = [llama_server, "-m", model, "--host", "127.0.0.1", "--port", port, *options]
        super().__init__(command, "llama-server")
        self.address = f"http://127.0.0.1:{port}"

    def is_ready(self):
        try:
            with urllib.request.urlopen(self.address + "/health", timeout=5):
                self.url = self.address
        except OSError:
            return False
        return True


def valley(polylora, folder):
    """Writes the small model that is in the program, and its adapters: (model, {name: folder})."""
    subprocess.run([polylora, "demo", "--write", folder], check=True, stdout=subprocess.DEVNULL)
    (model,) = Path(folder).glob("*.gguf")
    return model, {name: Path(folder) / name for name in ("shout", "pirate", "json")}


def turned_copy(source, target, turn):
    """A copy of a PEFT adapter whose values have each moved on by `turn` places in their tensor:
    another adapter of the same form, and of the same size where its values are random."""

    def change(tensor, item):
        at = turn * item % max(len(tensor), 1)
        return tensor[at:] + tensor[:at]

    _copy(source, target, change)


def marked_copy(source, target, mark):
    """A copy of a PEFT adapter that differs in the low bits of one value: it says the same, and is
    another one."""
    marked = False

    def change(tensor, item):
        nonlocal marked
        # The lower byte of the two that F16 and BF16 have; of F32, the lowest two of four.
        if marked or len(tensor) < 2 * item:
            return tensor
        marked = True
        changed = bytearray(tensor)
        changed[0], changed[item] = mark % 256, mark // 256 % 256
        return bytes(changed)

    _copy(source, target, change)


def _copy(source, target, change):
    """A copy of a PEFT adapter, the bytes of each tensor changed; `change` is also told the size of
    a value."""
    source, target = Path(source), Path(target)
    target.mkdir(parents=True)
    shutil.copy(source / "adapter_config.json", target)
    data = (source / "adapter_model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    out = bytearray(data)
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        start, end = (begin + offset for offset in tensor["data_offsets"])
        item = {"F32": 4, "F16": 2, "BF16": 2}[tensor["dtype"]]
        out[start:end] = change(bytes(data[start:end]), item)
    (target / "adapter_model.safetensors").write_bytes(out)
