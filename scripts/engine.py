"""What the set-up asks of a container engine: whether it answers, whether it holds an image, and to get one."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

import docker
import docker.errors
import requests

LONGEST_ANSWER = 900
"""Seconds: an import of a few hundred megabytes is one request."""


def main() -> int:
    """Exit 0 for yes or done, 1 for no, with the engine's own words on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("answers", help="does an engine answer at DOCKER_HOST, or else at the usual socket?")
    commands.add_parser("has", help="does it hold this image?").add_argument("image")
    commands.add_parser("pull", help="fetch this image from its registry").add_argument("image")
    import_ = commands.add_parser("import", help="make this image of a tar file")
    import_.add_argument("image")
    import_.add_argument("tar", type=Path)
    import_.add_argument("change", nargs="*", help="an instruction of a Dockerfile, such as 'CMD [\"sh\"]'")
    options = parser.parse_args()

    try:
        with contextlib.closing(docker.from_env(version="auto", timeout=LONGEST_ANSWER)) as client:
            match options.command:
                case "answers":
                    address = os.environ.get("DOCKER_HOST", "the usual socket")
                    print(f"engine: version {client.version()['Version']} at {address}")
                case "has":
                    client.images.get(options.image)
                case "pull":
                    client.images.pull(*options.image.split(":"))
                case "import":
                    repository, tag = options.image.split(":")
                    client.api.import_image(str(options.tar), repository, tag, changes=options.change)
                    client.images.get(options.image)
    except (docker.errors.DockerException, requests.RequestException) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
