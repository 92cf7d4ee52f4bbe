"""Faults of uploads, by what is left of the file."""

import base64
import hashlib
from collections.abc import Callable
from typing import Any, Literal

from pixscribe.emulator.fault_table import enter
from pixscribe.emulator.files import StoredFile
from pixscribe.emulator.replies import Reply, json_reply, retry_info, rpc_error

Delivery = Literal["whole", "reset"]

UPLOAD_REPLIES: dict[str, Callable[[str], Reply]] = {}
"""Nothing is stored; called with the id that the file would have had."""
UPLOAD_SPOILERS: dict[str, Callable[[StoredFile, dict[str, Any]], Delivery]] = {}
"""The file is stored; called with it and with the answer, which says how far the answer gets."""


@enter(UPLOAD_REPLIES, "upload_500")
def _upload_500(file_id: str) -> Reply:
    """500 when the upload is finalized; nothing is stored."""
    return rpc_error(500, "INTERNAL", "An internal error has occurred.")


@enter(UPLOAD_REPLIES, "upload_503")
def _upload_503(file_id: str) -> Reply:
    """503 when the upload is finalized; nothing is stored."""
    return rpc_error(503, "UNAVAILABLE", "The service is currently unavailable.")


@enter(UPLOAD_REPLIES, "upload_409")
def _upload_409(file_id: str) -> Reply:
    """409 when the upload is finalized, though no file has the name."""
    return json_reply({"error": {"message": f"files/{file_id} already exists.", "code": 409}}, 409)


@enter(UPLOAD_REPLIES, "upload_reset")
def _upload_reset(file_id: str) -> Reply:
    """The connection is reset and nothing is stored."""
    return Reply(0, delivery="reset")


@enter(UPLOAD_REPLIES, "upload_storage_full")
def _storage_full(file_id: str) -> Reply:
    """429 at the start of the upload, with a delay of 292 years."""
    message = "You exceeded your current quota: file storage, limit: 21474836480 bytes."
    return rpc_error(429, "RESOURCE_EXHAUSTED", message, [retry_info("9223372036854775807s")])


@enter(UPLOAD_SPOILERS, "upload_lost_finalize")
def _lost_finalize(file: StoredFile, answer: dict[str, Any]) -> Delivery:
    """The file is stored, and the connection reset before the answer."""
    return "reset"


@enter(UPLOAD_SPOILERS, "upload_no_uri")
def _no_uri(file: StoredFile, answer: dict[str, Any]) -> Delivery:
    """The file is stored, and the answer lacks its name and uri."""
    del answer["uri"], answer["name"]
    return "whole"


@enter(UPLOAD_SPOILERS, "upload_wrong_hash")
def _wrong_hash(file: StoredFile, answer: dict[str, Any]) -> Delivery:
    """The answer has the hash of other bytes."""
    answer["sha256Hash"] = base64.b64encode(hashlib.sha256(b"other bytes").hexdigest().encode()).decode()
    return "whole"


@enter(UPLOAD_SPOILERS, "upload_processing")
def _processing(file: StoredFile, answer: dict[str, Any]) -> Delivery:
    """The file is PROCESSING, in the answer and for two GETs more."""
    file.state, file.gets_until_active = "PROCESSING", 2
    answer["state"] = "PROCESSING"
    return "whole"


@enter(UPLOAD_SPOILERS, "upload_failed_state")
def _failed_state(file: StoredFile, answer: dict[str, Any]) -> Delivery:
    """The file is FAILED."""
    file.state = "FAILED"
    answer.update(file.to_json())
    return "whole"
