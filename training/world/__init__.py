"""The wide recipe: hundreds of objects, counts, sizes, places, colours and grounds, at many picture sizes."""
