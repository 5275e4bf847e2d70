"""Sandboxes in Podman, by the socket on which it speaks Docker's language: what holds in Docker's engine holds there.

Not its networks: it would make them on this machine, with rules of the firewall.
"""

# ruff: noqa: F401  (what is imported is collected here once more, with another engine)

from __future__ import annotations

from pathlib import Path

import pytest
from dockerkit import OWNER, Engine
from test_docker import (
    boxes,
    test_a_command_says_what_it_says_where_it_says_it,
    test_an_image_cannot_bring_a_disk_a_check_or_a_program_of_its_own,
    test_an_image_without_a_shell_is_refused_by_name,
    test_another_provider_of_the_same_runtime_goes_on,
    test_commands_run_beside_each_other_and_end_alone,
    test_end_keeps_the_files_and_remove_leaves_nothing,
    test_env_is_given_and_told_to_nobody_else,
    test_files_are_the_workdir_from_both_sides,
    test_how_a_command_ends,
    test_images_and_health,
    test_making_that_is_cancelled_leaves_nothing_that_is_not_found,
    test_nothing_is_lost_of_much,
    test_one_of_an_id_and_only_ones_own,
    test_refusals_name_what_is_wrong,
    test_the_view_and_sockets_are_inside,
    test_what_is_given_goes_in_and_is_closed,
    test_what_is_not_read_stops_the_command,
    test_what_was_used_is_told,
)

from agentfs.providers.containers import catalog


@pytest.fixture(scope="session")
def docker_engine(podman_engine: Engine) -> Engine:
    """Podman in place of Docker's engine."""
    return podman_engine


async def test_it_is_found_once(docker_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alias").symlink_to(docker_engine.socket)
    place = catalog.Place(tmp_path / "boxes", tmp_path / "images", OWNER, "suite")
    for sockets, expected in [
        ({"docker": tmp_path / "none", "podman": docker_engine.socket}, ["podman"]),
        ({"docker": tmp_path / "alias", "podman": docker_engine.socket}, ["docker"]),
    ]:
        monkeypatch.setattr(catalog, "SOCKETS", {name: str(path) for name, path in sockets.items()})
        found = await catalog.found(place)
        assert [name for name in found if name != "bubblewrap"] == expected
        for provider in found.values():
            await provider.aclose()
