"""The server of an index: its answers against the index, bad requests, many clients at once, a real
browser."""

from __future__ import annotations

import asyncio
import io
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from PIL import Image

from c3tools.index import Hit, Index, build_index
from c3tools.store import Rows
from tests.bombs import png
from tests.conftest import C3, Messages, build_store, done, unit_rows
from tests.stores import colour_corpus, colour_encoder, embed_colours

pytest.importorskip("faiss", reason="faiss is an extra")
pytest.importorskip("httpx", reason="Starlette's test client needs it")
testclient = pytest.importorskip("starlette.testclient", reason="starlette is an extra")

COLOURS = {"a": "red", "b": "blue", "c": "lime", "d": "gold", "e": "navy"}


def client_of(app: Any) -> Any:
    """A client of the application, at an address of this machine."""
    return testclient.TestClient(app, base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("serve")
    embed_colours(colour_corpus(folder / "photos", COLOURS), folder / "c3-store")
    return build_index(folder / "c3-store", output=folder / "index", preset="c1")


@pytest.fixture(scope="module")
def client(index: Index) -> Iterator[Any]:
    from c3tools.serve.app import create_app

    with client_of(create_app(index, colour_encoder())) as client:
        yield client


@pytest.fixture(scope="module")
def centred(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Index]]:
    """A client of a server of 60 photos and 120 texts, with their means subtracted; the index."""
    from c3tools.serve.app import create_app

    folder = tmp_path_factory.mktemp("centred")
    colours = {f"{number:02d}": f"rgb({4 * number}, 99, 9)" for number in range(60)}
    embed_colours(colour_corpus(folder / "photos", {**colours, **COLOURS}), folder / "c3-store")
    index = build_index(folder / "c3-store", output=folder / "index")
    with client_of(create_app(index, colour_encoder())) as client:
        yield client, index


def photo(colour: str = "red", kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 6), colour).save(stream, kind)
    return stream.getvalue()


def assert_found(response: Any, index: Index, embeddings: Any, modality: str) -> None:
    """Assert that a server found the hits of the index, seven of them."""
    (expected,) = index.rank(embeddings, modality, 7)
    hits = response.json()["hits"]
    assert [(hit["key"], hit["score"]) for hit in hits] == [
        (hit.key, hit.score) for hit in expected
    ]


def test_a_text_finds_what_the_index_finds(client: Any, index: Index) -> None:
    embeddings = colour_encoder().encode_texts(["b 0"])
    assert_found(client.get("/search?q=b 0&k=7"), index, embeddings, "text")


def test_a_vector_finds_what_the_index_finds(client: Any, index: Index) -> None:
    embeddings = colour_encoder().encode_texts(["b 0"])
    response = client.post("/search?k=7", json={"vector": embeddings[0].tolist()})
    assert_found(response, index, embeddings, "text")


def test_a_photo_finds_what_the_index_finds(client: Any, index: Index) -> None:
    embeddings = colour_encoder().encode_images([Image.new("RGB", (9, 6), "red")])
    response = client.post("/search?k=7", content=photo(), headers={"Content-Type": "image/png"})
    assert_found(response, index, embeddings, "image")


@pytest.mark.parametrize("weights", ["", "1,-0.5"])
def test_a_text_and_a_photo_are_one_query(centred: tuple[Any, Index], weights: str) -> None:
    client, index = centred
    (expected,) = index.search(
        "b 0",
        image=Image.new("RGB", (9, 6), "red"),
        weights=[1, -0.5] if weights else None,
        k=7,
        encoder=colour_encoder(),
    )
    response = client.post(
        f"/search?q=b 0&k=7&weights={weights}",
        content=photo(),
        headers={"Content-Type": "image/png"},
    )
    assert [(hit["key"], hit["score"]) for hit in response.json()["hits"]] == [
        (hit.key, hit.score) for hit in expected.hits
    ]
    assert response.json()["query"] == ("1 × b 0 + -0.5 × photo" if weights else "b 0 + photo")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("q=b&weights=1,x", "weights must be numbers"),
        ("q=b&weights=1", "One weight is needed for each of the 2 parts"),
        ("weights=1", "no effect with a query of one part"),
        ("q=b&weights=0,0", "All weights of the query are 0"),
    ],
)
def test_weights_that_no_query_can_have(
    centred: tuple[Any, Index], address: str, message: str
) -> None:
    response = centred[0].post(
        f"/search?{address}", content=photo(), headers={"Content-Type": "image/png"}
    )
    assert response.status_code == 400 and message in response.json()["error"]


@pytest.mark.parametrize("modality", ["text", "image"])
def test_a_search_in_a_modality_finds_only_its_rows(client: Any, modality: str) -> None:
    hits = client.get(f"/search?q=x&k=50&only={modality}").json()["hits"]
    assert {hit["modality"] for hit in hits} == {modality}


def test_a_search_in_a_split_finds_only_its_rows(client: Any, index: Index) -> None:
    split = index.rows.column("split")[0].as_py()
    hits = client.get(f"/search?q=x&k=50&split={split}").json()["hits"]
    assert {hit["split"] for hit in hits} == {split}


def test_a_separate_search_finds_so_many_of_each_modality(client: Any) -> None:
    hits = client.get("/search?q=x&k=2&separate").json()["hits"]
    assert [hit["modality"] for hit in hits] == ["image", "image", "text", "text"]


def test_a_search_by_row_finds_rows_in_place_of_items(client: Any) -> None:
    hits = client.get("/search?q=b 0&k=50").json()["hits"]
    assert [len(hit["rows"]) for hit in hits] == [3] * 5
    assert len(client.get("/search?q=b 0&k=50&by=row").json()["hits"]) == 15
    assert "by must be one of item, row" in client.get("/search?q=b 0&by=photo").json()["error"]


def test_the_page_names_the_index_and_the_choices_of_a_search(client: Any, index: Index) -> None:
    page = client.get("/").text
    splits = index.rows.column("split").unique().to_pylist()
    assert "<title>index</title>" in page
    assert "15 rows" in page
    assert re.findall(r"<option>(\w+)<", page) == ["image", "text", *splits]


def test_a_thumbnail_is_a_small_jpeg_of_its_row_if_the_photo_is_there(
    client: Any, index: Index
) -> None:
    row, gone = map(index.rows.column("key").to_pylist().index, "de")
    thumbnail, paths = io.BytesIO(), index.rows.column("path")
    Image.new("RGB", (900, 450), "gold").save(str(paths[row]), "JPEG")
    with Image.open(str(paths[row])) as image:
        image.resize((320, 160)).save(thumbnail, "JPEG", quality=85)
    assert client.get(f"/thumbnail/{row}?path=/etc/passwd").content == thumbnail.getvalue()
    Path(str(paths[gone])).unlink()
    assert client.get(f"/thumbnail/{gone}").status_code == 404


@pytest.fixture
def sound_client(tmp_path: Path) -> Iterator[Any]:
    """A client of a server of two rows: a.ogg is there, b.mp3 is not."""
    from c3tools.serve.app import create_app

    (tmp_path / "a.ogg").write_bytes(b"OggS of a")
    paths = [str(tmp_path / name) for name in ("a.ogg", "b.mp3")]
    build_store(tmp_path / "s", Rows.of("audio", ["a", "b"], unit_rows(2, 8), path=paths))
    index = build_index(tmp_path / "s", output=tmp_path / "index", preset="c1")
    with client_of(create_app(index, colour_encoder())) as client:
        yield client


def test_a_sound_is_the_file_with_its_media_type(sound_client: Any) -> None:
    response = sound_client.get("/sound/0")
    assert response.content == b"OggS of a"
    assert response.headers["Content-Type"] == "audio/ogg"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("/sound/1", "no audio of row 1: there is no such file"),
        ("/sound/2", "no audio of row 2: there is no such row"),
        ("/thumbnail/0", "no photo of row 0: "),
    ],
)
def test_a_sound_or_photo_that_is_not_there_is_not_found(
    sound_client: Any, address: str, reason: str
) -> None:
    response = sound_client.get(address)
    assert response.status_code == 404
    assert reason in response.json()["error"]


def test_a_photo_is_no_sound(client: Any) -> None:
    assert "it is not an audio file" in client.get("/sound/0").json()["error"]


def takes_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "address", "status"),
    [
        ("127.0.0.1", "127.0.0.1", 400),
        ("0.0.0.0", "0.0.0.0", 200),
        pytest.param(
            "::1", "[::1]", 400, marks=pytest.mark.skipif(not takes_ipv6(), reason="no IPv6 here")
        ),
    ],
)
def test_the_command_serves_other_names_only_if_it_listens_to_others(
    c3: C3, index: Index, monkeypatch: pytest.MonkeyPatch, host: str, address: str, status: int
) -> None:
    import uvicorn

    found: list[Any] = []

    def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        with sockets[0], testclient.TestClient(server.config.app) as client:
            status = client.get("/search?q=b 0&k=1").status_code
            found.extend((sockets[0].getsockname()[0], status, server.config.access_log))

    monkeypatch.setattr(uvicorn.Server, "run", run)
    monkeypatch.setattr("c3tools.serve.server.resolve_encoder", lambda **_: colour_encoder())
    said = done(c3("serve", "--index", index.path, "--host", host, "--port", 0)).stderr
    assert found == [host, status, False]
    assert said == f"Serving {index.path} at http://{address}:0/ (stop with Ctrl-C)\n"


@pytest.mark.parametrize("name", ["127.0.0.1:8000", "localhost", "[::1]:8000", "[::1]"])
def test_a_local_server_answers_to_its_own_names(client: Any, name: str) -> None:
    assert client.get("/search?q=b 0&k=1", headers={"Host": name}).status_code == 200


QUERIES = [
    "",
    "q=%20",
    "q=" + "x" * 1001,
    *(f"q=a&{more}" for more in "k=0 k=101 k=x only=audio split=x".split()),
]
FILES = (
    "thumbnail/99999999999999999999999 thumbnail/-1 thumbnail/..%2f..%2fetc%2fpasswd "
    "../../etc/passwd thumbnail/x sound/15 sound/" + "9" * 4301  # more digits than int() takes
).split()
VALUES = (
    "[1e999, 0, 0, 0, 0, 0, 0, 0]",
    "[1, 2]",
    "[0, 0, 0, 0, 0, 0, 0, 0]",
    '"../../etc/passwd"',
)
VECTORS = ["{", "[" * 100_000, *(f'{{"vector": {value}}}' for value in VALUES)]
PHOTOS = (b"", b"no photo", png(13_300, 13_300), photo(kind="TIFF"))


@pytest.mark.parametrize(
    ("status", "method", "address", "content", "kind"),
    [
        *((400, "GET", f"/search?{query}", b"", "") for query in QUERIES),
        *((404, "GET", f"/{file}", b"", "") for file in FILES),
        (405, "PUT", "/search", b"", ""),
        *((400, "POST", "/search", content, "image/png") for content in PHOTOS),
        *((400, "POST", "/search", content, "application/json") for content in VECTORS),
        (413, "POST", "/search", bytes(21 * 2**20), "image/png"),
        (413, "POST", "/search", iter([bytes(2**20)] * 100), "image/png"),
        (415, "POST", "/search", photo(), "text/plain"),
    ],
)
def test_a_bad_request_is_answered_and_stops_nothing(
    client: Any, status: int, method: str, address: str, content: Any, kind: str
) -> None:
    response = client.request(method, address, content=content, headers={"Content-Type": kind})
    assert response.status_code == status, response.text
    assert re.search(r"[^.]\.?$", response.json()["error"])
    assert client.get("/search?q=a").status_code == 200


def test_the_page_answers_the_query_in_its_address_without_scripts(client: Any) -> None:
    page = client.get("/?q=b 0&only=text&split=")
    assert page.status_code == 200
    assert 'value="b 0"' in page.text
    assert "<option selected>text<" in page.text
    captions = re.findall("<figure.*?<p>(.*?)</p>", page.text, re.DOTALL)
    hits = client.get("/search?q=b 0&only=text&k=30").json()["hits"]
    assert captions == [hit["caption"] for hit in hits]


def test_the_page_shows_the_columns_that_rows_carry(
    client: Any, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"label": 0, "nsfw": None, "gender": ""}
    hit = Hit(2.3, 0.3, 0, "a", "text", caption="a dog", columns=columns)
    monkeypatch.setattr(Index, "rank", lambda *_, **__: [[hit]])
    page = client.get("/?q=dog").text
    assert "<span>label: 0</span></figcaption>" in page
    assert "nsfw" not in page and "gender" not in page


@pytest.fixture
def shop_client(tmp_path: Path) -> Iterator[Any]:
    """A client of a server of four images with a colour and a price."""
    from c3tools.serve.app import create_app

    rows = Rows.of(
        "image",
        ["a", "b", "c", "d"],
        unit_rows(4, 8),
        colour=["red", "red", "blue", None],
        price=["9.5", "30", "9", ""],
    )
    columns = {"colour": "string", "price": "string"}
    build_store(tmp_path / "s", rows, columns=columns)
    index = build_index(tmp_path / "s", output=tmp_path / "index", preset="c1")
    with client_of(create_app(index, colour_encoder())) as client:
        yield client


def test_a_search_with_conditions_finds_the_rows_that_fulfil_all(shop_client: Any) -> None:
    def found(query: str) -> str:
        hits = shop_client.get(f"/search?q=x&{query}").json()["hits"]
        return "".join(sorted(hit["key"] for hit in hits))

    assert found("where=colour%3Dred") == "ab"
    assert found("where=price<10") == "ac"
    assert found("where=price<10&where=colour%3Dred&where=") == "a"
    unknown = shop_client.get("/search?q=x&where=color%3Dred")
    assert unknown.status_code == 400
    assert "Its columns are: colour, price." in unknown.json()["error"]


def test_the_page_has_the_conditions_of_its_address_and_one_more(shop_client: Any) -> None:
    page = shop_client.get("/?q=x&where=price<10&where=colour%3Dred").text
    assert re.findall(r"<figcaption>.*?<span>(\w)</span>", page) == ["a"]
    assert re.findall(r'name="where" value="(.*?)"', page) == ["price&lt;10", "colour=red", ""]
    page = shop_client.get("/?q=x&where=colour%3Dpink").text
    assert "The values of colour are: red, blue." in page


@pytest.fixture
def changing(tmp_path: Path) -> Iterator[tuple[Any, Path, Messages]]:
    """A client of a server of the photos a and b; their folder, and the server's messages."""
    from c3tools.serve.app import create_app

    embed_colours(colour_corpus(tmp_path / "photos", {"a": "red", "b": "blue"}), tmp_path / "s")
    build_index(tmp_path / "s", output=tmp_path / "index", preset="c1")
    messages = Messages()
    app = create_app(Index.open(tmp_path / "index"), colour_encoder(), reporter=messages)
    with client_of(app) as client:
        yield client, tmp_path, messages


def found(client: Any) -> dict[str, str]:
    """The addresses of the thumbnails that a server has now, by the key of the photo."""
    hits = client.get("/search?q=x&only=image").json()["hits"]
    return {hit["key"]: hit["thumbnail"] for hit in hits}


def test_an_index_that_is_made_anew_is_served_from_the_next_request_on(
    changing: tuple[Any, Path, Messages],
) -> None:
    client, folder, messages = changing
    before = found(client)
    assert sorted(before) == ["a", "b"]
    more = colour_corpus(folder / "photos", {"a": "red", "b": "blue", "c": "lime"})
    embed_colours(more, folder / "s")
    assert sorted(found(client)) == ["a", "b"]
    build_index(folder / "s", output=folder / "index", preset="c1")
    after = found(client)
    assert sorted(after) == ["a", "b", "c"]
    assert messages.texts == [
        f"The index {folder / 'index'} has changed and was opened again: 9 rows."
    ]
    # A row of the former index may be another photo now
    assert client.get(after["b"]).status_code == 200
    assert "the index has changed" in client.get(before["b"]).json()["error"]


def test_the_former_index_is_served_if_the_new_one_cannot_be(
    changing: tuple[Any, Path, Messages],
) -> None:
    client, folder, messages = changing
    manifest = folder / "index" / "manifest.json"
    sound = manifest.read_bytes()
    manifest.write_bytes(b"{}")
    assert [sorted(found(client)) for _ in range(2)] == [["a", "b"]] * 2
    manifest.unlink()
    assert sorted(found(client)) == ["a", "b"]
    (message,) = messages.texts
    assert "has changed, but the former one is still served: " in message
    manifest.write_bytes(sound)
    assert sorted(found(client)) == ["a", "b"]


def test_an_index_of_another_model_is_not_searched_with_the_former_model(
    changing: tuple[Any, Path, Messages],
) -> None:
    client, folder, messages = changing
    other = {"name": "other", "weights_sha256": "1" * 64}
    build_store(folder / "t", Rows.of("image", ["c", "d"], unit_rows(2, 8)), model=other)
    build_index(folder / "t", output=folder / "index", preset="c1", rebuild=True)
    assert sorted(found(client)) == ["a", "b"]
    assert "Start `c3 serve` again." in messages.texts[0]


def test_the_former_index_answers_while_the_new_one_is_opened(
    changing: tuple[Any, Path, Messages], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, folder, _ = changing
    is_opening = Event()
    may_open = Event()
    open_index = Index.open

    def open_slowly(path: Path) -> Index:
        is_opening.set()
        assert may_open.wait(60)
        return open_index(path)

    monkeypatch.setattr(Index, "open", open_slowly)
    embed_colours(colour_corpus(folder / "photos", {"c": "lime"}), folder / "s")
    build_index(folder / "s", output=folder / "index", preset="c1")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(found, client)
        assert is_opening.wait(60)
        assert sorted(found(client)) == ["a", "b"]
        may_open.set()
    assert sorted(first.result()) == ["a", "b", "c"]


def test_a_number_that_json_has_not_is_null(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hit = Hit(2.3, 0.3, 0, "a", "text", columns={"price": float("inf")})
    monkeypatch.setattr(Index, "rank", lambda *_, **__: [[hit]])
    assert client.get("/search?q=dog").json()["hits"][0]["columns"] == {"price": None}


def test_an_unknown_parameter_is_refused_with_those_there_are(client: Any) -> None:
    message = "There is no parameter olny; those there are q, k, only, split, where,"
    for address in ("/search?q=dog&olny=image", "/?q=dog&olny=image"):
        response = client.get(address)
        assert response.status_code == 400
        assert message in response.text
    response = client.post("/search?olny=image", json={"vector": [1.0] * 8})
    assert message in response.json()["error"]


def test_the_page_says_what_is_wrong_with_its_address(client: Any) -> None:
    page = client.get("/?q=dog&only=<b>")
    assert "only must be one of image, text." in page.text
    assert "<b>" not in page.text


@pytest.fixture
def text_client(index: Index, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a server whose model takes texts alone."""
    from c3tools.serve.app import create_app

    encoder = colour_encoder()
    monkeypatch.setattr(encoder, "modalities", ("text",))
    with client_of(create_app(index, encoder)) as client:
        yield client


def test_a_model_of_texts_alone_is_not_asked_with_photos(text_client: Any) -> None:
    page = text_client.get("/").text
    assert 'type="file"' not in page
    response = text_client.post("/search", content=photo(), headers={"Content-Type": "image/png"})
    assert response.status_code == 400
    assert "takes text, but not image" in response.json()["error"]


def test_ten_clients_at_once_get_their_own_answers(client: Any, index: Index) -> None:
    texts = [f"{name} {n}" for name in COLOURS for n in (0, 1)] * 5
    with ThreadPoolExecutor(10) as pool:
        found = list(
            pool.map(lambda text: client.get(f"/search?q={text}&k=1&only=text").json(), texts)
        )
    assert [[result["query"], result["hits"][0]["caption"]] for result in found] == [
        [text, text] for text in texts
    ]


def test_a_request_beside_too_many_others_is_refused(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_searching = Event()
    may_answer = Event()

    def rank(*_: Any, **__: Any) -> list[list[Any]]:
        is_searching.set()
        assert may_answer.wait(60)
        return [[]]

    monkeypatch.setattr("c3tools.serve.app._AT_ONCE", 1)
    monkeypatch.setattr(Index, "rank", rank)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.get, "/search?q=a")
        assert is_searching.wait(60)
        refused = client.get("/search?q=b")
        may_answer.set()
    assert refused.status_code == 503
    assert "busy" in refused.json()["error"]
    assert first.result().status_code == 200


def test_an_upload_that_does_not_end_leaves_room_for_requests(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c3tools.serve.app._AT_ONCE", 1)
    headers = [(b"host", b"localhost"), (b"content-type", b"image/png")]
    request = {"type": "http", "path": "/search", "query_string": b"q=a", "headers": headers}

    async def search_beside_an_upload() -> int:
        is_uploading = asyncio.Event()
        messages: list[Any] = []

        async def receive() -> None:
            is_uploading.set()
            await asyncio.Event().wait()  # no body comes

        async def send(message: Any) -> None:
            messages.append(message)

        upload = asyncio.create_task(client.app({**request, "method": "POST"}, receive, send))
        await is_uploading.wait()
        await client.app({**request, "method": "GET"}, receive, send)
        upload.cancel()
        return int(messages[0]["status"])

    assert asyncio.run(search_beside_an_upload()) == 200


def test_the_page_in_a_real_browser(
    centred: tuple[Any, Index], tmp_path: Path, browser: Any
) -> None:
    import uvicorn

    client, _ = centred

    def until(script: str) -> None:
        for _ in range(100):
            if browser.execute_script(f"return {script}"):
                return
            time.sleep(0.1)
        raise AssertionError(
            f"{script}: {browser.execute_script('return document.body.innerText')}"
        )

    def element(selector: str) -> Any:
        return browser.find_element("css selector", selector)

    (tmp_path / "gold.png").write_bytes(photo("gold"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(client.app, log_level="error"))
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            browser.get(f"http://127.0.0.1:{listening.getsockname()[1]}/")
            until(
                "document.querySelector('#q').getBoundingClientRect().top"
                " > document.querySelector('h1').getBoundingClientRect().bottom + 15"
            )
            browser.execute_script(
                "document.querySelector('#file').onclick = event => "
                "{ event.preventDefault(); document.title = 'a photo is chosen'; }"
            )
            element("#q").send_keys("\ue004")  # Tab, to the button for photos
            browser.switch_to.active_element.send_keys("\ue007")  # Enter
            until("document.title == 'a photo is chosen'")
            browser.refresh()
            element("#q").send_keys("b 0\ue007")  # Enter
            until("document.querySelector('#hits figure.text p')?.innerText == 'b 0'")
            until("[...document.images].some(i => i.naturalWidth > 0)")
            element("#hits summary").send_keys("\ue007")
            until("document.querySelector('#hits details p')?.innerText == 'b 1'")
            until("document.querySelector('#hits details').open")
            element("#only option:nth-child(2)").click()
            until(
                "!document.querySelector('#hits .text') && document.querySelectorAll('#hits "
                "figure').length"
            )
            # A photo beside the text, then alone; the text without it again
            until("!document.querySelector('#photo').checkVisibility()")
            element("#file").send_keys(str(tmp_path / "gold.png"))
            until("document.querySelector('#note').innerText == ''")
            until("document.querySelector('#photo').checkVisibility()")
            both = browser.execute_script("return document.querySelector('#hits').innerText")
            element("#q").clear()
            element("#q").send_keys("\ue007")
            until("document.querySelector('#hits span')?.innerText == 'd'")
            assert element("#hits").text != both
            element("#remove").click()
            until("!document.querySelector('#photo').checkVisibility()")
            until("!document.querySelector('#hits figure')")
            browser.refresh()
            until("document.querySelector('#hits figure')")
            assert "q=b+0" in browser.current_url
            (tmp_path / "notes.txt").write_text("no photo")
            element("#file").send_keys(str(tmp_path / "notes.txt"))
            until("document.querySelector('#note').innerText.includes('notes.txt is not a photo')")
        finally:
            server.should_exit = True
            thread.join()
