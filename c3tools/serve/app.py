"""Serve an index: a page to search with a text or a photo, and the same search as JSON.

    GET  /?q=TEXT           the page; with q it shows what was found, also without JavaScript
    GET  /search?q=TEXT     {"query": ..., "hits": [...]}, those of `c3 search --json`, some with
                            "thumbnail" or "sound"
    POST /search            the same for a photo (the file is the body, Content-Type: image/...), or
                            for {"vector": [...], "modality": "text"} (application/json)
    POST /search?q=TEXT     one query of text and photo (or vector); `weights=1,0.5` counts the
                            photo half
    GET  /thumbnail/ROW     the photo of a row, small, as JPEG
    GET  /sound/ROW         the sound of a row, as it is (audio/mpeg, audio/ogg, ...)

`k` (10), `only` (a modality), `split`, `where` (a condition such as `colour=red`, of several all),
`separate` and `by` (item or row) may be added to the address of a search. Wrong input is answered
with {"error": ...} and a status of 4xx. Requests name rows, never files: only photos and sounds of
the index are opened.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, get_args

import msgspec
import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from ..choices import HitKind
from ..corpus.items import AUDIO_TYPES, is_sound
from ..encoders import Encoder
from ..errors import C3Error, reason_of
from ..identity import ModelIdentity
from ..index import Index
from ..index.queries import Query, combined
from ..io.files import json_text
from ..io.images import UNREADABLE, open_image
from ..io.locations import read_all
from ..pages import render_page
from ..photos.finder import PhotoFinder
from ..reporter import SILENT, Reporter, counted
from ..store.shards import MANIFEST_FILE
from .batches import QueryEncoder

LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""Names, as in a request, that this machine has for itself."""
LARGEST_UPLOAD = 20 * 2**20
"""Bytes."""
_MOST_RESULTS = 100
_ON_PAGE = 30  # results
_MOST_CHARACTERS = 1_000
_UPLOAD_SECONDS = 30
_AT_ONCE = 100  # requests that have arrived whole; more are answered with 503
# others have decoders that a stranger's file could keep busy
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_UNREADABLE = (*UNREADABLE, Image.DecompressionBombWarning)
_PARAMETERS = ("q", "k", "only", "split", "where", "separate", "by", "weights")  # of a search
_THUMBNAIL = 320  # pixels of the longer side
_KEPT_THUMBNAILS = 2_000
_TEMPLATE = Path(__file__).parent / "templates" / "page.html"


class _VectorQuery(msgspec.Struct):
    vector: list[float]
    modality: str = "text"


def create_app(
    index: Index,
    encoder: Encoder,
    *,
    hosts: Sequence[str] = LOCAL_HOSTS,
    reporter: Reporter = SILENT,
) -> Starlette:
    """Return the ASGI application of an index; a search opens the index anew if its manifest has
    changed.

    Args:
        index: what is searched.
        encoder: the model of the index.
        hosts: names that the server may be addressed by, so that pages of other sites cannot read
            it under a name of theirs; ``*`` for any.
        reporter: gets a message if the index has changed.
    """
    server = _Server(index, encoder, reporter)
    return Starlette(
        routes=[
            Route("/", partial(server.run, _Site.page)),
            Route("/search", partial(server.run, _Site.search_text), methods=["GET"]),
            Route("/search", server.search_upload, methods=["POST"]),
            Route("/thumbnail/{row}", partial(server.run, _Site.thumbnail)),
            Route("/sound/{row}", partial(server.run, _Site.sound)),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={HTTPException: _refused, C3Error: _refused},
    )


class _Server:
    """Hold what is loaded once: the index, which may be followed by another, and the encoder."""

    def __init__(self, index: Index, encoder: Encoder, reporter: Reporter) -> None:
        self.site = _Site(index, encoder, QueryEncoder(encoder), Lock())
        self.reporter = reporter
        self.opening = Lock()
        self.seen = self.site.manifest  # the newest manifest, also of an index that is refused
        self.running = 0  # requests that are being answered

    async def run(self, method: Callable[..., Response], *arguments: Any) -> Response:
        """Answer a request in a thread, or refuse it while `_AT_ONCE` others are answered.

        Args:
            method: of `_Site`.
            arguments: of the method.
        """
        if self.running == _AT_ONCE:
            raise HTTPException(503, "The server is busy. Try again later.")
        self.running += 1
        try:
            return await run_in_threadpool(self._answer, method, *arguments)
        finally:
            self.running -= 1

    async def search_upload(self, request: Request) -> Response:
        """Search with a photo or a vector."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.startswith("image/"):
            raise HTTPException(415, "Send a photo as image/..., or a vector as application/json.")
        body = await _read(request)
        search = _Site.search_vector if kind == "application/json" else _Site.search_photo
        return await self.run(search, request, body)

    def _answer(self, method: Callable[..., Response], *arguments: Any) -> Response:
        # While one request opens a new index, the others are answered from the former one
        if self.opening.acquire(blocking=False):
            try:
                self._follow()
            finally:
                self.opening.release()
        return method(self.site, *arguments)

    def _follow(self) -> None:
        """Open the index anew if its manifest has changed."""
        former = self.site
        path = former.index.path
        try:
            manifest = read_all(path / MANIFEST_FILE)
        except (C3Error, OSError):  # it is being made, or cannot be reached now
            return
        if manifest == self.seen:
            return
        self.seen = manifest
        try:
            index = Index.open(path)
            ModelIdentity(former.index.record["model"]).require_same(
                index.record["model"],
                own="The server",
                theirs=f"the index {path}",
                remedy="Start `c3 serve` again.",
            )
        except (C3Error, OSError) as error:
            self.reporter.message(
                f"The index {path} has changed, but the former one is still served: {error}"
            )
            return
        self.site = _Site(index, former.encoder, former.queries, former.reading)
        self.seen = self.site.manifest
        rows = counted(index.rows.num_rows, "row")
        self.reporter.message(f"The index {path} has changed and was opened again: {rows}.")


class _Site:
    """Answer requests from one index, with the thumbnails that were shown.

    Attributes:
        index: what is searched.
        encoder: the model of the index.
        queries: encodes queries with it.
        reading: held while a photo is decoded, one at a time, because that may take hundreds of
            megabytes.
        manifest: of the index.
        version: of the index; thumbnails and sounds are asked for with it, since row numbers
            differ in another version.
    """

    def __init__(
        self, index: Index, encoder: Encoder, queries: QueryEncoder, reading: Lock
    ) -> None:
        self.index = index
        self.encoder = encoder
        self.queries = queries
        self.reading = reading
        assert index.source.manifest is not None  # that of an index that was opened
        self.manifest = index.source.manifest.text().encode()
        self.version = hashlib.sha256(self.manifest).hexdigest()[:16]
        self.photos = PhotoFinder(beside=index.store_path)
        # The values that options in the address of a search may have
        self.choices = {
            "only": index.rows.column("modality").unique().to_pylist(),
            "split": index.rows.column("split").unique().to_pylist(),
            "by": get_args(HitKind),
        }
        # Now, or the first query would wait for them
        index.items  # noqa: B018
        index.columns  # noqa: B018
        self.jpeg = lru_cache(_KEPT_THUMBNAILS)(self._jpeg)

    def page(self, request: Request) -> Response:
        """Return the page, with the hits of the text in the address."""
        hits: list[dict[str, Any]] = []
        note = ""
        status = 200
        if request.query_params.get("q", "").strip():
            try:
                hits = self._find(request, default_k=str(_ON_PAGE))["hits"]
                note = "" if hits else "Nothing was found."
            except HTTPException as error:
                note, status = error.detail, error.status_code
            except C3Error as error:
                note, status = str(error), 400
        page = render_page(
            _TEMPLATE,
            title=self.index.path.name,
            rows=counted(self.index.rows.num_rows, "row"),
            choices=self.choices,
            asked={name: request.query_params.get(name, "") for name in ("q", "only", "split")},
            conditions=_conditions(request),
            example=next(iter(self.index.columns.values), None),
            hits=hits,
            note=note,
            most=_ON_PAGE,
            takes_photos="image" in self.encoder.modalities,
        )
        return HTMLResponse(page, status)

    def search_text(self, request: Request) -> Response:
        """Search for the text of the address."""
        return _json(self._find(request))

    def search_photo(self, request: Request, body: bytes) -> Response:
        """Search with a photo."""
        try:
            with (
                self.reading,
                warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            ):
                Image.open(io.BytesIO(body), formats=_FORMATS).close()
                photo, _, _ = open_image(io.BytesIO(body), (512, 512))
        except _UNREADABLE as error:
            raise HTTPException(
                400, f"This cannot be read as a photo ({', '.join(_FORMATS)}): {reason_of(error)}."
            ) from None
        return _json(
            self._find(request, lambda: Query(["photo"], self.queries.encode(photo), "image"))
        )

    def search_vector(self, request: Request, body: bytes) -> Response:
        """Search with a vector."""
        try:
            query = msgspec.json.decode(body, type=_VectorQuery)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HTTPException(400, f"This is not a vector: {reason_of(error)}.") from None
        vector = np.array([query.vector], np.float32)
        if vector.shape[1] != self.index.record["dim"]:
            raise HTTPException(
                400, f"The vector has {vector.shape[1]} numbers, not {self.index.record['dim']}."
            )
        return _json(self._find(request, lambda: Query(["vector"], vector, query.modality)))

    def thumbnail(self, request: Request) -> Response:
        """Return the photo of a row."""
        row = request.path_params["row"]
        with _not_found(f"photo of row {row}"):
            return _file(self.jpeg(self._path(request)), "image/jpeg")

    def sound(self, request: Request) -> Response:
        """Return the sound of a row."""
        row = request.path_params["row"]
        with _not_found(f"audio of row {row}"):
            path = self._path(request)
            if not is_sound(path):
                raise ValueError("it is not an audio file")
            media_type = AUDIO_TYPES[Path(path).suffix.lower()]
            with self.reading:
                return _file(self.photos.read_again(path), media_type)

    def _path(self, request: Request) -> str:
        """Return the path of the photo or sound of the row of an address, empty if it has none.

        Raises:
            ValueError: if there is no such row.
        """
        if request.query_params.get("index", self.version) != self.version:
            raise ValueError("the index has changed")
        row = request.path_params["row"]
        rows = self.index.rows.num_rows
        # int() takes no number of thousands of digits
        if not row.isdecimal() or len(row) > len(str(rows)) or int(row) >= rows:
            raise ValueError("there is no such row")
        return self.index.rows.column("path")[int(row)].as_py() or ""

    def _find(
        self,
        request: Request,
        posted_query: Callable[[], Query] | None = None,
        default_k: str = "10",
    ) -> dict[str, Any]:
        """Return the query and its hits as JSON values; the text and the options are in the
        address. The body is made a query only if these are valid.
        """
        # Refuse parameters that cannot be used
        asked = request.query_params
        unknown = [name for name in asked if name not in _PARAMETERS]
        if unknown:
            raise HTTPException(
                400,
                f"There is no parameter {unknown[0]}; those there are {', '.join(_PARAMETERS)}.",
            )
        text = asked.get("q", "").strip()
        if len(text) > _MOST_CHARACTERS or not (text or posted_query):
            raise HTTPException(400, f"q must be a text of 1 to {_MOST_CHARACTERS:,} characters.")
        k = asked.get("k", default_k)
        if k not in map(str, range(1, _MOST_RESULTS + 1)):
            raise HTTPException(400, f"k must be a whole number from 1 to {_MOST_RESULTS}.")
        for name, choices in self.choices.items():
            if asked.get(name) and asked[name] not in choices:
                raise HTTPException(400, f"{name} must be one of {', '.join(map(str, choices))}.")
        weights = None
        if asked.get("weights"):
            try:
                weights = [float(weight) for weight in asked["weights"].split(",")]
            except ValueError:
                raise HTTPException(400, "weights must be numbers, for example 1,0.5.") from None

        # One query of the text and of what was posted
        queries = []
        if text:
            queries.append(Query([text], self.queries.encode(text), "text"))
        if posted_query:
            queries.append(posted_query())
        query = queries[0]
        if len(queries) > 1 or weights is not None:
            query = combined(self.index.pipeline, queries, weights)
        (hits,) = self.index.rank(
            query.embeddings,
            query.modality,
            int(k),
            only=asked.get("only") or None,
            split=asked.get("split") or None,
            where=_conditions(request),
            separate="separate" in asked,
            by="row" if asked.get("by") == "row" else "item",
            transformed=query.is_transformed,
        )

        # Hits with the address of their photo or sound
        hit_values = []
        for hit in hits:
            values = hit.to_dict()
            if hit.path:
                kind = "sound" if is_sound(hit.path) else "thumbnail"
                values[kind] = f"{kind}/{hit.row}?index={self.version}"
            hit_values.append(values)
        return {"query": query.labels[0], "hits": hit_values}

    def _jpeg(self, path: str) -> bytes:
        """Return the small JPEG of a photo."""
        with self.reading:
            content = self.photos.read_again(path)
            image, _, _ = open_image(io.BytesIO(content), (_THUMBNAIL // 2, _THUMBNAIL // 2))
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=85)
        return stream.getvalue()


def _conditions(request: Request) -> list[str]:
    return [condition for condition in request.query_params.getlist("where") if condition.strip()]


@contextmanager
def _not_found(what: str) -> Iterator[None]:
    """Answer 404 if a photo or sound cannot be read in the block."""
    try:
        yield
    except _UNREADABLE as error:
        raise HTTPException(404, f"There is no {what}: {reason_of(error)}.") from None


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    text = json_text(value, indent=None, sort_keys=False)
    return Response(text, status, headers, "application/json")


def _file(content: bytes, media_type: str) -> Response:
    return Response(content, media_type=media_type, headers={"Cache-Control": "max-age=3600"})


async def _read(request: Request) -> bytes:
    """Return the body of a request, of a bounded size and in a bounded time."""
    body = bytearray()
    try:
        async with asyncio.timeout(_UPLOAD_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > LARGEST_UPLOAD:
                    raise HTTPException(413, f"Uploads may have at most {LARGEST_UPLOAD:,} bytes.")
    except TimeoutError:
        raise HTTPException(408, f"The upload took more than {_UPLOAD_SECONDS} seconds.") from None
    except ClientDisconnect:
        raise HTTPException(400, "The upload ended early.") from None
    return bytes(body)


def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _json({"error": error.detail}, error.status_code, error.headers)
    return _json({"error": str(error)}, 400)
