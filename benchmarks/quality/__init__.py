"""What choices do to pictures: fewer bits, less work, other sampling."""
