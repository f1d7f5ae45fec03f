"""The stages as the coordinator sees them: numpy arrays in and out."""
