"""Who calls, by which credential, and what they may."""
