"""One bucket of one cloud: the requests that everything above is made of, and how each cloud is reached.

S3 and Azure are spoken to by obstore, Google by its JSON API (`gcs.py`). What any of them refuses comes out as OSError
with one line of text, in which no signature and no token stands.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, Self
from urllib.parse import quote, unquote, unquote_plus, urlencode
from xml.etree import ElementTree

from pixscribe import azure
from pixscribe.rest import CONNECT_S, RETRIES, RETRY_S, TIMEOUT_S, Changed, Rest, read_to_end, size_of

if TYPE_CHECKING:
    import httpx
    from obstore import GetOptions
    from obstore.store import AzureStore, ClientConfig, RetryConfig, S3Store

AZURE_SCHEMES = ("abfs", "abfss", "az")
BUCKET_SCHEMES = ("s3", "gs", *AZURE_SCHEMES)
PAGE = 1000
"""Keys in one answer to a listing; no cloud gives more at once than some thousands."""
PART_BYTES = 16 * 1024 * 1024
"""What is larger is sent in parts of this size, where the cloud wants parts."""


Listed = tuple[str, int, str]
"""Key, size in bytes, and version (ETag or generation) of an object, as a listing tells them."""


@dataclass(frozen=True, slots=True)
class Found:
    """An object as it was when it was asked for. `read` gets the rest of it, in the same request; `drop` does not."""

    size_bytes: int
    version: str
    read: Callable[[], bytes]
    drop: Callable[[], None] = lambda: None


class Objects(ABC):
    """The objects of one bucket, by their keys. Raises FileNotFoundError for what is not there, else OSError."""

    keeps_conditions = False
    """Whether it has been seen that the service refuses a `put_over` whose condition is not met."""

    @abstractmethod
    def pages(self, prefix: str) -> Iterator[list[Listed]]:
        """What lies under keys that begin with `prefix`, in the order of the service; no folder markers.

        No page at all means that there is nothing, not even a marker.
        """

    @abstractmethod
    def names(self, folder: str) -> set[str]:
        """What is directly below `folder`; empty if there is nothing."""

    @abstractmethod
    def get(self, key: str) -> Found:
        """Ask for the whole object."""

    @abstractmethod
    def get_range(self, key: str, start: int, length: int, version: str | None = None) -> bytes:
        """`length` bytes from `start`, at least one of which is there. Raises `Changed` if the version is another."""

    @abstractmethod
    def version(self, key: str) -> str:
        """What is another after each change of the object; empty if the service keeps no versions."""

    def exists(self, key: str) -> bool:
        """Whether there is an object under exactly this key."""
        try:
            self.version(key)
        except FileNotFoundError:
            return False
        return True

    @abstractmethod
    def put(self, key: str, data: bytes | BinaryIO) -> None:
        """Write the whole object or nothing."""

    @abstractmethod
    def put_over(self, key: str, data: bytes, version: str | None) -> bool:
        """Write if the object has this version (None: does not exist), else return False."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object, if it is there."""


@dataclass(frozen=True, slots=True)
class Address:
    """An object or a prefix of a bucket. `authority` is what stands after `scheme://`, `key` is not encoded."""

    scheme: str
    authority: str
    key: str

    @classmethod
    def of_place(cls, uri: str) -> "Address":
        """From a URI of the configuration, in which nothing is encoded."""
        scheme, _, rest = uri.partition("://")
        authority, _, key = rest.partition("/")
        return cls(scheme, authority, key.strip("/"))

    @classmethod
    def of_object(cls, uri: str) -> "Address":
        """From an exact URI of a manifest, in which the key is percent-encoded. Raises OSError if that names none."""
        scheme, _, rest = uri.partition("://")
        authority, _, key = rest.partition("/")
        try:
            address = cls(scheme, unquote(authority, errors="strict"), unquote(key, errors="strict"))
        except UnicodeDecodeError:
            raise OSError("the key is not UTF-8, as those of every bucket are") from None
        if not address.key:
            raise OSError("the URI names no object")
        return address

    def uri_of(self, key: str) -> str:
        """The exact URI of a key of this bucket."""
        return f"{self.scheme}://{quote(self.authority, safe='@')}/{quote(key, safe='/')}"


_VARIABLES = {
    "s3": (
        *("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID"),
        *(
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_PROFILE",
            "AWS_SHARED_CREDENTIALS_FILE",
            "AWS_CONFIG_FILE",
        ),
    ),
    "gs": ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"),
    "abfs": azure.VARIABLES,
}
_BUCKET = re.compile(r"(?!\.\.?\Z)[A-Za-z0-9_.$:@~+-]{1,255}")
"""With Azure's account; nothing that would end this part of a URL."""
_PART = r"(?!\.\.?(?:/|\Z))[^/\x00-\x1f\x7f]+"
_PLAIN_KEY = re.compile(f"{_PART}(?:/{_PART})*")
MAX_PLAIN_KEY = 4096
_VERSION = re.compile(r"[\x21-\x7e]{1,1024}")


def objects_at(address: Address) -> Objects:
    """The bucket of an address, reached as the environment now says. Raises OSError, also for what names none."""
    if not address.authority.partition("@")[0]:
        raise OSError("the URI names no bucket")
    if not _BUCKET.fullmatch(address.authority):
        raise OSError(f"{address.authority[:80]!r} is no name of a bucket")
    scheme = "abfs" if address.scheme in AZURE_SCHEMES else address.scheme
    return _objects(scheme, address.authority, tuple(os.environ.get(name, "") for name in _VARIABLES[scheme]))


@lru_cache(maxsize=32)
def _objects(scheme: str, authority: str, _environment: tuple[str, ...]) -> Objects:
    if scheme == "gs":
        from pixscribe.gcs import GoogleBucket

        return GoogleBucket(authority)
    with _as_os_errors():
        return S3Bucket(authority) if scheme == "s3" else AzureContainer(authority)


@dataclass(frozen=True, slots=True)
class Listing:
    """One page: objects, prefixes that end with a slash, and how to ask for the next page."""

    objects: list[Listed]
    folders: list[str]
    next: str

    @classmethod
    def of_s3(cls, root: ElementTree.Element) -> Self:
        """From the answer of S3, which writes keys as in a URL, since XML cannot hold all of them."""
        plain = _plain_key if root.findtext("EncodingType") == "url" else str
        after = root.findtext("NextContinuationToken", "")
        if not after and root.findtext("IsTruncated") == "true":
            raise OSError("the service lists only a part, and does not say how to ask for the rest (ListObjectsV2)")
        return cls(
            [
                (plain(each.findtext("Key", "")), int(each.findtext("Size", "0")), each.findtext("ETag", ""))
                for each in root.iterfind("Contents")
            ],
            [plain(each.findtext("Prefix", "")) for each in root.iterfind("CommonPrefixes")],
            after,
        )

    @classmethod
    def of_azure(cls, root: ElementTree.Element) -> Self:
        """From the answer of Azure, without what it takes for folders."""
        return cls(
            [
                (
                    _azure_name(blob),
                    int(blob.findtext("Properties/Content-Length", "0")),
                    blob.findtext("Properties/Etag", ""),
                )
                for blob in root.iterfind("Blobs/Blob")
                if blob.findtext("Properties/ResourceType") != "directory"
            ],
            [_azure_name(each) for each in root.iterfind("Blobs/BlobPrefix")],
            root.findtext("NextMarker", ""),
        )


def _plain_key(text: str) -> str:
    folder, slash, name = text.rpartition("/")
    return _plain_folder(folder) + slash + unquote_plus(name)


_plain_folder = lru_cache(maxsize=64)(unquote_plus)


def _azure_name(element: ElementTree.Element) -> str:
    name = element.find("Name")
    text = "" if name is None else name.text or ""
    return unquote(text) if name is not None and name.get("Encoded") == "true" else text


class _Obstore(Objects):
    """What S3 and Azure have in common. obstore gives a listing up at keys like `a//b`, so that is asked for here."""

    store: "S3Store | AzureStore"
    _rest: Rest | None
    _url: str

    @abstractmethod
    def _listed(self, **query: str) -> Iterator[Listing]:
        """The pages of one listing, asked for with `prefix`, and with `delimiter` for one folder only."""

    def pages(self, prefix: str) -> Iterator[list[Listed]]:
        for page in self._listed(prefix=prefix):
            if page.objects:
                yield [each for each in page.objects if not each[0].endswith("/")]

    def names(self, folder: str) -> set[str]:
        prefix, found = f"{folder}/" if folder else "", set[str]()
        for page in self._listed(prefix=prefix, delimiter="/"):
            keys = [*(key for key, _, _ in page.objects), *page.folders]
            found |= {key[len(prefix) :].rstrip("/") for key in keys if key.startswith(prefix) and key != prefix}
        return found

    def _pages_of(
        self, query: dict[str, str], mark: str, read: Callable[[ElementTree.Element], Listing]
    ) -> Iterator[Listing]:
        """One request for each page; `mark` is the parameter that the next one is asked for by."""
        assert self._rest is not None
        while True:
            words = urlencode(sorted(query.items()), quote_via=quote, safe="")
            try:
                page = read(_xml(self._rest.send("GET", f"{self._url}?{words}").content))
            except ValueError as error:
                raise OSError(f"the answer to a listing is not understood: {error}") from error
            yield page
            if not page.next:
                return
            if page.next == query.get(mark):
                raise OSError("the service gives the same page of a listing again and again")
            query[mark] = page.next

    def get(self, key: str) -> Found:
        if not _is_plain(key):
            return self._get_exactly(key)
        with _as_os_errors():
            result = self.store.get(key)
            meta = result.meta

        def read() -> bytes:
            with _as_os_errors():
                return bytes(result.bytes())

        return Found(meta["size"], meta["e_tag"] or "", read)

    def get_range(self, key: str, start: int, length: int, version: str | None = None) -> bytes:
        from obstore.exceptions import PreconditionError

        if version and not _VERSION.fullmatch(version):
            raise Changed(f"has no version {version[:80]!r}")
        if not _is_plain(key):
            headers = {"Range": f"bytes={start}-{start + length - 1}"} | ({"If-Match": version} if version else {})
            return self._send("GET", key, headers=headers).content
        options: GetOptions = {"range": (start, start + length)}
        if version:
            options["if_match"] = version
        with _as_os_errors():
            try:
                return bytes(self.store.get(key, options=options).bytes())
            except PreconditionError:
                raise Changed("changed while it was read") from None

    def version(self, key: str) -> str:
        if not _is_plain(key):
            return str(self._send("HEAD", key).headers.get("etag", ""))
        with _as_os_errors():
            return self.store.head(key)["e_tag"] or ""

    def put(self, key: str, data: bytes | BinaryIO) -> None:
        _require_plain(key)
        with _as_os_errors():
            if isinstance(data, bytes):
                self.store.put(key, data, use_multipart=False)
            else:
                self.store.put(key, data, chunk_size=PART_BYTES)

    def put_over(self, key: str, data: bytes, version: str | None) -> bool:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        _require_plain(key)
        with _as_os_errors():
            try:
                self.store.put(key, data, mode={"e_tag": version} if version else "create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

    def delete(self, key: str) -> None:
        _require_plain(key)
        with _as_os_errors(), suppress(FileNotFoundError):
            self.store.delete(key)

    def _get_exactly(self, key: str) -> Found:
        answer = self._send("GET", key, stream=True)
        size_bytes, version = size_of(answer), answer.headers.get("etag", "")

        def read() -> bytes:
            return read_to_end(answer, lambda: self.get_range(key, 0, size_bytes, version))

        return Found(size_bytes, version, read, answer.close)

    def _send(self, method: str, key: str, **options: Any) -> "httpx.Response":
        """A request for an object that obstore would not ask for by this name."""
        if not key or {".", ".."} & set(key.split("/")):  # every program on the way takes these for steps
            raise FileNotFoundError(f"no request can name an object {key!r}")
        if self._rest is None:
            raise OSError(f"an object {key!r} cannot be asked for by an identity, only by an account's key or token")
        return self._rest.send(method, f"{self._url}/{quote(key, safe='/')}", **options)


def _is_plain(key: str) -> bool:
    """Whether obstore asks for exactly this. It drops a slash at either end, and panics at a URL of 64 KiB."""
    return len(key) <= MAX_PLAIN_KEY and _PLAIN_KEY.fullmatch(key) is not None


def _require_plain(key: str) -> None:
    if not _is_plain(key):
        raise OSError(f"{key[:80]!r} is no key to write under")


class S3Bucket(_Obstore):
    """A bucket of S3 or of one of the many servers that speak like it."""

    def __init__(self, bucket: str) -> None:
        from obstore.store import S3Store

        from pixscribe.aws import Account

        account = Account.of_environment(bucket)
        self._rest = Rest(account.sign)
        self._url = f"{account.endpoint}/{quote(bucket, safe='')}"
        self.store = S3Store(
            bucket,
            region=account.region,
            endpoint=account.endpoint,
            client_options=_client(account.endpoint),
            retry_config=_retry(),
            **account.for_obstore(),
        )

    def _listed(self, **query: str) -> Iterator[Listing]:
        query |= {"list-type": "2", "max-keys": str(PAGE), "encoding-type": "url"}
        return self._pages_of(query, "continuation-token", Listing.of_s3)


class AzureContainer(_Obstore):
    """A container of Azure's blob storage: `container@account.dfs.core.windows.net`, or without the account."""

    def __init__(self, authority: str) -> None:
        from obstore.store import AzureStore

        container, separator, host = authority.partition("@")
        self.options = azure.options_of(host if separator else None)
        endpoint = self.options["endpoint"]
        sign = azure.signer(self.options)
        self._rest = Rest(sign) if sign else None
        self._url = f"{endpoint}/{quote(container, safe='')}"
        self.store = AzureStore(
            container,
            client_options=_client(endpoint),
            retry_config=_retry(),
            **self.options,  # type: ignore[arg-type]
        )

    def _listed(self, **query: str) -> Iterator[Listing]:
        if self._rest is None:
            return self._listed_by_obstore(query["prefix"].rstrip("/"), "delimiter" in query)
        query |= {"restype": "container", "comp": "list", "maxresults": str(PAGE)}
        return self._pages_of(query, "marker", Listing.of_azure)

    def _listed_by_obstore(self, prefix: str, is_flat: bool) -> Iterator[Listing]:
        """For those whose tokens only obstore gets. It fails at keys like `a//b`."""
        with _as_os_errors():
            if is_flat:
                found = self.store.list_with_delimiter(prefix or None)
                objects = [(meta["path"], meta["size"], meta["e_tag"] or "") for meta in found["objects"]]
                yield Listing(objects, [f"{folder}/" for folder in found["common_prefixes"]], "")
                return
            last = ""
            for metas in self.store.list(prefix or None, chunk_size=PAGE):
                marked = list(self._marked([(meta["path"], meta["size"], meta["e_tag"] or "") for meta in metas], last))
                yield Listing(marked, [], "")
                last = marked[-1][0]

    def _marked(self, entries: list[Listed], last: str) -> Iterator[Listed]:
        """With the slash at the end of folder markers, which obstore cuts off: empty, out of order or not there."""
        for key, size, version in entries:
            is_marker = size == 0 and (key <= last or not self.exists(key))
            yield f"{key}/" if is_marker else key, size, version
            last = last if is_marker else key


def _xml(content: bytes) -> ElementTree.Element:
    try:
        # without the namespace, which would stand before the name of each of some thousands of elements
        return ElementTree.fromstring(re.sub(rb" xmlns=\"[^\"]*\"", b"", content, count=1))
    except ElementTree.ParseError as error:
        raise OSError(f"the answer to a listing is no XML: {error}") from error


def _client(endpoint: str | None) -> "ClientConfig":
    is_plain = bool(endpoint and endpoint.startswith("http://"))
    return {"allow_http": is_plain, "timeout": f"{TIMEOUT_S}s", "connect_timeout": f"{CONNECT_S}s"}


def _retry() -> "RetryConfig":
    return {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_S)}


@contextmanager
def _as_os_errors() -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    # `from None`: the cause repeats the request, with what it was signed by
    except FileNotFoundError as error:
        raise FileNotFoundError(in_one_line(str(error))) from None
    except (BaseError, ValueError) as error:
        raise OSError(in_one_line(str(error))) from None


def in_one_line(text: str) -> str:
    """What a service refused, without the query of a URL, which may be signed, and with the service's own words."""
    code, message = (re.search(rf"<{tag}>([^<]*)</{tag}>", text) for tag in ("Code", "Message"))
    lines = re.sub(r"(https?://[^\s?]*)\?\S*", r"\1", text).splitlines() or ["no reason is given"]
    said = re.sub(r":?\s*<\?xml.*", "", lines[0]).strip()
    said = re.sub(r" in [\d.]+\S*s(, after \d+ retries, max_retries: \d+, retry_timeout: \S+)?\s+-", ":", said)
    words = [found.group(1).splitlines()[0].strip() for found in (code, message) if found and found.group(1).strip()]
    return f"{said} ({': '.join(words)})" if words else said
