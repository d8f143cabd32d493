"""What the pipeline may do once everything is open: as good as nothing.

    own            before the attach: the folders that it writes to are its user's
    give           pins and files that root made become its user's
    reach          what lies where the user cannot get stays open (keep_modules: of our own code too)
    drop           its user, no capability, a filter of system calls: there is no way back

session.py calls these in this order; docs/security.md says what is kept and why.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from pipeline.errors import UserError

__all__ = ["User", "drop", "find", "foreign", "give", "keep_modules", "libraries", "no_link", "own", "reach"]

OURS: Final = {"log.db", "outbox.db", "ledger.json", "attached.json"}
"""A folder of root's with one of these is a state folder of an older version."""
ROOTS: Final = {"loader.log", "lock"}
"""One with nothing but these was made by `check` or `detach`, which stay root."""
CLONE_THREAD: Final = 0x00010000
SEEN: Final = os.R_OK | os.X_OK
WORD: Final = 0xFFFFFFFF
BPF: Final = (1, 2, 3, 4, 7, 15)
"""Commands of bpf() that are left: look up, update, delete, next key, open a pin, information."""
# What a reader of rings never needs. All else is allowed: what libraries call changes with their versions.
DENIED: Final = {
    "other programs": "execve execveat fork vfork",
    "other processes": "ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp",
    "other rights": "setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset",
    "the kernel's code": "init_module finit_module delete_module kexec_load kexec_file_load reboot",
    "the kernel's eyes": "perf_event_open userfaultfd lookup_dcookie syslog",
    "file systems": "mount umount2 pivot_root chroot move_mount open_tree fsopen fsconfig fsmount fspick"
    " mount_setattr swapon swapoff quotactl mknod mknodat open_by_handle_at",
    "namespaces": "unshare setns sethostname setdomainname",
    "clocks": "settimeofday clock_settime adjtimex clock_adjtime",
    "ways round this filter": "io_uring_setup io_uring_enter io_uring_register iopl ioperm personality",
    "keys": "add_key keyctl request_key",
    "accounts": "acct vhangup nfsservctl",
}


class User(NamedTuple):
    """Whom the pipeline runs as."""

    name: str
    uid: int
    gid: int


def find(name: str) -> User:
    """Look a user up in the user database. UserError: there is none, or it is root."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise UserError(
            f"there is no user {name}, as whom the pipeline runs; make one: useradd --system {name} "
            "(`make setup` does), or name another: `user` in the configuration"
        ) from None
    if entry.pw_uid == 0:
        raise UserError(f"user {name} is root; the pipeline needs a user without rights", status=2)
    return User(name, entry.pw_uid, entry.pw_gid)


def own(folder: Path, user: User) -> None:
    """Make a folder, or one of root's in which nothing but ours is, the user's. UserError: it is not ours to
    give, or the user cannot get there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    same = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # what was looked at is what is given
    try:
        if why := foreign(folder, user, same):
            raise UserError(why)
        os.chown(same, user.uid, user.gid)
    finally:
        os.close(same)
    with _as(user):
        reached = os.access(folder, SEEN | os.W_OK, effective_ids=True)
    if not reached:
        raise UserError(
            f"{folder} cannot be entered by {user.name}, as whom the pipeline runs; name a folder with "
            f"--state that it can reach, such as /var/lib/promissory"
        )


def foreign(folder: Path, user: User, opened: int | None = None) -> str:
    """Why a folder that is there is neither the user's nor ours to give; empty: it is."""
    place = folder if opened is None else opened
    owner, names = os.stat(place).st_uid, set(os.listdir(place))
    if owner == user.uid or (owner == 0 and (names <= ROOTS or names & OURS)):
        return ""
    return (
        f"{folder} is not {user.name}'s, and not empty; name a new folder with --state, or "
        f"give this one: chown -R {user.name} {folder}"
    )


@contextmanager
def _as(user: User) -> Iterator[None]:
    """See files as the user does, for a moment."""
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(user.gid)
    os.seteuid(user.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def give(user: User, pins: Path, folders: Iterable[Path]) -> None:
    """Make the user's: a folder of pins with all that is in it, and root's files in folders of the user's."""
    for path in (pins, *pins.rglob("*")):
        os.chown(path, user.uid, user.gid, follow_symlinks=False)
    for folder in folders:
        for path in folder.iterdir():
            _give_file(path, user)


def _give_file(path: Path, user: User) -> None:
    """Never what somebody linked there: it would become theirs."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOENT):
            return  # a link, a socket, or gone
        raise
    try:
        found = os.fstat(file)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == 0:
            os.fchown(file, user.uid, user.gid)
    finally:
        os.close(file)


def no_link(path: str, flags: int) -> int:
    """An `opener` for what root writes into a folder of the user's: never through a link, which could lead
    to where the user cannot write.
    """
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def reach(folder: Path) -> Path:
    """A path to a folder that stays good when those above it may no longer be entered: bpffs is root's alone
    where systemd mounts it.
    """
    return Path(f"/proc/self/fd/{os.open(folder, os.O_PATH | os.O_DIRECTORY)}")


def keep_modules(user: User) -> None:
    """Let modules be imported later from where the user cannot get: a tree in root's home, for example."""
    packages = {name: module.__path__ for name, module in sys.modules.items() if hasattr(module, "__path__")}
    outermost = [folder for name, folders in packages.items() if "." not in name for folder in folders]
    with _as(user):
        closed = {
            folder for folder in (*outermost, *sys.path) if not os.access(folder, SEEN, effective_ids=True)
        }
    # The innermost first: one that is closed itself opens nothing.
    nearest = sorted(filter(os.path.isdir, closed), key=len, reverse=True)
    instead = {folder: str(reach(Path(folder))) for folder in nearest}
    for folders in (sys.path, *packages.values()):
        if isinstance(folders, list):
            folders[:] = (_through(folder, instead) for folder in folders)


def _through(folder: str, instead: Mapping[str, str]) -> str:
    """A folder by its descriptor, or by that of one above it, if one has any."""
    for above, reached in instead.items():
        if folder == above or folder.startswith(f"{above}/"):
            return reached + folder[len(above) :]
    return folder


def drop(user: User, *, keep: Iterable[str] = (), commands: Collection[int] = BPF) -> None:
    """Become the user, for good. `keep`: capabilities that stay; `commands`: those of bpf() that stay.

    Before any other thread starts: each has a bounding set of its own, and inherits what its maker has.
    """
    capng = _library("capng")
    capng.capng_clear(capng.CAPNG_SELECT_ALL)
    for name in keep:
        kept = capng.CAPNG_EFFECTIVE | capng.CAPNG_PERMITTED
        capng.capng_update(capng.CAPNG_ADD, kept, capng.capng_name_to_capability(name))
    how = capng.CAPNG_DROP_SUPP_GRP | capng.CAPNG_CLEAR_BOUNDING | capng.CAPNG_CLEAR_AMBIENT
    if capng.capng_change_id(user.uid, user.gid, how):
        raise UserError(
            f"this process cannot become {user.name}: CAP_SETUID, CAP_SETGID or CAP_SETPCAP is missing"
        )
    _filter(commands).load()


def _filter(commands: Collection[int]) -> Any:
    """The filter of system calls. What it denies fails with EPERM: a library that tries goes on without."""
    seccomp = _library("seccomp")
    deny, equal, above = seccomp.ERRNO(errno.EPERM), seccomp.MASKED_EQ, seccomp.GE
    made = seccomp.SyscallFilter(seccomp.ALLOW)
    for names in DENIED.values():
        for name in names.split():
            made.add_rule(deny, name)
    # A thread is welcome, a process is not. The newer call hides its flags: the C library takes the older.
    made.add_rule(deny, "clone", seccomp.Arg(0, equal, CLONE_THREAD, 0))
    made.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    most = max(commands)
    for command in set(range(most)) - set(commands):
        made.add_rule(deny, "bpf", seccomp.Arg(0, equal, WORD, command))
    made.add_rule(deny, "bpf", seccomp.Arg(0, above, most + 1))
    return made


def libraries() -> None:
    """Look whether Debian's bindings are here. UserError: they are not."""
    _library("capng")
    _library("seccomp")


def _library(name: str) -> Any:
    """Debian's bindings, imported where they are needed: other commands do without."""
    try:
        return __import__(name)
    except ImportError:
        raise UserError(
            "the pipeline's privileges cannot be dropped without python3-cap-ng and python3-seccomp; "
            "apt install python3-cap-ng python3-seccomp, or make setup"
        ) from None
