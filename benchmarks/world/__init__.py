"""Measures the wide model: adherence by category, and the distance of its pictures from rendered ones."""
