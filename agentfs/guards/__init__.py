"""Views that hold back: what a mount grants, what a token allows, and what one principal may take of the whole.

Each takes a `FileService` and is one; what is granted to whom is decided elsewhere.
"""

from agentfs.guards.confined import Confined
from agentfs.guards.fair import Fair, Shares
from agentfs.guards.granted import Granted
from agentfs.guards.lease import Lease

__all__ = ["Confined", "Fair", "Granted", "Lease", "Shares"]
