"""A stand-in for a server of a plain language model that takes prompt embeddings.

It speaks the completions route of vLLM as its documentation describes it: ``prompt_embeds`` is a base64
``torch.save`` of a (T, D) tensor, read with ``weights_only=True``; no chat template is applied; answers
stream as server-sent events.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import Tensor


@dataclass
class Backend:
    """Where it is, and what it was asked."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[Tensor] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    hold: threading.Event | None = None  # keeps answers back after their first token
    left: threading.Event = field(default_factory=threading.Event)  # a client went away
    fail: str | None = None


@contextmanager
def running(
    language_model: Any, tokenizer: Any, models: tuple[str, ...] = ("llm",)
) -> Iterator[Backend]:
    """Greedy answers of a language model to prompt embeddings."""
    found = Backend()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _send(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            found.keys.append(self.headers.get("Authorization"))
            assert self.path == "/v1/models"
            self._send(200, {"data": [{"id": name, "max_model_len": 200} for name in models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.bodies.append(body)
            found.keys.append(self.headers.get("Authorization"))
            if self.path != "/v1/completions" or found.fail:
                self._send(400, {"error": {"message": found.fail or "no such route"}})
                return
            raw = base64.b64decode(body["prompt_embeds"], validate=True)
            embeds = torch.load(io.BytesIO(raw), weights_only=True)
            found.prompts.append(embeds)
            assert embeds.dim() == 2
            assert "prompt" not in body
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            try:
                self._stream(embeds, body)
            except OSError:
                found.left.set()

        def _stream(self, embeds: Tensor, body: dict[str, Any]) -> None:
            ends = set(body["stop_token_ids"])  # also with ignore_eos, as in vLLM
            made, shown, reason = list[int](), "", "length"
            embed = language_model.get_input_embeddings()
            for _ in range(body["max_tokens"]):
                with lock, torch.no_grad():
                    tail = embed(torch.tensor(made, dtype=torch.long))
                    whole = torch.cat([embeds, tail])[None]
                    logits = language_model(inputs_embeds=whole).logits[0, -1]
                token = int(logits.argmax())
                made.append(token)
                told = self._told(token, logits.log_softmax(-1), body)
                if token in ends:
                    reason = "stop"
                    self._event({"choices": [{"text": "", "logprobs": told}]})
                    break
                text = tokenizer.decode(made, skip_special_tokens=True)
                new = "" if text.endswith("\ufffd") else text[len(shown) :]  # whole characters only
                self._event({"choices": [{"text": new, "logprobs": told, "finish_reason": None}]})
                shown += new
                if found.hold is not None:
                    while not found.hold.wait(0.01):
                        self._event({"choices": [{"text": "", "finish_reason": None}]})
            rest = tokenizer.decode(made, skip_special_tokens=True)[len(shown) :]
            self._event({"choices": [{"text": rest, "finish_reason": reason}]})
            usage = {"prompt_tokens": len(embeds), "completion_tokens": len(made)}
            self._event({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")

        def _told(self, token: int, known: Tensor, body: dict[str, Any]) -> dict[str, Any]:
            assert body["return_tokens_as_token_ids"] is True
            values, ids = known.topk(body["logprobs"])
            top = {f"token_id:{i}": v for i, v in zip(ids.tolist(), values.tolist(), strict=True)}
            return {
                "tokens": [f"token_id:{token}"],
                "token_logprobs": [float(known[token])],
                "top_logprobs": [top],
            }

        def _event(self, body: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())
            self.wfile.flush()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
