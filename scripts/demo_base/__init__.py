"""The demo's base, from recordings to a folder: `python -m scripts.demo_base --help`."""
