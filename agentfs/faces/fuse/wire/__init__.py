"""The kernel's FUSE protocol spoken by ourselves, over the same `Core` as every binding. No libfuse."""
