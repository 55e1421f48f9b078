"""A process in which inputs are tried one after the other, and what it must not do.

The process is watched from inside by Python's audit events (files that are written, processes that are started,
connections that are made), and from outside by a clock; what it takes of memory is measured for each input.
"""

import os
import random
import resource
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

LONGEST = 400  # letters of a message, paths not counted
ADDRESS_SPACE = 24 << 30  # bytes: torch alone maps a few GiB; what is in memory is measured apart
STARTS = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.")
# Audit events that change what is on the disk, and which of their arguments is the path that is changed.
CHANGES = {
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "shutil.rmtree"), 0),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink", "shutil.copyfile", "shutil.move"), 1),
}
BELOW = (
    "os.remove",
    "os.rmdir",
)  # their last argument may be an open folder, as of rmtree, which is seen itself
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

T = TypeVar("T")


class Fault(Exception):
    """What the package must not do."""


@dataclass(frozen=True)
class Refused:
    """The package said no."""

    message: str


@runtime_checkable
class Attack(Protocol):
    """A kind of hostile input; it makes its valid files in a folder, and tries them, when it is made.

    Attributes:
        megabytes: that the process may have in memory.
        seconds: that an input may take.
    """

    megabytes: int
    seconds: float

    def attempt(self, generator: random.Random, number: int) -> bool:
        """Make an input and try it; whether it was taken. Raises Fault, or whatever the package lets through."""
        ...


def refusal(work: Callable[[], T], *paths: Path) -> T | Refused:
    """What the package gives, or how it refuses; a refusal has to be an error of its own, with a short clear message.

    Args:
        work: the package's door.
        paths: whose length counts for nothing.
    """
    try:
        return work()
    except (ValueError, OSError) as error:
        check_message(str(error), *paths)
        return Refused(str(error))


def check_message(message: str, *paths: Path) -> None:
    """Raise Fault for a message that is empty, long, or not for people."""
    for path in paths:
        message = message.replace(str(path), path.name)
    if not message.strip():
        raise Fault("a refusal without a word")
    if len(message) > LONGEST:
        raise Fault(f"a message of {len(message)} letters: {message[:300]!r}")
    if message.count("\n") > 1 or "Traceback" in message:
        raise Fault(f"a message of many lines: {message[:300]!r}")
    if odd := [letter for letter in message if letter not in "\n\t" and not letter.isprintable()]:
        raise Fault(f"a message with the letter {odd[0]!r}: {message[:200]!r}")


class Watch:
    """Notes what the process does that it must not do, while it is armed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.armed, self.seen = os.path.realpath(folder), False, []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event.startswith(STARTS):
            self.seen.append(f"a process was started ({event} {str(arguments[:2])[:100]})")
        elif event in ("socket.connect", "socket.getaddrinfo"):
            self.seen.append(f"a connection was made ({str(arguments)[:100]})")
        elif event == "open" and _writes(*arguments[1:3]):
            self._check(arguments[0])
        elif event in CHANGES and (event not in BELOW or arguments[-1] == -1):
            self._check(arguments[CHANGES[event]])

    def _check(self, path: Any) -> None:
        if isinstance(path, int) or str(path) == os.devnull:
            return
        real = os.path.join(os.path.realpath(os.path.dirname(os.fsdecode(path))), os.path.basename(os.fsdecode(path)))
        if not f"{real}{os.sep}".startswith(self.folder + os.sep):  # itself, for a file without a name
            self.seen.append(f"a file was changed outside the folder ({real[:200]})")


def _writes(mode: Any, flags: Any) -> bool:
    return bool(set(mode or "") & set("wax+")) or (isinstance(flags, int) and bool(flags & WRITING))


def serve(link: Connection, make: Callable[[Path], Attack], kind: str, seed: int, folder: Path) -> None:
    """Try the inputs whose numbers come, and send for each whether it was taken, or what was wrong."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.dont_write_bytecode = True
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # as long as the process
    os.dup2(sys.stderr.fileno(), 2)  # libtiff says there what it finds
    os.environ |= {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "SEGCLIP_CACHE": str(folder / "cache")}
    tempfile.tempdir = str(folder)
    socket.setdefaulttimeout(5)
    attack, watch = make(folder), Watch(folder)
    link.send(attack.seconds)
    while (number := link.recv()) is not None:
        generator = random.Random(f"{seed} {kind} {number}")
        _forget_peak()
        watch.seen.clear()
        watch.armed = True
        taken, fault = False, ""
        try:
            taken = attack.attempt(generator, number)
        except Fault as found:
            fault = str(found)
        except BaseException as error:  # MemoryError too: what is refused says so
            where = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__} passed ({where.filename}:{where.lineno}): {str(error)[:300]}"
        watch.armed = False
        if watch.seen:
            fault = "; ".join([*filter(None, [fault]), *watch.seen[:3]])
        if (peak := _peak()) > attack.megabytes:
            fault = fault or f"{peak} MB in memory"
        link.send((taken and not fault, fault))


def _forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Megabytes that the process had in memory since `_forget_peak`; where Linux does not tell, since its start."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
