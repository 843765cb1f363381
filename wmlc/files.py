"""Files that are either whole or absent: written aside, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wmlc.errors import InputError

# The end of every name that is ours for a while, beside what is being written: .X.PID.wmlc, .X.former.wmlc,
# .X.lock.wmlc. Nobody else gives it, so that what has it may be cleared, and nothing else is.
OURS = ".wmlc"


def user_cache() -> Path:
    """Where what was measured on this machine is kept for the next time: `wmlc` in $XDG_CACHE_HOME or ~/.cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "wmlc"


def refuse_existing(path: Path, force: bool, is_ours: Callable[[Path], bool] | None = None) -> None:
    """Raise `InputError` where `path` exists and may not be overwritten.

    Even `force` replaces a directory only if it is empty or `is_ours` knows it by a mark that only we write.
    """
    if path.exists() and not force:
        raise InputError(f"{path} exists already; choose another --out, or pass --force to replace it")
    if path.is_dir() and any(path.iterdir()) and not (is_ours and is_ours(path)):
        raise InputError(f"{path} is a directory that wmlc did not make; choose another --out")


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold `path`, a directory that is there or will be, against every other process that asks for it.

    The lock is the kernel's, on the file .NAME.lock.wmlc beside `path` (in it, where nothing can be written beside it),
    so that a kill releases it. Raises `InputError` where another one holds it; `what` says what the directory is.
    """
    try:
        import fcntl
    except ImportError:  # no POSIX, no lock
        yield
        return
    whole = path.resolve()
    with _parents(path):
        file = _beside(whole, "lock")
        if not os.access(whole.parent, os.W_OK):
            if not whole.is_dir():
                raise InputError(f"cannot write {path}: {whole.parent} is not writable; choose another place")
            file = whole / f".lock{OURS}"
        held = _open_locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if held is None:
            raise InputError(f"{what} {path} is being written by another wmlc; wait until it is done, or stop it")
        try:
            yield
        finally:
            file.unlink(missing_ok=True)  # while it is held
            os.close(held)


@contextlib.contextmanager
def one_at_a_time(file: Path, waits: Callable[[], None]) -> Iterator[None]:
    """Hold the lock that is `file`; where another process has it, call `waits` and wait until it is done, or gone.

    Goes without where no such file can be made.
    """
    held = None
    with contextlib.suppress(ImportError, OSError):  # no POSIX, no lock; no room of one's own
        import fcntl

        file.parent.mkdir(parents=True, exist_ok=True)
        if (held := _open_locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB)) is None:
            waits()
            held = _open_locked(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if held is not None:
            file.unlink(missing_ok=True)  # while it is held
            os.close(held)


def _open_locked(file: Path, how: int) -> int | None:
    """A descriptor of `file` that holds its lock; None where another one does."""
    import fcntl

    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, how)
            if os.fstat(descriptor).st_ino == file.stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass  # its last holder removed it between our two steps
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
                return descriptor
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            raise
        os.close(descriptor)


def check_writable(path: Path) -> None:
    """Raise `InputError` where nothing could be written at `path`, before long work is done for it."""
    with _parents(path):
        _aside(path)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it becomes `path` only if the block succeeds.

    A full disk, which the system tells without a name, is an `InputError` with this one.
    """
    with _parents(path):
        aside = _aside(path)
        try:
            yield aside
            flush(aside)
            aside.replace(path)
            flush(path.parent)
        except OSError as error:
            if error.filename not in (None, str(aside)):
                raise
            raise InputError(f"cannot write {path}: {error.strerror or error}; {_remedy(error)}") from error
        finally:
            aside.unlink(missing_ok=True)


def found_once(path: Path, find_out: Callable[[], Any], fits: Callable[[Any], bool] = lambda _: True) -> Any:
    """The JSON in `path`; where there is none, or a damaged one, what `find_out` says, which is kept if it can be.

    Args: whether what is there `fits`; what does not is found out anew.
    """
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
        if fits(kept):
            return kept
    found = find_out()
    with contextlib.suppress(OSError, InputError), new_file(path) as aside:  # no cache is no error
        aside.write_text(json.dumps(found), encoding="utf-8", errors="surrogatepass")
    return found


def _remedy(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "free some space, or choose another place" if full else "choose another place"


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a directory beside `path` to fill; it replaces `path` only if the block succeeds.

    An existing `path` stays readable until the rename; a kill between the two renames leaves it
    whole under .NAME.former.wmlc, where `recover_directory` finds it.
    """
    path = path.resolve() if path.is_symlink() else path  # a link stays one, and what it leads to is replaced
    with _parents(path):
        aside = _aside(path)
        try:
            aside.mkdir()
            yield aside
            for file in aside.rglob("*"):
                flush(file)
            flush(aside)
            former = _beside(path, "former")
            replacing = path.exists()
            if replacing:
                shutil.rmtree(former, ignore_errors=True)
                path.replace(former)
            aside.replace(path)
            flush(path.parent)
            if replacing:
                shutil.rmtree(former, ignore_errors=True)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}; {_remedy(error)}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def recover_directory(path: Path) -> None:
    """Clear up after a kill in `new_directory`: what it was writing goes, what it had moved away comes back."""
    clear_asides(path.parent, path.name)
    former = _beside(path, "former")
    if former.is_dir() and not path.exists():
        former.replace(path)


def clear_asides(directory: Path, name: str = "*") -> None:
    """Remove what killed processes had begun to write in `directory`; what a living one writes stays."""
    for aside in directory.glob(f".*{OURS}"):
        of, _, writer = aside.name.removesuffix(OURS).rpartition(".")
        if writer.isdecimal() and name in ("*", of[1:]) and not _is_alive(int(writer)):
            _discard(aside)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return process != os.getpid()


MOST_BYTES = 16 << 20  # of a file of text that is read; ours have some hundred kilobytes, few a megabyte


def read_text(path: Path, what: str, remedy: str) -> str:
    """The text in a regular file of bounded size, or an `InputError` that names `what` it should be and the `remedy`.

    A pipe or a device in its place is refused, as reading one may never end.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no regular file, so there is no {what} in it; {remedy}")
        if (size := path.stat().st_size) > MOST_BYTES:
            raise InputError(f"{path} has {size:,} bytes, a {what} has at most {MOST_BYTES:,}; {remedy}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} is missing, so there is no {what} here; {remedy}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a readable {what} (it is no UTF-8: {error.reason}); {remedy}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; {remedy}") from None


def write_json(path: Path, record: Any) -> None:
    """Write `record` as indented JSON, whole or not at all."""
    with new_file(path) as aside:
        aside.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a directory."""
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())


def sha256(path: Path) -> str:
    """The hash of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def short_name(name: str, most: int, meant: str) -> str:
    """A file's `name` in at most so many bytes; what is longer ends in a hash of all that is `meant`."""
    if len(name.encode()) <= most:
        return name
    return f"{name.encode()[: most - 9].decode(errors='ignore')}-{short_hash(meant)}"


def short_hash(words: str) -> str:
    """Eight letters that tell words apart."""
    return hashlib.sha256(words.encode(errors="surrogatepass")).hexdigest()[:8]


@contextlib.contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Let the directory be there that `path` shall lie in; what was made for it and is empty afterwards goes again."""
    if not path.name and not path.resolve().name:
        raise InputError(f"cannot write {path}: it names no file or directory; choose another --out")
    made: list[Path] = []
    try:
        try:
            made = [parent for parent in path.absolute().parents if not parent.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot write {path}: {error.strerror or error} at {path.parent}; choose another place"
            ) from error
        yield
    finally:
        with contextlib.suppress(OSError):  # the first that is not empty
            for parent in made:
                parent.rmdir()


def _aside(path: Path) -> Path:
    """A fresh name beside `path`, on the same file system, in a directory that exists."""
    if not path.name:
        raise InputError(f"cannot write {path}: it names no file or directory; choose another --out")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: {path.parent} is not writable; choose another place")
    clear_asides(path.parent, path.name)
    return _beside(path, str(os.getpid()))


def _beside(path: Path, part: str) -> Path:
    return path.with_name(f".{path.name}.{part}{OURS}")


def _discard(path: Path) -> None:
    remove: Callable[[Path], Any] = (
        shutil.rmtree if path.is_dir() and not path.is_symlink() else lambda p: p.unlink(missing_ok=True)
    )
    remove(path)


def flush(path: Path) -> None:
    """fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
