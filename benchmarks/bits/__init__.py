"""Equal bits: that they are, and what they cost."""
