"""Runs somebody else's Python program where it can do no harm: `python -I -S jail.py LIMITS`, the program on stdin.

A script of its own, started by `code_execution.py` in a fresh process and imported by nobody who serves. It gives
itself new namespaces (network, mounts, processes, System V, host name), a root directory of its own in memory that
shows the interpreter read-only and one empty writable place, limits, and no rights; then it starts the interpreter
that reads the program. Three processes: one outside, whose end is the others'; one that is the first of the process
namespace and only waits, since whatever the program does to itself, the kernel ends all of a namespace with its first
process; and the program. What is missing on a machine (no namespaces for ordinary users, as in many containers) is an
error with exit code 97, never a weaker jail.

Only the standard library, no imports of Penstock: whatever is imported here is in reach of the program.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import struct
import sys
from typing import Any, NoReturn

UNABLE = 97  # exit code: this machine cannot make the jail
CLONE = {
    "mounts": 0x0002_0000,
    "uts": 0x0400_0000,
    "ipc": 0x0800_0000,
    "user": 0x1000_0000,
    "pid": 0x2000_0000,
    "network": 0x4000_0000,
}
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
SYS_MOUNT_SETATTR = 442  # the same on every architecture
AT_RECURSIVE, ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 0x8000, 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_DUMPABLE = 1, 38, 4
KEYCTL_JOIN_SESSION_KEYRING = 1
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
SIGKILL = 9
# System calls that no program needs and that the rest of the jail does not contain, by their numbers: as x86_64 counts
# them, and as the others do.
REFUSED = {
    "memfd_create": (319, 279),  # memory that is in no address space, and so not limited
    "memfd_secret": (447, 447),
    "shmget": (29, 194),  # the same
    "msgget": (68, 186),
    "semget": (64, 190),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),  # does what other calls do, past the filter
}
SOCKET = {"socket": (41, 198), "socketpair": (53, 199)}
FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6; AF_VSOCK leads out of a virtual machine, whatever the namespace
MACHINES = {"x86_64": (0xC000_003E, 0), "aarch64": (0xC000_00B7, 1), "riscv64": (0xC000_00F3, 1)}
X32 = 0x4000_0000  # on x86_64 the same calls under other numbers
INSIDE_UID = 1000  # as an ordinary user sees itself inside
FIRST_UID, UIDS = 61_184, 4_096  # systemd's range for users that exist for as long as a service: nobody's files
ROOT = "/tmp"  # noqa: S108 -- only a place to mount on; the mount is this process's alone
NEW = f"{ROOT}/new"
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin")
FILES = ("/etc/ld.so.cache", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Run the program, and end as it ends."""
    limits = json.loads(sys.argv[1])
    try:
        isolate(limits)
        child = os.fork()
        if child:
            wait_for(child)
        limit(limits)
    except OSError as error:
        sys.stderr.write(f"jail: {error}")
        os._exit(UNABLE)
    python = limits["python"]
    os.execve(python, [python, "-I", "-B", "-X", "utf8", "-"], {"LANG": "C.UTF-8", "HOME": "/box"})  # noqa: S606


def isolate(limits: dict[str, Any]) -> None:
    """Namespaces, a new root, another user, no rights. OSError when the machine allows one of them not.

    Root makes the mounts as itself and gives its identity away afterwards; an ordinary user begins with a user
    namespace, in which it may make them. Either way what runs in the end is an ordinary user in a namespace of its own.
    """
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    leave_keys()
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    user = User(privileged=os.geteuid() == 0, number=FIRST_UID + limits["number"] % UIDS)
    flags = CLONE["network"] | CLONE["mounts"] | CLONE["uts"] | CLONE["ipc"] | CLONE["pid"]
    if user.privileged:
        os.setgroups([])
        check(libc.unshare(flags), "unshare")
    else:
        uid, gid = os.geteuid(), os.getegid()
        check(libc.unshare(flags | CLONE["user"]), "unshare")
        write(proc, "self/setgroups", "deny")
        write(proc, "self/uid_map", f"{INSIDE_UID} {uid} 1")
        write(proc, "self/gid_map", f"{INSIDE_UID} {gid} 1")
    enter_pid_namespace(proc, user)
    make_root(limits)
    user.give_up_identity()
    write(proc, "sys/user/max_user_namespaces", "0")  # in a further one it would have all rights again
    os.close(proc)
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)  # changing the user has cleared it
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    drop_capabilities()
    refuse_calls()
    check(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "not dumpable")  # no other process of this user may reach into it


def leave_keys() -> None:
    """Have a session keyring of its own, empty: the worker's would be the program's, and the next program's."""
    keyctl = REFUSED["keyctl"][0 if os.uname().machine == "x86_64" else 1]
    outcome = libc.syscall(keyctl, KEYCTL_JOIN_SESSION_KEYRING, None)
    if outcome < 0 and ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):  # no keys here, or in reach of nobody
        raise OSError(ctypes.get_errno(), "session keyring")


class User:
    """Who runs the program. Root becomes the user `number`, which only a process outside can write down."""

    def __init__(self, *, privileged: bool, number: int) -> None:
        self.privileged = privileged
        self._number = number
        self._asks, self._asked = os.pipe()
        self._answers, self._answered = os.pipe()

    def __repr__(self) -> str:
        return f"User(privileged={self.privileged}, number={self._number})"

    def give_up_identity(self) -> None:
        """Inside: become the user."""
        if self.privileged:
            check(libc.unshare(CLONE["user"]), "unshare user")
            os.write(self._asked, b"x")
            os.close(self._answered)
            if not os.read(self._answers, 1):
                raise OSError("the user could not be written down")
            os.setresgid(INSIDE_UID, INSIDE_UID, INSIDE_UID)
            os.setresuid(INSIDE_UID, INSIDE_UID, INSIDE_UID)
        for descriptor in (self._asks, self._asked, self._answers):
            os.close(descriptor)

    def write_down(self, proc: int, child: int) -> None:
        """Outside: say who `child` is, once it asks; not at all when it has ended before."""
        os.close(self._asked)
        if self.privileged and os.read(self._asks, 1):
            write(proc, f"{child}/uid_map", f"{INSIDE_UID} {self._number} 1")
            write(proc, f"{child}/gid_map", f"{INSIDE_UID} {self._number} 1")
            os.write(self._answered, b"x")
        os.close(self._answered)


def enter_pid_namespace(proc: int, user: User) -> None:
    """Go on as the first process of the new namespace: when it ends, the kernel ends every other one in it."""
    child = os.fork()
    if not child:
        return
    user.write_down(proc, child)
    wait_for(child)


def wait_for(child: int) -> NoReturn:
    """End as this child ends. What else ends meanwhile has lost its parent in here, and is let go."""
    ended = None
    while ended != child:
        ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def make_root(limits: dict[str, Any]) -> None:
    """A root directory in memory with the interpreter in it, read-only, and `/box`, empty and writable."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", ROOT, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    os.mkdir(NEW)
    mount("tmpfs", NEW, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in dict.fromkeys((*SYSTEM, limits["prefix"])):
        show(path)
    for path in (*FILES, *DEVICES):
        show(path)
    for name in ("box", "tmp"):
        os.mkdir(f"{NEW}/{name}")
    size = f"size={limits['files_bytes']},nr_inodes=1000,mode=777"
    mount("tmpfs", f"{NEW}/box", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, size)
    mount(f"{NEW}/box", f"{NEW}/tmp", None, MS_BIND)  # noqa: S108
    os.mkdir(f"{NEW}/old")
    os.chdir(NEW)
    check(libc.syscall(pivot_root(), b".", b"old"), "pivot_root")
    check(libc.umount2(b"/old", MNT_DETACH), "umount")
    os.rmdir("/old")
    read_only("/", recursive=False)
    os.chdir("/box")


def show(path: str) -> None:
    """Let a path of the machine be seen in the new root, read-only."""
    if not os.path.lexists(path):
        return
    inside = NEW + path
    os.makedirs(os.path.dirname(inside), 0o755, exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), inside)
        return
    if os.path.isdir(path):
        if os.path.exists(inside):  # it lies in what is shown already
            return
        os.mkdir(inside)
    else:
        os.close(os.open(inside, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(path, inside, None, MS_BIND | MS_REC)
    read_only(inside, recursive=True, devices=path in DEVICES)


def read_only(path: str, *, recursive: bool, devices: bool = False) -> None:
    class Attributes(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]

    attributes = Attributes(ATTR_RDONLY | ATTR_NOSUID | (0 if devices else ATTR_NODEV), 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    size = ctypes.sizeof(attributes)
    done = libc.syscall(SYS_MOUNT_SETATTR, -100, path.encode(), flags, ctypes.byref(attributes), ctypes.c_size_t(size))
    check(done, f"mount_setattr {path}")


def limit(limits: dict[str, Any]) -> None:
    """What the program may use. Memory is address space, so that it fails inside and nobody else is swapped out."""
    for name, value in (
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["files_bytes"]),
        (resource.RLIMIT_NPROC, limits["processes"] + 1),  # the one that waits
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(name, (value, value))


def drop_capabilities() -> None:
    """In a user namespace the process has all rights over it until it becomes another program; none of them stays."""
    for capability in range(64):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; beyond the last one it fails, which is fine
    header = (ctypes.c_uint32 * 2)(0x2008_0522, 0)
    none = (ctypes.c_uint32 * 6)()
    check(libc.capset(header, none), "capset")


def refuse_calls() -> None:
    """Have the kernel refuse the system calls `REFUSED`, and sockets of other families than `FAMILIES`."""
    instructions = filter_for(os.uname().machine)
    words = ctypes.create_string_buffer(instructions)

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("words", ctypes.c_void_p)]

    program = Program(len(instructions) // 8, ctypes.addressof(words))
    check(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0), "seccomp")


def filter_for(machine: str) -> bytes:
    """The filter in the kernel's language (BPF): from a call's architecture, number and arguments to what is to come of
    it. OSError for a machine whose numbers are not known here."""
    if machine not in MACHINES:
        raise OSError(errno.ENOSYS, f"the system calls of {machine} are not known")
    architecture, column = MACHINES[machine]
    load, equal, at_least, end = 0x20, 0x15, 0x35, 0x06
    kill, allow, refuse = 0x8000_0000, 0x7FFF_0000, 0x0005_0000
    number, kind, first_argument = 0, 4, 16  # where they stand in what a filter is shown

    refused = [equal_to[column] for equal_to in REFUSED.values()]
    sockets = [equal_to[column] for equal_to in SOCKET.values()]
    # Each line: what to do, with which value, how many lines to skip if it is so and if it is not.
    lines = [(load, kind, 0, 0), (equal, architecture, 1, 0), (end, kill, 0, 0), (load, number, 0, 0)]
    to_refuse = len(refused) + len(sockets) + 1
    lines += [(at_least, X32, to_refuse, 0)]
    lines += [(equal, each, to_refuse - 1 - at, 0) for at, each in enumerate(refused)]
    lines += [(equal, each, len(sockets) + 1 - at, 0) for at, each in enumerate(sockets)]
    lines += [(end, allow, 0, 0), (end, refuse | errno.EPERM, 0, 0), (load, first_argument, 0, 0)]
    lines += [(equal, family, len(FAMILIES) - at, 0) for at, family in enumerate(FAMILIES)]
    lines += [(end, refuse | errno.EAFNOSUPPORT, 0, 0), (end, allow, 0, 0)]
    return b"".join(struct.pack("=HBBI", do, so, not_so, value) for do, value, so, not_so in lines)


def pivot_root() -> int:
    return {"x86_64": 155, "aarch64": 41, "riscv64": 41}.get(os.uname().machine, 41)


def mount(source: str | None, place: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if word is None else word.encode() for word in (source, place, kind)]
    check(libc.mount(*words, ctypes.c_ulong(flags), None if data is None else data.encode()), f"mount {place}")


def write(proc: int, path: str, text: str) -> None:
    """Write a file of the machine's /proc, which stays in reach by its descriptor when the root is another."""
    descriptor = os.open(path, os.O_WRONLY, dir_fd=proc)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def check(outcome: int, what: str) -> None:
    if outcome != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
