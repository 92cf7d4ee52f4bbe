"""Faults of uploads, by what is left of the file."""

import base64
import hashlib
from collections.abc import Callable
from typing import Any, Literal

from pixscribe.emulator.fault_table import enter
from pixscribe.emulator.files import StoredFile
from pixscribe.emulator.replies import STORAGE_BYTES, Reply, json_reply, rpc_error, session_missing, storage_full

Delivery = Literal["whole", "reset"]

UPLOAD_REPLIES: dict[str, Callable[[str], Reply]] = {}
"""Nothing is stored; called with the id that the file would have had."""
UPLOAD_BREAKS: dict[str, Callable[[], Reply]] = {}
"""Met by the first bytes of the upload, whether they finalize it or not."""
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
    return storage_full(STORAGE_BYTES)


@enter(UPLOAD_BREAKS, "upload_half")
def _half() -> Reply:
    """The connection is reset when half of the bytes are kept; the upload can go on where `query` says."""
    return Reply(0, delivery="reset")


@enter(UPLOAD_BREAKS, "upload_session_gone")
def _session_gone() -> Reply:
    """404 for the bytes, and the upload is forgotten; it can be started again."""
    return session_missing()


@enter(UPLOAD_BREAKS, "upload_expired_session_410")
def _session_expired() -> Reply:
    """410 for the bytes, and the upload is forgotten; it can be started again."""
    return json_reply({"error": {"message": "The upload session has expired.", "code": 410}}, 410)


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


@enter(UPLOAD_SPOILERS, "upload_stuck")
def _stuck(file: StoredFile, answer: dict[str, Any]) -> Delivery:
    """The file is PROCESSING for ever."""
    file.state = answer["state"] = "PROCESSING"
    return "whole"


@enter(UPLOAD_SPOILERS, "upload_failed_state")
def _failed_state(file: StoredFile, answer: dict[str, Any]) -> Delivery:
    """The file is FAILED."""
    file.state = "FAILED"
    answer.update(file.to_json())
    return "whole"
