"""The system calls that code in a sandbox may not make, as a program for seccomp(2) and as a profile.

After the default profile of Docker (docs.docker.com/engine/security/seccomp), as a list of what is refused; numbers
from the kernel's syscall_64.tbl and asm-generic/unistd.h.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterator
from typing import Final, TypeAlias

import msgspec

# name: (x86_64, aarch64); -1 where that machine has none
REFUSED: Final = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "create_module": (174, -1),
    "get_kernel_syms": (177, -1), "query_module": (178, -1), "acct": (163, 89), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, -1), "ioperm": (173, -1),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "lookup_dcookie": (212, 18),
    "syslog": (103, 116), "vhangup": (153, 58), "move_pages": (279, 239), "mbind": (237, 235),
    "set_mempolicy": (238, 237), "migrate_pages": (256, 238), "nfsservctl": (180, 42), "uselib": (134, -1),
    "_sysctl": (156, -1), "sysfs": (139, -1), "ustat": (136, -1), "fanotify_init": (300, 262),
}  # fmt: skip
CLONE: Final = (56, 220)
CLONE3: Final = 435
SOCKET: Final = (41, 198)
IOCTL: Final = (16, 29)
PERSONALITY: Final = (135, 92)
NEWEST: Final = 462  # mseal, Linux 6.10: a later call was never thought about
_NAMESPACES: Final = 0x7E02_0000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
_PLAIN: Final = (0, 0x8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF)  # personality: Linux, Linux32, UNAME26 and the question
_TERMINAL: Final = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: words put into another's mouth
_FAMILIES: Final = (38, 40)  # AF_ALG: often broken; AF_VSOCK: knows no network namespace
_MACHINES: Final = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}
_X32: Final = 0x4000_0000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24  # offsets into struct seccomp_data, the low words of arguments
_ALLOW, _KILL, _ERRNO = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
_Step: TypeAlias = tuple[int, int, int, int]  # code, jump when true, jump when false, operand


def program(machine: str = "") -> bytes:
    """The filter for *machine* (this one): what is refused fails with EPERM. Empty where no table is known."""
    known = _MACHINES.get(machine or platform.machine())
    if known is None:
        return b""
    return b"".join(struct.pack("<HBBI", *step) for step in _steps(*known))


def profile() -> bytes:
    """What `program` refuses, as the JSON that an engine takes (OCI runtime-spec, ``linux.seccomp``), on any machine.

    Where it has no words for it, it refuses less: a personality, and calls that were never thought about.
    """
    refused = {"action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM}
    bits = (1 << bit for bit in range(_NAMESPACES.bit_length()) if _NAMESPACES >> bit & 1)
    rules: list[dict[str, object]] = [
        {"names": [*REFUSED], **refused},
        {"names": ["clone3"], **refused, "errnoRet": errno.ENOSYS},
        *({"names": ["clone"], **refused, "args": [_argument(0, "MASKED_EQ", bit, bit)]} for bit in bits),
        *({"names": ["ioctl"], **refused, "args": [_argument(1, "EQ", value)]} for value in _TERMINAL),
        *({"names": ["socket"], **refused, "args": [_argument(0, "EQ", value)]} for value in _FAMILIES),
    ]
    return msgspec.json.encode({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})


def _argument(index: int, comparison: str, value: int, other: int = 0) -> dict[str, object]:
    return {"index": index, "op": f"SCMP_CMP_{comparison}", "value": value, "valueTwo": other}


def _steps(column: int, arch: int) -> Iterator[_Step]:
    yield from ((_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NR))
    yield from ((_AT_LEAST, 0, 1, _X32), _fails(errno.EPERM))
    yield from ((_AT_LEAST, 0, 1, NEWEST + 1), _fails(errno.ENOSYS))
    yield from ((_EQUAL, 0, 1, CLONE3), _fails(errno.ENOSYS))  # its flags cannot be seen; libraries fall back to clone
    for numbers in REFUSED.values():
        if numbers[column] >= 0:
            yield from ((_EQUAL, 0, 1, numbers[column]), _fails(errno.EPERM))
    yield from ((_EQUAL, 0, 4, CLONE[column]), (_LOAD, 0, 0, _ARG0), (_ANY_BIT, 0, 1, _NAMESPACES))
    yield from (_fails(errno.EPERM), (_RETURN, 0, 0, _ALLOW))
    yield from _choose(PERSONALITY[column], _ARG0, _PLAIN, (_RETURN, 0, 0, _ALLOW), _fails(errno.EPERM))
    yield from _choose(IOCTL[column], _ARG1, _TERMINAL, _fails(errno.EPERM), (_RETURN, 0, 0, _ALLOW))
    yield from _choose(SOCKET[column], _ARG0, _FAMILIES, _fails(errno.EPERM), (_RETURN, 0, 0, _ALLOW))
    yield (_RETURN, 0, 0, _ALLOW)


def _choose(number: int, offset: int, values: tuple[int, ...], met: _Step, other: _Step) -> Iterator[_Step]:
    """For the call *number*: *met* when its argument at *offset* is one of *values*, else *other*."""
    yield from ((_EQUAL, 0, 2 * len(values) + 2, number), (_LOAD, 0, 0, offset))
    for value in values:
        yield from ((_EQUAL, 0, 1, value), met)
    yield other


def _fails(code: int) -> _Step:
    return (_RETURN, 0, 0, _ERRNO | code)
