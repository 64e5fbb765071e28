"""Prints what pyproject.toml requires, so that an image layer can hold it without our code."""

import sys
import tomllib
from pathlib import Path


def main() -> None:
    """Print the dependencies and those of the extras named in the first argument."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = [name for name in sys.argv[1].split(",") if name]
    chosen = [project["dependencies"], *(project["optional-dependencies"][name] for name in extras)]
    print("\n".join(line for lines in chosen for line in lines))


if __name__ == "__main__":
    main()
