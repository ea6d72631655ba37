"""`mlx-vits doctor`: what this machine runs on, and whether its numbers are right."""
