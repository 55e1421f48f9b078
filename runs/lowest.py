"""Print the lowest versions that pyproject.toml allows, as constraints for pip: python runs/lowest.py core train ...

`make test-lowest` installs these, so that every lowest version has been tried. "core" means the dependencies of every
installation, the other names are extras. Torch is left out, because the Makefile chooses it.
"""

import re
import sys
import tomllib
from pathlib import Path

FLOOR = re.compile(r"([\w-]+)(?:\[.*\])?>=([\w.]+)")


def main() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    for line in (line for group in sys.argv[1:] for line in groups[group] if not line.startswith("segclip[")):
        match = FLOOR.match(line)
        if match is None:
            raise ValueError(f"{line!r} in pyproject.toml has no lowest version; write it as NAME>=VERSION")
        if match[1] != "torch":
            print(f"{match[1]}=={match[2]}")


if __name__ == "__main__":
    main()
