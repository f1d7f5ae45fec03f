"""The memory that loading and large pictures take."""
