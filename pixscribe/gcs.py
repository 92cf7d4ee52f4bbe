"""A bucket of Google Cloud Storage, by its JSON API.

obstore speaks the XML API, which the usual emulators do not serve and in which it takes no key with an
empty or `..` part. Here a key is one percent-encoded word, so each is read exactly, and its generation is what it is
replaced on condition of.
"""

import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote
from uuid import uuid4

import httpx
import orjson

from pixscribe.objects import PAGE, PART_BYTES, Found, Listed, Objects
from pixscribe.rest import Changed, Rest, one_line, read_to_end, size_of

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

ORIGIN = "https://storage.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


class GoogleBucket(Objects):
    """With application default credentials, or none for the server that STORAGE_EMULATOR_HOST names. Thread-safe."""

    def __init__(self, bucket: str) -> None:
        emulator = os.environ.get("STORAGE_EMULATOR_HOST")
        origin = (emulator if "://" in emulator else f"http://{emulator}") if emulator else ORIGIN
        self._objects = f"{origin.rstrip('/')}/storage/v1/b/{quote(bucket, safe='')}/o"
        self._uploads = f"{origin.rstrip('/')}/upload/storage/v1/b/{quote(bucket, safe='')}/o"
        self._rest = Rest(None if emulator else _Tokens().sign)

    def pages(self, prefix: str) -> Iterator[list[Listed]]:
        for page in self._listed(prefix=prefix, fields="items(name,size,generation),nextPageToken"):
            if items := page.get("items"):
                found = ((item["name"], int(item["size"]), str(item.get("generation", ""))) for item in items)
                yield [each for each in found if not each[0].endswith("/")]

    def names(self, folder: str) -> set[str]:
        prefix, found = f"{folder}/" if folder else "", set[str]()
        for page in self._listed(prefix=prefix, delimiter="/", fields="items(name),prefixes,nextPageToken"):
            keys = [*(item["name"] for item in page.get("items", [])), *page.get("prefixes", [])]
            found |= {key[len(prefix) :].rstrip("/") for key in keys if key != prefix}
        return found

    def get(self, key: str) -> Found:
        # gzip: what was stored compressed comes as it was stored, with its length, as from every other bucket
        headers = {"Accept-Encoding": "gzip"}
        answer = self._rest.send("GET", self._url(key), params={"alt": "media"}, headers=headers, stream=True)
        size_bytes, version = size_of(answer), answer.headers.get("x-goog-generation", "")

        def read() -> bytes:
            return read_to_end(answer, lambda: self.get_range(key, 0, size_bytes, version))

        return Found(size_bytes, version, read, answer.close)

    def get_range(self, key: str, start: int, length: int, version: str | None = None) -> bytes:
        if version and not version.isdecimal():
            raise Changed(f"has no version {version!r}")
        params = {"alt": "media"} | ({"generation": version} if version else {})
        headers = {"Range": f"bytes={start}-{start + length - 1}"}
        try:
            return self._rest.send("GET", self._url(key), params=params, headers=headers).content
        except FileNotFoundError:
            if version:
                raise Changed("changed while it was read") from None
            raise

    def version(self, key: str) -> str:
        return str(_json(self._rest.send("GET", self._url(key), params={"fields": "generation"}))["generation"])

    def put(self, key: str, data: bytes | BinaryIO) -> None:
        self._upload(key, data)

    def put_over(self, key: str, data: bytes, version: str | None) -> bool:
        try:
            self._upload(key, data, ifGenerationMatch=version or "0")
        except Changed:
            return False
        return True

    def delete(self, key: str) -> None:
        try:
            self._rest.send("DELETE", self._url(key))
        except FileNotFoundError:
            return

    def _listed(self, **params: str) -> Iterator[dict[str, Any]]:
        params["maxResults"] = str(PAGE)
        while True:
            page = _json(self._rest.send("GET", self._objects, params=params))
            yield page
            if not page.get("nextPageToken"):
                return
            params["pageToken"] = page["nextPageToken"]

    def _upload(self, key: str, data: bytes | BinaryIO, **params: str) -> None:
        """In one request: the name as JSON, then the content, between lines that no content can hold by chance."""
        mark = uuid4().hex
        head = (
            f"--{mark}\r\nContent-Type: application/json\r\n\r\n{orjson.dumps({'name': key}).decode()}\r\n"
            f"--{mark}\r\nContent-Type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{mark}--\r\n".encode()
        headers = {"Content-Type": f"multipart/related; boundary={mark}"}
        params = {"uploadType": "multipart", **params}
        self._rest.send("POST", self._uploads, params=params, headers=headers, content=_content(head, data, tail))

    def _url(self, key: str) -> str:
        if key in ("", ".", ".."):  # Google has no objects of these names, and a URL would lead elsewhere
            raise FileNotFoundError(f"no request can name an object {key!r}")
        return f"{self._objects}/{quote(key, safe='')}"


class _Tokens:
    """Application default credentials, turned into a header; what is about to end is renewed."""

    def __init__(self) -> None:
        import google.auth
        from google.auth.exceptions import GoogleAuthError

        try:
            self._credentials: Credentials = google.auth.default(scopes=[SCOPE])[0]
        except (GoogleAuthError, OSError) as error:
            raise OSError(one_line(error)) from error
        self._renewing = threading.Lock()

    def sign(self, request: httpx.Request) -> None:
        """Raises OSError when there is no token."""
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.requests import Request

        with self._renewing:
            try:
                if not self._credentials.valid:
                    self._credentials.refresh(Request())  # type: ignore[no-untyped-call]
            except GoogleAuthError as error:
                raise OSError(f"no token is to be had: {one_line(error)}") from error
            request.headers["Authorization"] = f"Bearer {self._credentials.token}"


def _content(head: bytes, data: bytes | BinaryIO, tail: bytes) -> Callable[[], bytes | Iterator[bytes]]:
    """To be made anew for each try."""
    return lambda: head + data + tail if isinstance(data, bytes) else _pieces(head, data, tail)


def _pieces(head: bytes, data: BinaryIO, tail: bytes) -> Iterator[bytes]:
    yield head
    data.seek(0)
    while piece := data.read(PART_BYTES):
        yield piece
    yield tail


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        value = orjson.loads(answer.content)
    except orjson.JSONDecodeError as error:
        raise OSError(f"the answer is no JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise OSError("the answer is no JSON object")
    return value
