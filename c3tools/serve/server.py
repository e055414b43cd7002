"""Start the server of an index."""

from __future__ import annotations

import socket
from pathlib import Path

from ..encoders import resolve_encoder
from ..errors import MissingExtraError, StoreError, reason_of
from ..index import Index, find_index
from ..reporter import SILENT, Reporter


def serve_index(
    index: str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str | None = None,
    backend: str = "auto",
    reporter: Reporter = SILENT,
) -> None:
    """Serve a search page for an index until it is interrupted, and the same search in JSON.

    If the index is made anew, the next request opens the new one.

    Args:
        index: The folder of the index. By default c3-index or, if it is missing, the index that c3
            embed --faiss built next to the store.
        host: IPv4 or IPv6 address to listen on. With 0.0.0.0, anyone who can reach this machine can
            search the index and see its photos.
        port: Port to listen on.
        device: cpu, cuda, cuda:1 or mps. By default the fastest device.
        backend: See `embed`.
        reporter: Gets the address, the messages of the encoder, and one if the index has changed.

    Raises:
        StoreError: if there is no index, or the server cannot listen on the address.
        EncoderError: if the recorded model cannot be loaded.
        MissingExtraError: if starlette, uvicorn or faiss is not installed.
    """
    try:
        import uvicorn

        from .app import LOCAL_HOSTS, create_app
        from .connections import TimedProtocol
    except ImportError as error:
        raise MissingExtraError(
            error.name or "starlette", extra="serve", purpose="Serving an index"
        ) from None
    opened = Index.open(find_index(index))
    encoder = resolve_encoder(
        recorded=opened.record["model"], device=device, backend=backend, reporter=reporter
    )

    # A server for this machine alone answers to its names alone; others may have any name
    is_ipv6 = ":" in host
    host_in_url = f"[{host}]" if is_ipv6 else host
    hosts = LOCAL_HOSTS if host_in_url in LOCAL_HOSTS else ("*",)
    app = create_app(opened, encoder, hosts=hosts, reporter=reporter)

    # Listen here, so that an address that is taken is one clear error
    try:
        listening_socket = socket.create_server(
            (host, port), family=socket.AF_INET6 if is_ipv6 else socket.AF_INET
        )
    except (OSError, OverflowError) as error:
        raise StoreError(
            f"Cannot listen on {host}:{port}: {reason_of(error)}.",
            remedy="Choose another --port.",
        ) from error
    reporter.message(f"Serving {opened.path} at http://{host_in_url}:{port}/ (stop with Ctrl-C)")
    config = uvicorn.Config(
        app, http=TimedProtocol, ws="none", log_level="warning", access_log=False
    )
    uvicorn.Server(config).run(sockets=[listening_socket])
