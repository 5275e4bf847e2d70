"""What hostile code may not in Podman either; see `test_podman`."""

# ruff: noqa: F401  (what is imported is collected here once more, with another engine)

from __future__ import annotations

from test_docker_hostile import (
    boxes,
    python_engine,
    test_a_fork_bomb_meets_its_limit,
    test_a_memory_bomb_is_named,
    test_calls_that_would_lead_out_are_refused,
    test_it_has_no_rights,
    test_nothing_outlives_a_command_that_ends,
    test_one_session_does_not_see_another,
    test_the_disk_has_an_end,
    test_what_lies_in_memory_has_an_end_too,
)
from test_podman import docker_engine
