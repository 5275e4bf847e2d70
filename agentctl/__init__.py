"""The operator's command: every verb is file operations on a runtime's HTTP face.

It holds no rule of the runtime and imports nothing of it but the error table, the value types and what all clients
share.
"""

import sys

# httpx has a command line of its own, which takes half its time to import: left out, as where its extra is missing.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # None: whoever imports it gets ImportError
