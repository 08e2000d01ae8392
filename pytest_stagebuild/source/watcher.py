"""Runs beside a stage's command and sees what it uses of the source: with inotify, as root, in the same container.

It stands alone: standard library only, Python 3.6 or newer. Two lines are printed: ``ready`` once the watches stand,
and a JSON object at the end, ``{"files": [...], "folders": [...]}`` with the paths that were used, or
``{"problem": "..."}`` where that cannot be vouched for. Paths are UTF-8 with surrogate escapes.

Usage: watcher.py ROOT LIST PROBES [PROBES...]. LIST is a file with the paths of the files below ROOT, each ended by a
NUL, and the end comes when it is removed; each PROBES is a folder with the files of :data:`WAYS`.

https://man7.org/linux/man-pages/man7/inotify.7.html
"""

import ctypes
import importlib
import mmap
import os
import select
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing costs 5 ms
    from collections.abc import Callable, Iterable

OPENED, ATTRIBUTES, MOVED_FROM, MOVED_TO, CREATED, DELETED = 0x20, 0x4, 0x40, 0x80, 0x100, 0x200
OVERFLOW = 0x4000
ONLY_FOLDERS, NO_LINKS = 0x1000000, 0x2000000
WATCHED = OPENED | ATTRIBUTES | MOVED_FROM | MOVED_TO | CREATED | DELETED | ONLY_FOLDERS | NO_LINKS
EVENT = struct.Struct("iIII")

REST = 0.005
"""Seconds in which events gather after the first: who is woken for each of them takes the processor from the command.
The kernel keeps 16,384 (fs.inotify.max_queued_events)."""

POLL = 20
"""Milliseconds between two looks whether the end has come, should the kernel not tell of it."""

LAST_EVENT = 10.0
"""Seconds within which an event must arrive that has certainly happened."""

WAYS = ("opened", "unaccessed", "mapped", "sent", "copied", "executed", "moved", "attributes", "linked", "unused")
"""The probe files, each named after the one way in which it is used."""


class Unseen(Exception):
    """What the command used cannot be vouched for."""


class Queue:
    """The events of all watched folders, in the order in which they happened."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._call(self.libc.inotify_init1, os.O_NONBLOCK | os.O_CLOEXEC)
        self.trees: dict[int, Tree] = {}
        self.stirred = False
        """Whether something has happened in a folder that is in none of them."""

    def watch(self, path: bytes) -> int:
        return self._call(self.libc.inotify_add_watch, self.fd, path, WATCHED)

    def read(self) -> None:
        """Hand on what has happened so far."""
        while True:
            try:
                data = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                number, mask, _, size = EVENT.unpack_from(data, at)
                at += EVENT.size + size
                if mask & OVERFLOW:
                    raise Unseen("more happened at once than the kernel keeps (fs.inotify.max_queued_events)")
                if number not in self.trees:
                    self.stirred = True
                else:
                    self.trees[number].take(number, data[at - size : at].rstrip(b"\0"))

    def read_until(self, seen: "Callable[[], bool]") -> bool:
        """Hand on what happens until ``seen()``; False where that does not come."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        end = time.monotonic() + LAST_EVENT
        self.read()
        while not seen():
            if time.monotonic() > end:
                return False
            poll.poll(POLL)
            self.read()
        return True

    def _call(self, function: "Callable[..., int]", *arguments: object) -> int:
        result = function(*arguments)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result


class Tree:
    """The files below a folder, and which of them have been used."""

    def __init__(self, queue: Queue, root: bytes, paths: "list[bytes]") -> None:
        self.root = root
        self.paths = paths
        self.used: set[bytes] = set()
        self.folders: set[bytes] = set()
        self.files_in: dict[bytes, dict[bytes, bytes]] = {b"": {}}
        for path in paths:
            folder, _, name = path.rpartition(b"/")
            self.files_in.setdefault(folder, {})[name] = path
            while folder and folder.rpartition(b"/")[0] not in self.files_in:
                folder = folder.rpartition(b"/")[0]
                self.files_in[folder] = {}
        self.watched: dict[int, bytes] = {}
        for folder in sorted(self.files_in):
            try:
                number = queue.watch(self.full(folder))
            except (FileNotFoundError, NotADirectoryError):
                continue  # an earlier stage removed it, or made a link of it, and so depends on what was in it
            self.watched[number] = folder
            queue.trees[number] = self

    def full(self, path: bytes) -> bytes:
        return os.path.join(self.root, path) if path else self.root

    def take(self, number: int, name: bytes) -> None:
        folder = self.watched[number]
        self.folders.add(folder)
        path = self.files_in[folder].get(name)
        if path is not None:
            self.used.add(path)

    def judge(self, start: int) -> "tuple[set[bytes], set[bytes]]":
        """The files that were used since ``start``, and the folders in which something happened.

        That a link was made to a file shows only in the time of its last change.
        """
        for path in self.paths:
            if path in self.used:
                continue
            try:
                changed = os.lstat(self.full(path)).st_ctime_ns >= start
            except OSError:
                changed = True
            if changed:
                self.used.add(path)
        return self.used, self.folders

    def device(self) -> int:
        """The one file system that all of it is on."""
        devices = {os.lstat(self.full(folder)).st_dev for folder in self.watched.values()}
        if len(devices) != 1:
            raise Unseen("a file system is mounted in the source")
        return devices.pop()


def next_tick(folder: bytes) -> int:
    """Let the clock of the file system go on: what has this time or a later one was changed from now on."""
    path = os.path.join(folder, b"clock")
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    before = os.stat(path).st_ctime_ns
    end = time.monotonic() + LAST_EVENT
    now = before
    while now <= before:
        if time.monotonic() > end:
            raise Unseen("the clock of the file system stands still")
        os.utime(path)
        now = os.stat(path).st_ctime_ns
        if now <= before:
            time.sleep(0.001)
    os.unlink(path)
    return now


def use(folder: bytes) -> None:
    """Use each probe in its way."""

    def path(way: str) -> bytes:
        return os.path.join(folder, way.encode())

    def opened(way: str, flags: int = 0) -> int:
        return os.open(path(way), os.O_RDONLY | flags)

    out = os.open(os.path.join(folder, b"copy"), os.O_CREAT | os.O_WRONLY)
    descriptors = [out, opened("opened"), opened("mapped"), opened("sent"), opened("copied")]
    os.read(descriptors[1], 1)
    mmap.mmap(descriptors[2], 1, prot=mmap.PROT_READ).close()
    try:
        os.sendfile(out, descriptors[3], None, 1)
        if hasattr(os, "copy_file_range"):
            os.copy_file_range(descriptors[4], out, 1)
    except OSError:
        pass  # it has been opened for it, which is what counts
    try:
        descriptors.append(opened("unaccessed", os.O_NOATIME))
    except PermissionError:
        descriptors.append(opened("unaccessed"))  # as somebody else who may not
    for descriptor in descriptors:
        os.close(descriptor)
    child = os.fork()
    if not child:
        try:
            os.execv(path("executed"), [b"executed"])
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    os.rename(path("moved"), os.path.join(folder, b"away"))
    os.rename(os.path.join(folder, b"away"), path("moved"))
    os.chmod(path("attributes"), 0o644)
    os.link(path("linked"), os.path.join(folder, b"link"))
    os.unlink(os.path.join(folder, b"link"))
    os.unlink(os.path.join(folder, b"copy"))


def prove(queue: Queue, folder: bytes, start: int) -> Tree:
    """Raise :class:`Unseen` unless every probe is seen that is used from ``start`` on, and none that is not."""
    probes = Tree(queue, folder, [way.encode() for way in WAYS])
    use(folder)
    queue.read()
    used, _ = probes.judge(start)
    for way in WAYS:
        if (way.encode() in used) != (way != "unused"):
            raise Unseen(f"the proof failed: a probe file that was {way} was{' not' * (way != 'unused')} seen")
    return probes


def last_event(queue: Queue, tree: Tree) -> None:
    """Make an event and read up to it: the kernel keeps them in order, so that all before it have been read.

    The root counts in any case, so that it does no harm there.
    """
    queue.read()
    tree.folders.discard(b"")
    os.close(os.open(tree.root, os.O_RDONLY))
    if not queue.read_until(lambda: b"" in tree.folders):
        raise Unseen("the proof failed: an event did not arrive")


def watch(root: bytes, listed: str, paths: "list[bytes]", probes: "list[bytes]") -> "dict[str, list[str]]":
    """Watch until the file ``listed`` is gone, and give the report."""
    queue = Queue()
    offset = clock_offset()
    start = next_tick(probes[0])
    proven = [prove(queue, folder, start) for folder in probes if os.path.isdir(folder)]
    tree = Tree(queue, root, paths)
    if {tree.device()} != {one.device() for one in proven}:
        raise Unseen("the source is on another file system than the rest of the image")
    queue.watch(os.path.dirname(os.fsencode(listed)))
    os.write(1, b"ready\n")
    importlib.import_module("json")  # for the report: it takes 8 ms, and nobody waits any more
    poll = select.poll()
    poll.register(queue.fd, select.POLLIN)
    while os.path.exists(listed):
        happened, queue.stirred = poll.poll(POLL), False
        queue.read()
        if happened and not queue.stirred:
            time.sleep(REST)
    last_event(queue, tree)
    if clock_offset() < offset - 0.001:
        raise Unseen("the clock was set back")
    files, folders = tree.judge(start)
    return {"files": in_text(files), "folders": in_text(folders)}


def clock_offset() -> float:
    """By how much the clock of the machine is ahead of one that cannot be set, in seconds."""
    # Whoever is held up between the two questions gets less.
    return max(time.time() - time.monotonic() for _ in range(9))


def in_text(paths: "Iterable[bytes]") -> "list[str]":
    """Paths as JSON can hold them."""
    return sorted(path.decode("utf-8", "surrogateescape") for path in paths)


def main(root: str, listed: str, *probes: str) -> None:
    """Watch, and print the report or the problem."""
    try:
        with open(listed, "rb") as file:
            paths = file.read().split(b"\0")[:-1]
        report: dict[str, object] = {
            **watch(os.fsencode(root), listed, paths, [os.fsencode(folder) for folder in probes])
        }
    except Unseen as problem:
        report = {"problem": str(problem)}
    except Exception as error:
        report = {"problem": f"{type(error).__name__}: {error}"}
    sys.stdout.write(importlib.import_module("json").dumps(report) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
