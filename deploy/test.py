"""Tries the files of this folder: nginx before two real replicas, and the manifests by their schemas.

    python deploy/test.py [--polylora target/release/polylora]

needs nginx with its JavaScript module (apt-get install nginx libnginx-mod-http-js) and
requirements.txt. The model is the one in the program.
"""

import argparse
import collections
import concurrent.futures
import json
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

HERE = Path(__file__).parent
ADAPTERS = [f"tenant-{number}" for number in range(24)]
# The version of Kubernetes whose schemas are taken.
KUBERNETES = "1.33"


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listening.getsockname()[1] for listening in sockets]
    for listening in sockets:
        listening.close()
    return ports


def ask(port, path, body=None, timeout=120):
    """(status, text) of a request; a body that is no text is sent as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def completion(model, **more):
    return {"model": model, "prompt": "An owl", "max_tokens": 2, "temperature": 0, **more}


def wait_for(port, path="/health"):
    for _ in range(600):
        try:
            if ask(port, path)[0] == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"nothing answers on port {port}")


class Replica:
    def __init__(self, polylora, folder, port):
        self.command = [polylora, "serve", folder / "valley-q4_k_m.gguf", "--adapter-dir", folder / "adapters",
                        "--alias", "valley", "--threads", "1", "--port", str(port)]  # fmt: skip
        self.port = port
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)
        wait_for(self.port)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)

    def served(self):
        """The requests that it ended, by adapter."""
        overview = json.loads(ask(self.port, "/adapters")[1])
        return collections.Counter({one["name"]: one["requests"] for one in overview["adapters"]})


class Nginx:
    """nginx with the file that is given out, other ports and other places."""

    def __init__(self, folder, port, replicas):
        text = (HERE / "nginx/nginx.conf").read_text()
        replaced = {
            "listen 8080": f"listen 127.0.0.1:{port}",
            "127.0.0.1:8081": f"127.0.0.1:{replicas[0]}",
            "127.0.0.1:8082": f"127.0.0.1:{replicas[1]}",
            "/etc/nginx/polylora": str(HERE.absolute() / "nginx"),
            "/dev/stdout": str(folder / "access.log"),
        }
        for old, new in replaced.items():
            assert text.count(old) == 1, f"{old} stands there {text.count(old)} times"
            text = text.replace(old, new)
        path = folder / "nginx.conf"
        path.write_text(text)
        globals_ = f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;"
        self.process = subprocess.Popen(["nginx", "-c", path, "-g", globals_, "-e", folder / "error.log"])
        self.port = port
        wait_for(port, "/version")


def places(replicas, nginx):
    """Which replica each adapter's requests go to."""
    before = [replica.served() for replica in replicas]
    for name in ADAPTERS:
        status, text = ask(nginx.port, "/v1/completions", completion(name))
        assert status == 200, f"{name}: {status} {text}"
    after = [replica.served() for replica in replicas]
    gained = [now - then for now, then in zip(after, before)]
    found = {}
    for name in ADAPTERS:
        at = [number for number, counter in enumerate(gained) if counter[name]]
        assert len(at) == 1 and gained[at[0]][name] == 1, f"{name} was served by {at}"
        found[name] = at[0]
    return found


def check_nginx(polylora, folder):
    valley = folder / "valley"
    subprocess.run([polylora, "demo", "--write", valley], check=True, stdout=subprocess.DEVNULL)
    for number, name in enumerate(ADAPTERS):
        shutil.copytree(valley / ("shout", "pirate", "json")[number % 3], valley / "adapters" / name)
    ports = free_ports(3)
    replicas = [Replica(polylora, valley, port) for port in ports[:2]]
    nginx = Nginx(folder, ports[2], ports[:2])
    try:
        first = places(replicas, nginx)
        shares = collections.Counter(first.values())
        assert min(shares.values()) >= 4 and len(shares) == 2, f"shares of the replicas: {shares}"
        assert places(replicas, nginx) == first, "an adapter has moved"
        print(f"{len(ADAPTERS)} adapters on two replicas, {dict(shares)}, each on one")

        # However an adapter is named.
        name = ADAPTERS[0]
        before = replicas[first[name]].served()[name]
        for model, more in [(f"valley:{name}", {}), (f"valley::{name}", {})]:
            assert ask(nginx.port, "/v1/completions", completion(model, **more))[0] == 200
        assert replicas[first[name]].served()[name] == before + 2
        print("base:name and base::name go where the name goes")

        # What the replica says goes through as it is.
        status, text = ask(nginx.port, "/v1/completions", completion("nobody"))
        assert status == 404 and json.loads(text)["error"]["code"] == "model_not_found", text
        status, text = ask(nginx.port, "/v1/completions", b"{nonsense")
        assert status == 400 and json.loads(text)["error"]["type"] == "invalid_request_error", text
        large = completion(name, ignored="x" * (10 << 20))
        assert ask(nginx.port, "/v1/completions", large)[0] == 200
        status, text = ask(nginx.port, "/v1/completions", completion(name, ignored="x" * (17 << 20)))
        assert status == 413 and "error" in json.loads(text), text
        for path in ("/metrics", "/adapters", "/", "/v1/load_lora_adapter", "/lora-adapters"):
            status, text = ask(nginx.port, path)
            assert status == 404 and "error" in json.loads(text), f"{path}: {status} {text}"
        models = json.loads(ask(nginx.port, "/v1/models")[1])["data"]
        assert len(models) == 1 + len(ADAPTERS)
        assert ask(nginx.port, f"/v1/models/{name}")[0] == 200
        print("errors, large bodies and closed paths are as they should be")

        # A stream comes in pieces.
        body = completion(name, stream=True, max_tokens=300, ignore_eos=True)
        request = urllib.request.Request(
            f"http://127.0.0.1:{nginx.port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        times = []
        with urllib.request.urlopen(request) as response:
            assert response.headers["X-Request-Id"]
            for line in response:
                if line.startswith(b"data: "):
                    times.append(time.monotonic())
        assert len(times) > 200
        early = sum(at < times[0] + (times[-1] - times[0]) / 2 for at in times)
        assert 0.2 < early / len(times) < 0.8, "it came in one piece"
        print(f"a stream of {len(times)} pieces came as it was written")

        # A replica goes down while it answers: nothing is lost, and only its adapters move.
        gone = first[name]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            long = [pool.submit(ask, nginx.port, "/v1/completions", completion(one, max_tokens=200, ignore_eos=True))
                    for one in ADAPTERS[:12]]  # fmt: skip
            time.sleep(0.5)
            replicas[gone].stop()
            short = [pool.submit(ask, nginx.port, "/v1/completions", completion(one)) for one in 4 * ADAPTERS]
            statuses = collections.Counter(future.result()[0] for future in long + short)
        assert statuses == {200: 12 + 4 * len(ADAPTERS)}, statuses
        assert replicas[gone].process.wait(timeout=60) == 0
        stays = replicas[1 - gone]
        before = stays.served()
        for one in ADAPTERS:
            assert ask(nginx.port, "/v1/completions", completion(one))[0] == 200
        assert all((stays.served() - before)[one] == 1 for one in ADAPTERS)
        print("a replica went down in the midst of it: every request was answered")

        # It comes back, and gets its own again.
        replicas[gone].start()
        time.sleep(6)
        assert places(replicas, nginx) == first
        print("it came back, and every adapter is where it was")
    finally:
        nginx.process.terminate()
        for replica in replicas:
            replica.process.kill()


def check_manifests():
    pool = json.loads((HERE / "kubernetes/inferencepool-v1.schema.json").read_text())
    checked = collections.Counter()
    for path in sorted((HERE / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            kind = document["kind"]
            if kind == "InferencePool":
                jsonschema.validate(document, pool)
            elif kind != "HTTPRoute":
                kubernetes_validate.validate(document, KUBERNETES, strict=True)
            checked[kind] += 1
    # That it would find something.
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"port": []}}
    try:
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)
        raise SystemExit("a wrong manifest was let through")
    except kubernetes_validate.ValidationError:
        pass
    assert checked["InferencePool"] == 1 and checked["Deployment"] == 2
    print(f"manifests are as their schemas have them: {dict(checked)}; of HTTPRoute see README.md")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--polylora", default="target/release/polylora")
    arguments = parser.parse_args()
    check_manifests()
    with tempfile.TemporaryDirectory() as folder:
        # Workers of nginx, which are another user, read and write there.
        Path(folder).chmod(0o777)
        check_nginx(arguments.polylora, Path(folder))


if __name__ == "__main__":
    main()
