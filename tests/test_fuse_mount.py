"""Mounting and unmounting: dead mounts, refused places, servers that are stopped or killed."""

from __future__ import annotations

import os
import select
import subprocess
import time
from pathlib import Path

import pytest
from fusemount import TIMEOUT_S, Mount, ends, follow, mounted
from fusescratch import SCRATCH

pytestmark = pytest.mark.usefixtures("binding")


def test_sigterm_unmounts_with_readers_blocked_and_files_open(tmp_path: Path) -> None:
    with mounted(SCRATCH, tmp_path / "m") as mount:
        reader = follow(mount)
        holder = mount.spawn("bash", "-c", f"cd {mount.at}; exec 3> d/one; echo ready; read x")
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        assert mount.terminate() == 0
        assert not mount.is_mounted()
        ends(reader)


def test_a_killed_caller_never_stops_the_server(tmp_path: Path) -> None:
    with mounted(SCRATCH, tmp_path / "m", "--busy") as mount:
        assert mount.server.stdout is not None
        beats = mount.server.stdout.fileno()
        for i in range(25):
            caller = mount.spawn("stat", f"{mount.at}/fixed")
            time.sleep(i % 6 * 0.01)
            caller.kill()
            for _ in range(3):
                assert select.select([beats], [], [], TIMEOUT_S)[0], (
                    "the server waits for a message that was taken back"
                )
                os.read(beats, 4096)


def test_unmounting_from_outside_ends_the_server(tmp_path: Path) -> None:
    with mounted(SCRATCH, tmp_path / "m") as mount:
        assert mount.run("umount", str(mount.at)).returncode == 0
        assert mount.server.wait(TIMEOUT_S) == 0
    with mounted(SCRATCH, tmp_path / "f") as mount:
        reader = follow(mount)
        mount.run("umount", "-f", str(mount.at))
        ends(reader)
        assert mount.server.wait(TIMEOUT_S) == 0
        assert not mount.is_mounted()


def test_a_dead_mount_is_replaced(tmp_path: Path) -> None:
    with mounted(SCRATCH, tmp_path / "with space") as mount:
        for _ in range(2):
            mount.server.kill()
            mount.server.communicate()
            assert "not connected" in mount.sh(f"ls '{mount.at}'").stderr
            mount.start()
            assert mount.run("cat", f"{mount.at}/fixed").stdout == "fixed\n"


def start_refused(at: Path, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        Mount(SCRATCH, at)


def test_places_that_are_refused(tmp_path: Path) -> None:
    with mounted(SCRATCH, tmp_path / "m") as mount:
        start_refused(mount.at, "in use: agentfs is mounted there")
        assert mount.out("cat $M/fixed") == "fixed\n"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    start_refused(tmp_path / "full", "must be empty")
    start_refused(tmp_path / "full" / "file", "must be a directory")
    (tmp_path / "other").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "foreign", tmp_path / "other"], check=True, timeout=TIMEOUT_S)
    try:
        start_refused(tmp_path / "other", "foreign is mounted there")
    finally:
        subprocess.run(["umount", "-l", tmp_path / "other"], check=True, timeout=TIMEOUT_S)
    assert not (tmp_path / "other").is_mount()


def test_a_place_is_made_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with mounted(SCRATCH, tmp_path / "real" / "deep") as mount:
        assert mount.out("cat $M/fixed") == "fixed\n"
        start_refused(tmp_path / "link" / "deep", "is mounted there")
