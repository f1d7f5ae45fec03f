"""How long pictures, bytes, steps and requests at once take."""
