"""The report on a run, its verdict, and the terminal output of the commands."""
