"""Where a container of Azure's blob storage is, and what a request to it is signed by."""

import base64
import hmac
import os
import re
from collections.abc import Callable
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    import httpx

VERSION = "2021-08-06"
"""Of the service: the first ones wrote names into a listing that XML cannot hold."""
DOMAINS = ("core.windows.net", "core.usgovcloudapi.net", "core.chinacloudapi.cn", "fabric.microsoft.com")
"""Those that belong to Azure; a host of no other is asked, but for the one that the environment names."""
_VARIABLES = {
    "account_name": "AZURE_STORAGE_ACCOUNT_NAME",
    "account_key": "AZURE_STORAGE_ACCOUNT_KEY",
    "sas_key": "AZURE_STORAGE_SAS_TOKEN",
    "endpoint": "AZURE_STORAGE_ENDPOINT",
}
# obstore takes these from the environment by itself
_SECRETS = ("AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY", "AZURE_STORAGE_SAS_KEY")
VARIABLES = (*_VARIABLES.values(), "AZURE_STORAGE_CONNECTION_STRING", *_SECRETS)
_HOST = re.compile(r"([a-z0-9]{3,24})\.(?:dfs|blob)\.([a-z0-9.-]+)")
_SIGNED_HEADERS = (
    *("Content-Encoding", "Content-Language", "Content-Length", "Content-MD5", "Content-Type", "Date"),
    *("If-Modified-Since", "If-Match", "If-None-Match", "If-Unmodified-Since", "Range"),
)


def options_of(host: str | None) -> dict[str, str]:
    """Of obstore's store, for the account of a URI's host, or for the one that the environment names.

    Variables of their own come before the connection string. What they allow and where they lead is for the account
    that they name: an exact URI may come from anywhere, and a container of somebody else is asked without them. Raises
    OSError if no account of Azure is named.
    """
    options = _environment()
    if host is not None:
        account, domain = _account_at(host)
        options = _options_for(account, domain, options)
    elif "account_name" in options:
        account, domain = options["account_name"], DOMAINS[0]
    else:
        raise OSError("no account is named; set AZURE_STORAGE_ACCOUNT_NAME, or write container@account.dfs.…")
    options["endpoint"] = options.get("endpoint", endpoint_of(account, domain)).rstrip("/")
    return options


def is_account(host: str) -> bool:
    """Whether it is a host of Azure, or of the domain that the environment names."""
    found = _HOST.fullmatch(host)
    return found is not None and found[2] in (*DOMAINS, _domain_of(_environment()))


def allowed_hosts() -> str:
    """For messages: what is."""
    return f"container@account.dfs.… in {', '.join(DOMAINS)} or the domain of AZURE_STORAGE_ENDPOINT"


def endpoint_of(account: str, domain: str) -> str:
    """Where an account's blobs are, if nothing else is said."""
    return f"https://{account}.blob.{domain}"


def _account_at(host: str) -> tuple[str, str]:
    found = _HOST.fullmatch(host)
    if found is None or not is_account(host):
        raise OSError(f"{host[:80]!r} is no account of Azure; allowed: {allowed_hosts()}")
    return found[1], found[2]


def _options_for(account: str, domain: str, options: dict[str, str]) -> dict[str, str]:
    holds_secret = bool({"account_key", "sas_key"} & options.keys() or any(map(os.environ.get, _SECRETS)))
    if holds_secret and "account_name" not in options:
        raise OSError("whose the key or the token in the environment is, is not said; set AZURE_STORAGE_ACCOUNT_NAME")
    if options.get("account_name", account) == account and _domain_of(options) in ("", domain):
        return options | {"account_name": account}
    return {"account_name": account} | ({"skip_signature": "true"} if holds_secret else {})


def _environment() -> dict[str, str]:
    single = {option: os.environ[name] for option, name in _VARIABLES.items() if os.environ.get(name)}
    joined = _connection_string()
    name = single.get("account_name")
    if name and joined.get("account_name", name) != name:
        joined = {}
    options = joined | single
    if "account_name" not in options and (found := _endpoint_host(options)):
        options["account_name"] = found[1]
    return options


def _domain_of(options: dict[str, str]) -> str:
    """The domain of the endpoint, if that looks like one of Azure's; else empty."""
    found = _endpoint_host(options)
    return found[2] if found else ""


def _endpoint_host(options: dict[str, str]) -> re.Match[str] | None:
    return _HOST.fullmatch(options.get("endpoint", "").partition("://")[2].partition("/")[0].partition(":")[0])


def signer(options: dict[str, str]) -> "Callable[[httpx.Request], None] | None":
    """What signs a GET by the account's key or the signed token, or not at all; None where only obstore can.

    Raises OSError for a key that is none.
    """
    if "skip_signature" in options:
        return _say_version
    if "account_key" in options:
        try:
            key = base64.b64decode(options["account_key"], validate=True)
        except ValueError:
            raise OSError("AZURE_STORAGE_ACCOUNT_KEY is no key of Azure, which would be base64") from None
        return partial(_sign_by_key, options["account_name"], key)
    if "sas_key" in options:
        return partial(_add_token, options["sas_key"])
    return None


def _connection_string() -> dict[str, str]:
    parts = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";")
    values = dict(part.split("=", 1) for part in parts if "=" in part)
    names = {"AccountName": "account_name", "AccountKey": "account_key", "SharedAccessSignature": "sas_key"}
    options = {option: values[name] for name, option in names.items() if name in values}
    if "BlobEndpoint" in values:
        options["endpoint"] = values["BlobEndpoint"]
    elif {"AccountName", "EndpointSuffix"} <= values.keys():
        scheme = values.get("DefaultEndpointsProtocol", "https")
        options["endpoint"] = f"{scheme}://{values['AccountName']}.blob.{values['EndpointSuffix']}"
    return options


def _sign_by_key(account: str, key: bytes, request: "httpx.Request") -> None:
    """The method, some of the headers, those of Azure, and the place with its query."""
    request.headers["x-ms-date"] = formatdate(usegmt=True)
    _say_version(request)
    path, _, query = request.url.raw_path.decode().partition("?")
    asked = "".join(f"\n{name}:{value}" for name, value in sorted(parse_qsl(query, keep_blank_values=True)))
    plain = "\n".join([request.method, *(request.headers.get(name, "") for name in _SIGNED_HEADERS)])
    named = f"x-ms-date:{request.headers['x-ms-date']}\nx-ms-version:{VERSION}"
    text = f"{plain}\n{named}\n/{account}{path}{asked}"
    signature = base64.b64encode(hmac.digest(key, text.encode(), "sha256")).decode()
    request.headers["Authorization"] = f"SharedKey {account}:{signature}"


def _add_token(token: str, request: "httpx.Request") -> None:
    _say_version(request)
    request.url = request.url.copy_with(query=request.url.query + b"&" + token.lstrip("?").encode())


def _say_version(request: "httpx.Request") -> None:
    request.headers["x-ms-version"] = VERSION
