"""The mathematics of sampling, in numpy alone. loop.py is where to start."""
