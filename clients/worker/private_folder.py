"""A folder that its owner alone can enter, and the socket in it."""

import os
import stat
from pathlib import Path

SOCKET = "worker.sock"
LONGEST_SOCKET = 103  # bytes of a Unix socket's path: 107 on Linux, 103 on macOS


def make_private(folder: Path) -> Path:
    """Make a folder with mode 0700, or check the one that is there; return its absolute path.

    Raises:
        PermissionError: as `require_private`.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        folder.chmod(0o700)  # whatever the umask took away
    require_private(folder)
    return folder


def require_private(folder: Path) -> None:
    """Require a folder of ours that nobody else can enter.

    Raises:
        NotADirectoryError: it is no folder; a link to one is none.
        PermissionError: another owner, or another mode than 0700.
    """
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode):
        raise NotADirectoryError(f"{folder} is no folder; name another one, or remove it")
    if about.st_uid != os.geteuid():
        raise PermissionError(
            f"{folder} belongs to user {about.st_uid}, and we are {os.geteuid()}; use a folder of your own"
        )
    mode = stat.S_IMODE(about.st_mode)
    if mode != 0o700:
        raise PermissionError(
            f"{folder} has mode {mode:04o}, expected 0700, so that nobody else reaches the worker's socket; "
            f"chmod 700 {folder}"
        )


def socket_in(folder: Path) -> Path:
    """Return the path of the worker's socket in a private folder.

    Raises:
        PermissionError: as `require_private`.
        ValueError: the path is too long for a socket.
    """
    require_private(folder)
    path = folder.absolute() / SOCKET
    size = len(os.fsencode(path))
    if size > LONGEST_SOCKET:
        raise ValueError(
            f"{path} has {size} bytes, and a socket's path may have {LONGEST_SOCKET}; choose a shorter --state"
        )
    return path
