"""Everything that depends on the operating system: files, locks, signals and memory."""
