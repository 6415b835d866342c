"""A thousand requests from 32 clients, a tenth of them broken: every good one answered, every bad one refused.

    python tests/serving/soak_server.py [--requests 1000] [--clients 32]

Needs pip install "being-vl[serve]". Prints counts by kind and status, and the server's memory after each tenth.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE.parents[1]), str(_HERE.parent / "processing")]

from server_fixtures import data_url, picture  # noqa: E402

PATH = "/v1/chat/completions"


def good(number: int) -> dict[str, Any]:
    """A chat with no to two images; one in eight draws."""
    content: list[dict[str, Any]] = [{"type": "text", "text": f"is it red {number}"}]
    for index in range(number % 3):
        url = data_url(picture(3 * number + index))
        content.append({"type": "image_url", "image_url": {"url": url}})
    body: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "max_tokens": 8}
    if number % 8 == 0:
        body |= {"modalities": ["image"]}
    return body | {"stream": True} if number % 5 == 0 else body


def bad(number: int) -> tuple[str, bytes | None]:
    """Its kind, and what is sent; None for a client that goes away."""
    text = {"messages": [{"role": "user", "content": "hi"}]}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,@@"}}
    huge = {
        "type": "image_url",
        "image_url": {"url": data_url(picture(0, (900, 900)).convert("1"))},
    }
    kinds: dict[str, Any] = {
        "base64": {"messages": [{"role": "user", "content": [image]}]},
        "huge image": {"messages": [{"role": "user", "content": [huge]}]},
        "no JSON": b'{"messages": [',
        "role": {"messages": [{"role": "robot", "content": "hi"}]},
        "10 MB of text": {"messages": [{"role": "user", "content": "word " * 2_000_000}]},
        "disconnect": None,
        "field": {**text, "max_tokens": -1},
        "model": {**text, "model": "gpt"},
    }
    kind = list(kinds)[number % len(kinds)]
    value = kinds[kind]
    return kind, value if value is None or isinstance(value, bytes) else json.dumps(value).encode()


def post(port: int, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("POST", PATH, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except BrokenPipeError:  # refused before all was sent; the answer is there
        answer = connection.sock.makefile("rb").readline()
        return int(answer.split()[1]), b""
    finally:
        connection.close()


def one(port: int, number: int) -> tuple[str, str]:
    """The kind of a request, and what came of it."""
    if number % 10:
        body = json.dumps(good(number)).encode()
        while True:
            status, answer = post(port, body)
            if status != 429:
                break
            time.sleep(random.random())
        is_whole = b"[DONE]" in answer or b'"finish_reason"' in answer
        return "good", f"{status}" if is_whole and b'"error"' not in answer else f"{status} broken"
    kind, sent = bad(number // 10)
    if sent is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        connection.request("POST", PATH, json.dumps({**good(7), "max_tokens": 200}).encode())
        time.sleep(0.05)
        connection.close()
        return kind, "gone"
    status, answer = post(port, sent)
    if status == 429:  # the queue is full: asked again
        time.sleep(0.5)
        return one(port, number)
    message = json.loads(answer)["error"]["message"] if answer else "."
    return kind, f"{status}" if message.endswith(
        "."
    ) and "\n" not in message else f"{status} {message}"


def memory(process: subprocess.Popen[bytes]) -> float:
    """Resident megabytes."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--port", type=int, default=8573)
    args = parser.parse_args()
    from checkpoint_fixtures import tiny_checkpoint

    from being_vl.hub.checkpoint import save_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        model, processor = tiny_checkpoint("smollm")
        model.config.image_grid_size = (4, 4)
        save_checkpoint(model, processor, Path(folder) / "tiny")
        command = [
            sys.executable,
            "-m",
            "being_vl",
            "serve",
            f"{folder}/tiny",
            "--port",
            str(args.port),
        ]
        command += ["--max-image-pixels", "500000", "--max-waiting", "16"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(_HERE.parents[1]), *sys.path]),
        }
        process = subprocess.Popen(command, env=environment)
        try:
            while True:
                try:
                    http.client.HTTPConnection("127.0.0.1", args.port).connect()
                    break
                except OSError:
                    assert process.poll() is None, "the server did not start"
                    time.sleep(0.5)
            return soak(args, process) or stop(args.port, process)
        finally:
            process.kill()
            process.wait(60)


def stop(port: int, process: subprocess.Popen[bytes]) -> int:
    """SIGTERM while an answer is under way: it comes, and the process ends by that signal, as uvicorn's do."""
    with ThreadPoolExecutor(1) as client:
        body = json.dumps({**good(7), "max_tokens": 200}).encode()
        answer = client.submit(post, port, body)
        time.sleep(0.5)
        process.terminate()
        status, exit_status = answer.result()[0], process.wait(60)
    print(f"stopped during a request: status {status}, exit status {exit_status}")
    return int((status, exit_status) != (200, -signal.SIGTERM))


def soak(args: argparse.Namespace, process: subprocess.Popen[bytes]) -> int:
    counts: Counter[tuple[str, str]] = Counter()
    lock, megabytes, done = threading.Lock(), [], 0
    start = time.monotonic()

    def ask(number: int) -> None:
        nonlocal done
        result = one(args.port, number)
        with lock:
            counts[result] += 1
            done += 1
            if done % max(1, args.requests // 10) == 0:
                megabytes.append(round(memory(process)))

    with ThreadPoolExecutor(args.clients) as clients:
        list(clients.map(ask, range(args.requests)))
    for (kind, status), count in sorted(counts.items()):
        print(f"{count:5} {kind}: {status}")
    print(f"{time.monotonic() - start:.0f} s; MB of the server after each tenth: {megabytes}")
    wrong = [
        (kind, status)
        for kind, status in counts
        if not (
            status == "200"
            if kind == "good"
            else status == "gone" or status in ("400", "404", "413")
        )
    ]
    print("wrong:", wrong or "nothing")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
