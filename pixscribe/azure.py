"""Where a container of Azure's blob storage is, and what a request to it is signed by."""

import base64
import hmac
import os
from collections.abc import Callable
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    import httpx

VERSION = "2021-08-06"
"""Of the service: the first ones wrote names into a listing that XML cannot hold."""
_VARIABLES = {
    "account_name": "AZURE_STORAGE_ACCOUNT_NAME",
    "account_key": "AZURE_STORAGE_ACCOUNT_KEY",
    "sas_key": "AZURE_STORAGE_SAS_TOKEN",
    "endpoint": "AZURE_STORAGE_ENDPOINT",
}


def options_of(host: str) -> dict[str, str]:
    """Of obstore's store: by the URI's host first, then by the single variables, then by the connection string.

    Raises OSError if no account is named.
    """
    account, _, domain = host.partition(".")
    options = _connection_string()
    options |= {option: os.environ[name] for option, name in _VARIABLES.items() if os.environ.get(name)}
    options |= {"account_name": account} if account else {}
    if "account_name" not in options:
        raise OSError("no account is named; set AZURE_STORAGE_ACCOUNT_NAME, or write container@account.dfs.…")
    domain = domain.partition(".")[2] or "core.windows.net"
    options.setdefault("endpoint", f"https://{options['account_name']}.blob.{domain}")
    options["endpoint"] = options["endpoint"].rstrip("/")
    return options


def signer(options: dict[str, str]) -> "Callable[[httpx.Request], None] | None":
    """What signs a GET by the account's key or the signed token; None where there are neither."""
    if "account_key" in options:
        return partial(_sign_by_key, options["account_name"], options["account_key"])
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


def _sign_by_key(account: str, key: str, request: "httpx.Request") -> None:
    """The method, eleven headers that a GET does not have, those of Azure, and the place with its query."""
    request.headers["x-ms-date"] = formatdate(usegmt=True)
    request.headers["x-ms-version"] = VERSION
    path, _, query = request.url.raw_path.decode().partition("?")
    asked = "".join(f"\n{name}:{value}" for name, value in sorted(parse_qsl(query, keep_blank_values=True)))
    named = f"x-ms-date:{request.headers['x-ms-date']}\nx-ms-version:{VERSION}\n"
    text = f"{request.method}{chr(10) * 12}{named}/{account}{path}{asked}"
    signature = base64.b64encode(hmac.digest(base64.b64decode(key), text.encode(), "sha256")).decode()
    request.headers["Authorization"] = f"SharedKey {account}:{signature}"


def _add_token(token: str, request: "httpx.Request") -> None:
    request.headers["x-ms-version"] = VERSION
    request.url = request.url.copy_with(query=request.url.query + b"&" + token.lstrip("?").encode())
