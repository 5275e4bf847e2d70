"""What a request for a sandbox is, who may have which, and what a provider of sandboxes must do: no I/O, no state."""
