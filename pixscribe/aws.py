"""Where an S3 bucket is, and what a request to it is signed by: what the environment, the profiles and the machine say.

botocore finds credentials as every other program of AWS does, single sign-on and roles included, and keeps them fresh.
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import botocore.session
import httpx
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError

from pixscribe.rest import CONNECT_S, one_line

ASKED_AGAIN_S = 300
"""How often obstore asks for the credentials."""


@dataclass(frozen=True, slots=True)
class Account:
    """A region, an endpoint without a slash at its end, and botocore's credentials (None: ask without)."""

    region: str
    endpoint: str
    credentials: Any

    @classmethod
    def of_environment(cls, bucket: str) -> "Account":
        """As the usual variables say; a region that they leave open is asked of S3. Raises OSError."""
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        try:
            session = botocore.session.Session()
            credentials = session.get_credentials()
            region = os.environ.get("AWS_REGION") or session.get_config_variable("region")
        except BotoCoreError as error:
            raise OSError(one_line(error)) from error
        region = region or ("us-east-1" if endpoint else _region_of(bucket))
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        return cls(region, (endpoint or f"https://s3.{region}.{domain}").rstrip("/"), credentials)

    def sign(self, request: httpx.Request) -> None:
        """Put the signature into the headers. Raises OSError if the credentials have run out."""
        if self.credentials is None:
            return
        asked = AWSRequest(request.method, str(request.url), {"Host": request.headers["Host"]})
        try:
            S3SigV4Auth(self.credentials.get_frozen_credentials(), "s3", self.region).add_auth(asked)
        except BotoCoreError as error:
            raise OSError(one_line(error)) from error
        request.headers.update(dict(asked.headers.items()))

    def for_obstore(self) -> dict[str, Any]:
        """The same, as options of its store."""
        return {"skip_signature": True} if self.credentials is None else {"credential_provider": self._fresh}

    def _fresh(self) -> dict[str, Any]:
        keys = self.credentials.get_frozen_credentials()
        until = datetime.now(UTC) + timedelta(seconds=ASKED_AGAIN_S)
        names = {"access_key_id": keys.access_key, "secret_access_key": keys.secret_key, "token": keys.token}
        return {**names, "expires_at": until}


def _region_of(bucket: str) -> str:
    """S3 says where a bucket is even to those who may not see into it."""
    try:
        answer = httpx.head(f"https://s3.amazonaws.com/{quote(bucket, safe='')}", timeout=CONNECT_S)
    except httpx.HTTPError as error:
        said = f"the region of the bucket {bucket!r} cannot be found out: {one_line(error)}; set AWS_REGION"
        raise OSError(said) from error
    if answer.status_code == 404:
        raise FileNotFoundError(f"there is no bucket {bucket!r}")
    return answer.headers.get("x-amz-bucket-region") or "us-east-1"
