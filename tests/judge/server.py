"""A judge's endpoint for tests: speaks OpenAI chat completions and misbehaves as the model's name says.

    python tests/judge/server.py --port 8000 --service 0.2 --capacity 16

A model's name is a list of behaviours joined by "+", one for each time that the same question is asked; the
last stays: "500+prose+good" fails, then talks, then answers. Names that are no behaviour answer well. Scores
are a function of the question, so they vary and never change. "mixed" is a usable or unusable reply, by what
is asked alone. GET /log tells what was asked and answered.
"""

import argparse
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TEXTS = ("the tail of the dog vanished", "the sky stayed blue", "blurred hands", "the wall changed colour")
TOKENS = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
HANG = 30  # seconds


def answer(score, verdict="yes", failure="None") -> str:
    return json.dumps({"failure": failure, "verdict": verdict, "score": score})


# What stands in the reply of a question whose score is s
REPLIES = {
    "good": lambda s: answer(s, "yes" if s >= 4 else "no", "None" if s == 5 else TEXTS[s % len(TEXTS)]),
    "prose": lambda s: f"Let me see {{carefully}}. My judgement is {answer(s)}, as {{said}}.",
    "lines": lambda s: f"**Score:** {s}\n**Verdict:** Yes.\n**Failure:** the cat; it vanished",
    "string": lambda s: answer(str(s)),
    "float": lambda s: answer(float(s)),
    "range": lambda s: answer(f"{s}-{s + 1}" if s < 5 else 5),
    "fraction": lambda s: answer(f"{s}/5"),
    "fence": lambda s: f"```json\n{answer(s)}\n```",
    "talk": lambda s: "A lovely picture. I would not change a thing.",
    "bare": lambda s: "4",
    "seven": lambda s: answer(7),
    "half": lambda s: answer(3.5),
    "nan": lambda s: '{"failure": "None", "verdict": "yes", "score": NaN}',
    "keys": lambda s: json.dumps({"rating": s, "ok": True, "why": "None"}),
    "empty": lambda s: "",
    "null": lambda s: None,
}
USABLE = ("good", "prose", "lines", "string", "float", "range", "fraction", "fence")
UNUSABLE = ("talk", "bare", "seven", "half", "nan", "keys", "empty", "null")
# 400 to a request that asks for structured output, temperature, ...; the error names what it is about
REFUSALS = {"no_schema": "response_format", "no_temperature": "temperature", "no_max_tokens": "max_tokens"}
BROKEN = ("429", "500", "hang", "close", "cut", "html")  # no reply; 429 says to wait
RETRY_AFTER = 0.3  # seconds
# besides: 401, 400, echo (an error with the request's headers), slow (a byte now and then, but whole)


def digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class JudgeServer(ThreadingHTTPServer):
    """Answers on 127.0.0.1; `log` has a dict for every request.

    Args:
        service: seconds that a reply takes.
        capacity: requests served at a time; others wait.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0, service: float = 0.0, capacity: int = 16) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.service, self.slots = service, threading.Semaphore(capacity)
        self.log: list[dict] = []
        self.asked: dict[str, int] = {}  # how often each question was asked, by model
        self.lock, self.closing = threading.Lock(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address) -> None:
        """A client that went away is in the log as not answered."""

    def start(self) -> "JudgeServer":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: JudgeServer

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self.send(200, {"/log": self.server.log, "/v1/models": {"data": []}}.get(self.path, []))

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        server, messages = self.server, body["messages"]
        question = digest(messages[:2])  # system and user; what is asked after them does not change the score
        entry = {
            "digest": digest([question, body | {"messages": messages[2:]}]), "question": question,
            "score": int(question[:8], 16) % 6,
            "messages": len(messages), "images": raw.count(b"data:image/"), "model": body["model"],
            "options": sorted(body.keys() - {"messages", "model"}),
            "authorization": self.headers.get("Authorization"), "received": time.monotonic(), "answered": None,
        }  # fmt: skip
        turns = body["model"].split("+")
        with server.lock:
            turn = server.asked.setdefault(entry["question"] + body["model"], 0)
            server.asked[entry["question"] + body["model"]] += 1
            behaviour = turns[min(turn, len(turns) - 1)]
            if behaviour == "mixed":
                replies = USABLE + UNUSABLE
                behaviour = replies[int(digest(messages)[8:16], 16) % len(replies)]
            entry["behaviour"] = behaviour
            server.log.append(entry)
        if behaviour == "hang":  # without taking a slot
            server.closing.wait(HANG)
        with server.slots:
            entry["started"] = time.monotonic()
            server.closing.wait(server.service)
            if self.reply(behaviour, body, entry["score"]):
                entry["answered"] = time.monotonic()

    def reply(self, behaviour: str, body: dict, score: int) -> bool:
        """Whether a whole chat completion was sent."""
        error = {"message": f"it is a {behaviour}", "type": "test", "code": behaviour}
        if behaviour in ("429", "500", "401", "400"):
            self.send(int(behaviour), {"error": error}, {"Retry-After": str(RETRY_AFTER)} if behaviour == "429" else {})
        elif behaviour == "echo":
            self.send(400, {"error": error | {"message": f"what is {dict(self.headers)}?"}})
        elif REFUSALS.get(behaviour) in body:
            self.send(400, {"error": error | {"message": f"{REFUSALS[behaviour]} is not supported"}})
        elif behaviour == "html":
            self.send(200, b"<html>Bad gateway</html>")
        elif behaviour in ("hang", "close"):
            self.close_connection = True
        else:
            text = REPLIES.get(behaviour, REPLIES["good"])(score)
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            completion = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
            data = json.dumps(completion | {"choices": [choice], "usage": TOKENS}).encode()
            self.send(200, data, pieces=10 if behaviour == "slow" else 1, cut=behaviour == "cut")
            return behaviour != "cut"
        return False

    def send(self, status: int, content, headers: dict | None = None, pieces: int = 1, cut: bool = False) -> None:
        """`content` as JSON, in `pieces` with a tenth of a second between; a `cut` one lacks its end."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        fields = {"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        if cut:
            data, self.close_connection = data[: len(data) // 2], True
        step = -(-len(data) // pieces)
        for start in range(0, len(data), step):
            if start:
                self.server.closing.wait(0.1)
            self.wfile.write(data[start : start + step])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--service", type=float, default=0.0, help="seconds that a reply takes")
    parser.add_argument("--capacity", type=int, default=16, help="requests served at a time")
    args = parser.parse_args()
    served = JudgeServer(args.port, args.service, args.capacity)
    print(served.url, flush=True)
    served.serve_forever()
