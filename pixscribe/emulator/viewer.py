"""Looking at pictures off the event loop, at each content once."""

import asyncio
import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pixscribe.emulator.files import StoredFile
from pixscribe.emulator.replies import INVALID_IMAGE, invalid
from pixscribe.emulator.vision import FIXED_SCENE, NotAnImage, Scene, look

_REMEMBERED = 16_384  # scenes; a few KB each


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of a question: in the store, or inline."""

    sha256: str
    types: frozenset[str]
    data: bytes | None = None
    file: StoredFile | None = None


class Viewer:
    def __init__(self, *, looks: bool) -> None:
        self._looks = looks
        self._pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1), thread_name_prefix="emulator-eye")
        self._scenes: OrderedDict[str, asyncio.Future[Scene]] = OrderedDict()

    async def scene(self, picture: Picture) -> Scene:
        """Raises `Refused` for what cannot be decoded."""
        if not self._looks:
            return FIXED_SCENE
        file = picture.file
        if file is not None and file.scene is not None:
            return file.scene
        try:
            # shielded: a client that leaves must not take the look from the others who wait for it
            scene = await asyncio.shield(self._look(picture))
        except NotAnImage as cause:
            raise invalid(INVALID_IMAGE) from cause
        if file is not None:
            file.scene, file.data = scene, None
        return scene

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _look(self, picture: Picture) -> asyncio.Future[Scene]:
        if (known := self._scenes.get(picture.sha256)) is not None:
            self._scenes.move_to_end(picture.sha256)
            return known
        data = picture.data if picture.file is None else picture.file.data
        looked = asyncio.get_running_loop().run_in_executor(self._pool, look, data or b"")
        looked.add_done_callback(lambda future: future.cancelled() or future.exception())  # it may have no reader left
        self._scenes[picture.sha256] = looked
        if len(self._scenes) > _REMEMBERED:
            self._scenes.popitem(last=False)
        return looked
