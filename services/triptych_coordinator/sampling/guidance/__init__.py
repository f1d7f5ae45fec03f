"""Guidance: which branches a step needs, and how their velocities become one."""
