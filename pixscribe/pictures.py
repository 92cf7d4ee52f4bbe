"""The images that a run was about, found again: for thumbnails, and for data sets that hold their pictures."""

from collections.abc import Callable
from hashlib import sha256

from pixscribe.errors import ReadError
from pixscribe.reading import read_image
from pixscribe.tables import Row


def read_source(image: Row, *, allow_private_hosts: bool = False, is_over: Callable[[], bool] = lambda: False) -> bytes:
    """The bytes that a row of `images` is about. What is fetched from the web is given up soon after `is_over`.

    Raises `ReadError` when they cannot be had, or are others by now: boxes would be drawn over another picture. What
    the run could not read is not read now either, for it may be a link that leads out of the source: the error is that
    of the row. Raises `DecodeError` (too_large) above 512 MiB.
    """
    if image["image_id"] is None:
        raise ReadError(image.get("error") or "the run could not read it", code=image.get("error_code") or "read_error")
    data = read_image(image["uri"], allow_private_hosts=allow_private_hosts, is_over=is_over)
    if sha256(data).hexdigest() != image["image_id"]:
        raise ReadError("is another image than the one that was labelled", code="changed_during_run")
    return data
