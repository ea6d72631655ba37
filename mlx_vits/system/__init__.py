"""Files, locks, signals and memory: what the package asks of the operating system."""
