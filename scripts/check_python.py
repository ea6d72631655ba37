"""Says what is wrong with a Python that cannot run mlx_vits, before anything is installed.

Written so that old interpreters can parse it too.
"""

import platform
import sys

MIN_PYTHON = (3, 10)
MIN_GLIBC = (2, 35)  # the oldest that MLX's Linux wheels run on
MIN_MACOS = (14, 0)


def version(text):
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def fault():
    """One sentence with the cure, or None."""
    if sys.version_info[:2] < MIN_PYTHON:
        return (
            "Python %d.%d is too old; mlx_vits needs 3.10 or newer: install one, then run make "
            "with PYTHON=python3.12 (or install uv, which fetches its own)" % sys.version_info[:2]
        )
    system, machine = platform.system(), platform.machine()
    if system == "Darwin":
        if machine != "arm64":
            return "this Python runs as %s; MLX needs Apple silicon and an arm64 Python" % machine
        if version(platform.mac_ver()[0]) < MIN_MACOS:
            return "macOS %s is too old; MLX needs macOS 14 or newer" % platform.mac_ver()[0]
        return None
    if system != "Linux":
        return "%s is not supported; use a Mac with Apple silicon, or Linux" % system
    library, found = platform.libc_ver()
    if library != "glibc" or version(found) < MIN_GLIBC:
        return (
            "the C library is %s %s; MLX's Linux wheels need glibc 2.35 or newer, as in Ubuntu "
            "22.04, Debian 12 or Fedora 36: use a newer system or a container of one"
            % (library or "not glibc", found)
        )
    return None


if __name__ == "__main__":
    message = fault()
    if message:
        sys.stderr.write("error: %s\n" % message)
        sys.exit(1)
