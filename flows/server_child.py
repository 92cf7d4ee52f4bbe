"""The process that `flows.prefect_server` starts: Prefect's API on an inherited socket, as long as its parent lives.

A script that needs nothing of ours on `sys.path`: `python -P server_child.py LISTENING_FD PARENT_PID LOCK_FILE`. Its
standard input is a pipe from the parent; end of file there means "stop".
"""

import fcntl
import gc
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path

GRACE_S = 5.0


def main(listening_fd: int, parent_pid: int, lock_file: Path) -> None:
    """Serve until the parent closes the pipe or is gone."""
    threading.Thread(target=_end_with_parent, args=(parent_pid,), daemon=True).start()
    gc.disable()  # the start is one long import, 8 % shorter without the collector
    import uvicorn
    from prefect.server.api.server import create_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            # Two servers that create or migrate one database at the same time break each other's start.
            with lock_file.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                await super().startup(sockets)

    config = uvicorn.Config(create_app(final=True), log_level="warning", timeout_graceful_shutdown=3)
    gc.enable()
    Server(config).run(sockets=[socket.socket(fileno=listening_fd)])


def _end_with_parent(parent_pid: int) -> None:
    # The pipe tells at once, but a process that the parent forked may still hold it open: hence the second question.
    while os.getppid() == parent_pid and not select.select([sys.stdin], [], [], 1.0)[0]:
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
