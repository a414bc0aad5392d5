"""A program that behaves like vLLM's server, as far as starting, asking and ending go: what `bin/python` of a
stand-in environment runs. FAKE_VLLM says how it misbehaves."""

import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODE, HERE = os.environ.get("FAKE_VLLM", ""), Path(os.environ["FAKE_VLLM_HOME"])


def flag(name):
    return sys.argv[sys.argv.index(name) + 1]


def given_adapters():
    if "--lora-modules" not in sys.argv:
        return {}
    rest = sys.argv[sys.argv.index("--lora-modules") + 1 :]
    end = next((i for i, text in enumerate(rest) if text.startswith("--")), len(rest))
    return dict(text.split("=", 1) for text in rest[:end])


class Handler(BaseHTTPRequestHandler):
    served, asked = {}, 0

    def say(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def do_GET(self):
        Handler.asked += self.path == "/health"
        if self.path == "/health":
            self.say(503 if MODE == "never" or MODE == "slow" and Handler.asked < 4 else 200, {})
        else:
            self.say(200, {"data": [{"id": name} for name in ("sandbox", *Handler.served)]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if MODE == "rejects":
            self.say(400, {"error": {"message": "No adapter \x1b[31m found"}})
            return
        Handler.served[body["lora_name"]] = body["lora_path"]
        with open(HERE / "loaded.jsonl", "a") as f:
            f.write(json.dumps(body) + "\n")
        self.say(200, "Success")

    def log_message(self, *_):
        pass


def main():
    with open(HERE / "started.jsonl", "a") as f:
        f.write(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ)}) + "\n")
    print("INFO loading weights \x1b[2J", flush=True)
    if MODE == "dies":
        print(
            "(EngineCore pid=7) ERROR 11-25 14:00:00 [core.py:1] ValueError: no memory for the cache \x1b[31m"
        )
        print("(APIServer pid=6) Engine core failed", flush=True)
        sys.exit(1)
    if MODE == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN)\nwhile True: time.sleep(9)"
    subprocess.Popen([sys.executable, "-c", code])  # as vLLM's engine: it does not end by itself
    Handler.served = given_adapters()
    ThreadingHTTPServer((flag("--host"), int(flag("--port"))), Handler).serve_forever()


main()
