"""The command line, and the two ways to run everything on one machine: fused, and a process per service."""
