"""The ways in: each face serves exactly one `FileService`; none knows what it serves."""
