"""``modalign serve``: a model behind the OpenAI API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import options

MAX_RATE = 60  # frames a second of the longest video


def serve(
    model: options.Model,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port; 0 chooses a free one.")
    ] = 8000,
    served_name: Annotated[
        str | None, typer.Option("--served-name", help="The model's name; default: its folder's.")
    ] = None,
    patch: options.Patches = None,
    control_token: options.ControlTokens = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    max_batch: Annotated[
        int, typer.Option("--max-batch", min=1, help="Answers generated at the same time.")
    ] = 16,
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", min=0, help="Answers that may wait; beyond that, 429.")
    ] = 64,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length", min=2, help="Positions of prompt and answer; default: the model's."
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            min=1,
            help="Threads of a model on the CPU; default: measured as it works.",
        ),
    ] = None,
    prefix_mb: Annotated[
        float,
        typer.Option(
            "--prefix-mb",
            min=0,
            help="Memory for what was read of earlier prompts, in MB; 0 keeps nothing.",
        ),
    ] = 1024.0,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            help="Address of the language model's server (vLLM with --enable-prompt-embeds); MODEL is then "
            "a gateway folder.",
        ),
    ] = None,
    backend_model: Annotated[
        str | None,
        typer.Option("--backend-model", help="The model's name there, if it has several."),
    ] = None,
    backend_key_file: Annotated[
        Path | None, typer.Option("--backend-key-file", help="File with its API key.")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help="File with the key that clients must send."),
    ] = None,
    no_api_key: Annotated[
        bool,
        typer.Option(
            "--no-api-key", help="Accept everybody who reaches --host (in a proxy's network)."
        ),
    ] = False,
    allow_url: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-url", help="HOST or HOST:PORT that media may be fetched from; repeatable."
        ),
    ] = None,
    max_body_mb: Annotated[
        float, typer.Option("--max-body-mb", min=0.001, help="Maximum body of a request.")
    ] = 32.0,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=1, help="Maximum pixels of a request's images.")
    ] = 64_000_000,
    max_seconds: Annotated[
        float,
        typer.Option(
            "--max-seconds",
            min=0.001,
            help="Maximum seconds of a request's sound, and of its video.",
        ),
    ] = 600.0,
    decode_seconds: Annotated[
        float,
        typer.Option("--decode-seconds", min=0.1, help="Longest that a request's media decode."),
    ] = 30.0,
    drain_seconds: Annotated[
        float,
        typer.Option(
            "--drain-seconds", min=1, help="Time for running answers to finish after a signal."
        ),
    ] = 30.0,
) -> None:
    """Serve a model behind the OpenAI API: chat with media, completions, models, health, metrics.

    Only this machine can connect unless --host says otherwise. The first Ctrl-C or SIGTERM finishes running
    requests, the second stops at once.

    **Examples**

    - `modalign serve runs/compare/best`

    - `modalign serve runs/compare/best --port 0 --patch fix.safetensors`

    - `modalign serve my-model --host 0.0.0.0 --api-key-file key.txt --served-name scenes`

    - `modalign serve my-model --prefix-mb 4096 --max-batch 32`

    - `modalign serve my-model --allow-url images.example.org`

    - `modalign serve my-gateway --backend http://127.0.0.1:8001`
    """
    from modalign.cli.console import quiet_libraries, stderr, stdout
    from modalign.errors import UsageError
    from modalign.serving.engine import open_engine
    from modalign.serving.gateway import open_gateway
    from modalign.serving.http.fetch import Fetcher
    from modalign.serving.http.log import logging_to_stderr
    from modalign.serving.http.server import accepted_hosts, address_of, is_loopback, listening
    from modalign.serving.http.server import serve as run
    from modalign.serving.http.settings import MEGABYTE, MediaLimits, Settings, read_key
    from modalign.serving.requests import Engine

    if backend is not None and patch:
        raise UsageError(
            "--patch changes a language model, which with --backend runs elsewhere: apply the patch "
            "there ('modalign patch apply' writes the changed model)"
        )
    if api_key_file is not None and no_api_key:
        raise UsageError("--api-key-file and --no-api-key contradict each other: give only one")
    if not is_loopback(host) and api_key_file is None and not no_api_key:
        raise UsageError(
            f"--host {host} lets other machines in: give --api-key-file, or --no-api-key if something else "
            "protects it"
        )
    body = round(max_body_mb * MEGABYTE)
    limits = MediaLimits(
        image_pixels=max_pixels,
        audio_seconds=max_seconds,
        video_seconds=max_seconds,
        video_frames=round(MAX_RATE * max_seconds),
        decode_seconds=decode_seconds,
        url_bytes=body,
    )
    settings = Settings(
        served_name or model.resolve().name,
        api_key=read_key(api_key_file) if api_key_file else None,
        hosts=accepted_hosts(host),
        url_hosts=tuple(allow_url or ()),
        body_bytes=body,
        requests=max_batch + max_waiting + 16,
        media=limits,
    )
    # A wrong host is reported before the model loads.
    Fetcher(settings.url_hosts, body, limits.url_seconds)
    listener = listening(host, port)
    quiet_libraries()

    def ready() -> None:
        url = f"{address_of(listener, host)}/v1"
        stdout.print(f"{settings.name} is served at {url}", highlight=False, soft_wrap=True)
        stdout.file.flush()

    def stopping() -> None:
        stderr.print("finishing running requests; press again to stop at once", highlight=False)

    with listener, logging_to_stderr():
        stderr.print(f"loading {model}", markup=False, highlight=False, soft_wrap=True)
        engine: Engine
        if backend is None:
            engine = open_engine(
                model,
                device=device or "auto",
                control_tokens=control_token or [],
                patches=patch or [],
                max_batch=max_batch,
                max_waiting=max_waiting,
                max_length=max_length,
                threads=threads,
                prefix_bytes=round(prefix_mb * MEGABYTE),
            )
        else:
            engine = open_gateway(
                model,
                backend,
                model=backend_model,
                api_key=read_key(backend_key_file, "--backend-key-file")
                if backend_key_file
                else None,
                device=device or "auto",
                max_batch=max_batch,
                max_waiting=max_waiting,
                max_length=max_length,
            )
        code = run(
            engine, settings, listener, ready=ready, stopping=stopping, drain_seconds=drain_seconds
        )
    raise typer.Exit(code)
