"""The FUSE face: a `FileService` as a mounted file system (Linux, trio). No service and no policy here."""
