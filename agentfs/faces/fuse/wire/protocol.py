"""Numbers and layouts of the FUSE protocol, 7.31 to 7.45, under the kernel's own names.

Source: ``include/uapi/linux/fuse.h`` of Linux 6.18 (BSD-2-Clause). Every structure is padded to 64 bits there, so
``=`` (native order, standard sizes, no padding of our own) describes it exactly. Flags and structures are here that are
used, and all opcodes, since each is answered. Nothing here has a meaning yet.
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import Final

KERNEL_VERSION: Final = 7
KERNEL_MINOR_VERSION: Final = 45
OLDEST_MINOR_VERSION: Final = 31
EPOCH_MINOR_VERSION: Final = 44


class Op(enum.IntEnum):
    """``enum fuse_opcode``."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class Init(enum.IntFlag):
    """``FUSE_*`` flags of INIT; those from bit 32 on travel in ``flags2``."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37


class FOpen(enum.IntFlag):
    """``FOPEN_*``: what the kernel may do with an open file."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6
    PASSTHROUGH = 1 << 7


class Valid(enum.IntFlag):
    """``FATTR_*``: which fields of SETATTR count."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    FH = 1 << 6


class Notify(enum.IntEnum):
    """``enum fuse_notify_code``, sent in place of an error with unique 0."""

    POLL = 1
    INVAL_INODE = 2
    INC_EPOCH = 8


POLL_SCHEDULE_NOTIFY: Final = 1 << 0

# Requests: the header, then what the opcode says.
IN_HEADER: Final = Struct("=IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
INIT_IN: Final = Struct("=IIII")  # major minor max_readahead flags
INIT_IN_EXT: Final = Struct("=I")  # flags2
FORGET_IN: Final = Struct("=Q")  # nlookup
BATCH_FORGET_IN: Final = Struct("=II")  # count dummy
FORGET_ONE: Final = Struct("=QQ")  # nodeid nlookup
GETATTR_IN: Final = Struct("=IIQ")  # getattr_flags dummy fh
SETATTR_IN: Final = Struct("=IIQQQQQQIIIIIIII")
# valid padding fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode unused4 uid gid unused5
MKNOD_IN: Final = Struct("=IIII")  # mode rdev umask padding
MKDIR_IN: Final = Struct("=II")  # mode umask
RENAME_IN: Final = Struct("=Q")  # newdir
RENAME2_IN: Final = Struct("=QII")  # newdir flags padding
OPEN_IN: Final = Struct("=II")  # flags open_flags
CREATE_IN: Final = Struct("=IIII")  # flags mode umask open_flags
READ_IN: Final = Struct("=QQIIQII")  # fh offset size read_flags lock_owner flags padding
WRITE_IN: Final = Struct("=QQIIQII")  # fh offset size write_flags lock_owner flags padding
RELEASE_IN: Final = Struct("=QIIQ")  # fh flags release_flags lock_owner
FLUSH_IN: Final = Struct("=QIIQ")  # fh unused padding lock_owner
FSYNC_IN: Final = Struct("=QII")  # fh fsync_flags padding
INTERRUPT_IN: Final = Struct("=Q")  # unique
POLL_IN: Final = Struct("=QQII")  # fh kh flags events

# Answers.
OUT_HEADER: Final = Struct("=IiQ")  # len error unique
INIT_OUT: Final = Struct("=IIIIHHIIHHIIH22x")
# major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages map_alignment
# flags2 max_stack_depth request_timeout
ATTR: Final = Struct("=QQQQQQIIIIIIIIII")
# ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize flags
ATTR_OUT: Final = Struct("=QII" + ATTR.format[1:])  # attr_valid attr_valid_nsec dummy, attr
ENTRY_OUT: Final = Struct("=QQQQII" + ATTR.format[1:])
# nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec, attr
OPEN_OUT: Final = Struct("=QIi")  # fh open_flags backing_id
WRITE_OUT: Final = Struct("=II")  # size padding
POLL_OUT: Final = Struct("=II")  # revents padding
STATFS_OUT: Final = Struct("=QQQQQIIII24x")  # blocks bfree bavail files ffree bsize namelen frsize padding, spare
DIRENT: Final = Struct("=QQII")  # ino off namelen type, name

# Notifications.
NOTIFY_POLL: Final = Struct("=Q")  # kh
NOTIFY_INVAL_INODE: Final = Struct("=Qqq")  # ino off len

# ioctls of the device.
DEV_IOC_BACKING_OPEN: Final = 0x4010E501  # _IOW(229, 1, struct fuse_backing_map)
DEV_IOC_BACKING_CLOSE: Final = 0x4004E502  # _IOW(229, 2, uint32_t)
BACKING_MAP: Final = Struct("=iIQ")  # fd flags padding
