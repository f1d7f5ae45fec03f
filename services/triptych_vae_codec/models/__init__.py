"""One file per family of autoencoders."""
