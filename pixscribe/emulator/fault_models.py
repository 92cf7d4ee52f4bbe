"""Faults of a look at a model."""

from collections.abc import Callable

from pixscribe.emulator.call import Call
from pixscribe.emulator.fault_table import enter
from pixscribe.emulator.replies import Reply, bad_key, model_missing, rpc_error

MODEL_REPLIES: dict[str, Callable[[Call], Reply]] = {}


@enter(MODEL_REPLIES, "model_404")
def _gone(call: Call) -> Reply:
    """404, as if the model had been withdrawn."""
    return model_missing(call.target, call.version)


@enter(MODEL_REPLIES, "model_region_400")
def _region(call: Call) -> Reply:
    """400 for a caller in a country that is not served."""
    return rpc_error(400, "FAILED_PRECONDITION", "User location is not supported for the API use.")


@enter(MODEL_REPLIES, "model_500")
def _internal(call: Call) -> Reply:
    """500 internal error."""
    return rpc_error(500, "INTERNAL", "An internal error has occurred.")


@enter(MODEL_REPLIES, "model_bad_key")
def _bad_key(call: Call) -> Reply:
    """400 API_KEY_INVALID, as if the key had just been revoked."""
    return bad_key()
