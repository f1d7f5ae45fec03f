"""One checkpoint, however it is stored: a folder, a repository on the hub, a single file."""
