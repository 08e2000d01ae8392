"""What the set-up asks of the engine that the plugin would use: does it answer, has it an image, can it get one."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagebuild.engines.docker import DockerEngine
from pytest_stagebuild.engines.docker.connection import engine_errors, open_connection
from pytest_stagebuild.engines.docker.images import parse_reference
from pytest_stagebuild.engines.docker.transport import sdk_errors
from pytest_stagebuild.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main() -> int:
    """Exit 0 for yes or done, 1 for no, with the engine's own words on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("answers", help="does an engine answer?")
    commands.add_parser("has", help="does it hold this image?").add_argument("image")
    commands.add_parser("pull", help="fetch this image from its registry").add_argument("image")
    import_ = commands.add_parser("import", help="make this image of a tar file")
    import_.add_argument("image")
    import_.add_argument("tar", type=Path)
    import_.add_argument("change", nargs="*", help="an instruction of a Dockerfile, such as 'CMD [\"sh\"]'")
    options = parser.parse_args()

    try:
        if options.command == "import":
            import_image(options.image, options.tar, options.change)
            return 0
        with contextlib.closing(DockerEngine.connect()) as engine:
            match options.command:
                case "answers":
                    print(f"engine: {engine.describe()}")
                case "has":
                    return 0 if engine.find_image(options.image) else 1
                case "pull":
                    engine.pull_image(options.image, lambda progress: None)
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def import_image(image: str, tar: Path, changes: Sequence[str]) -> None:
    """Make ``image`` of the file system in ``tar``, with ``changes`` in its configuration."""
    name = parse_reference(image)
    with contextlib.closing(open_connection()) as connection, engine_errors(f"import {image}"), sdk_errors():
        connection.client.import_image(str(tar), name.repository, name.tag, changes=changes)
        connection.inspect_image(image)


if __name__ == "__main__":
    sys.exit(main())
