"""A secret reaches the commands and stays nowhere: not in an image, a file of ours, what is shown, or an argument."""

from __future__ import annotations

import base64
import secrets
from urllib.parse import quote

import pytest
from grounds import files_below, on_each_engine

WATCHER = """\
import glob, os, threading

over = threading.Event()

def watch():
    # What any user of this machine may read.
    while not over.wait(0.05):
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                arguments = open(path, "rb").read()
            except OSError:
                continue
            with open("arguments.seen", "ab") as seen:
                seen.write(arguments + b"\\n")

def pytest_stagebuild_stage_start(stage):
    if not over.is_set() and not thread.is_alive():
        thread.start()

def pytest_stagebuild_stage_finish(result):
    if result.stage == "test":
        over.set()
        thread.join()

thread = threading.Thread(target=watch, daemon=True)
"""


@pytest.fixture
def canary() -> str:
    """A value that is another one in each form in which it can be written."""
    return f"canary/{secrets.token_hex(12)}+~"


def forms_of(value: str) -> list[bytes]:
    """Raw, quoted for a URL, and in base64 from any place in what was encoded, without its ends."""
    encoded = [base64.b64encode(bytes(lead) + value.encode())[lead + 1 : -4] for lead in range(3)]
    return [value.encode(), quote(value, safe="").encode(), *encoded]


def holders(files: dict[str, bytes], value: str) -> list[str]:
    return [path for path, data in files.items() if any(form in data for form in forms_of(value))]


PRINTS = 'printf "token: %s\\n" "$TOKEN"; printf "%.9s" "$TOKEN"; sleep 0.4; printf "%s\\n" "$TOKEN" | cut -c10-'
"""Prints the value at once, and in two pieces that arrive apart."""


@pytest.mark.parametrize(
    ("each_ground", "given"),
    [("docker", "option"), ("docker_with_user", "key"), ("local", "option")],
    indirect=["each_ground"],
)
def test_a_secret_that_commands_print_and_use_stays_nowhere(project, canary, given, tmp_path):
    table = (project.root / "pyproject.toml").read_text()
    project.write(
        {"watcher.py": WATCHER, "pyproject.toml": table + ('secrets = ["TOKEN"]\n' if given == "key" else "")}
    )
    run = project.stagebuild(
        *(["--stagebuild-secret=TOKEN"] if given == "option" else []),
        "-p",
        "watcher",
        "--junitxml=report.xml",
        f"--stagebuild-install-cmd={PRINTS}; cp requirements.txt installed.txt",
        f'--stagebuild-test-cmd={PRINTS}; echo "${{#TOKEN}} characters"; printf "last: %s" "$TOKEN"; exit 3',
        env={"TOKEN": canary, "PYTHONPATH": "."},
    )
    assert run.outcomes() == {"install": "ran", "build": "ran", "test": "FAILED"}
    assert f"{len(canary)} characters" in run.output  # it was there
    assert run.lines[run.lines.index("log: .stagebuild/logs/test.log") + 2 :][:4] == [
        "token: ***",
        "***",
        f"{len(canary)} characters",
        "last: ***",
    ]
    assert canary not in run.output
    assert canary[:9] not in run.output
    log = (project.root / ".stagebuild" / "logs" / "install.log").read_text()
    assert log == "token: ***\n***\n"

    files = files_below(project.root)
    assert {"report.xml", "arguments.seen", ".stagebuild/stagebuild.lock", ".stagebuild/logs/test.log"} <= set(files)
    assert sum(path.startswith(".stagebuild/records/") and path.endswith(".json") for path in files) == 2
    assert project.ground.argument in files["arguments.seen"]  # the sandboxes' processes were seen as well
    assert holders(files, canary) == []
    assert holders(files_below(tmp_path / "cache"), canary) == []

    [build] = [one["image"] for one in project.checkpoints().values() if one["stage"] == "build"]
    image = project.ground.kept(build, tmp_path)
    assert {".stagebuild/record.json", "src/built.txt", "src/installed.txt"} <= set(image)
    assert holders(image, canary) == []


@pytest.mark.parametrize(
    ("command", "form"),
    [
        ('printf %s "$TOKEN" > leak', "raw"),
        ('printf "x:%s" "$TOKEN" | base64 -w0 > leak', "base64"),
        (
            'python3 -c \'import os, urllib.parse as u; open("leak", "w").write(u.quote(os.environ["TOKEN"], ""))\'',
            "URL-quoted",
        ),
        ('ln -s "$TOKEN" leak', "raw"),
    ],
)
def test_a_command_that_writes_a_secret_into_a_file_fails_its_stage(project, canary, command, form):
    run = project.stagebuild("--stagebuild-secret=TOKEN", f"--stagebuild-install-cmd={command}", env={"TOKEN": canary})
    assert run.code == 1
    assert run.outcomes() == {"install": "FAILED", "build": "skipped", "test": "skipped"}
    assert "the secret TOKEN is in /src/leak" in run.row("install")
    assert f"The command wrote it there ({form}); a checkpoint would keep it." in run.output
    assert canary not in run.output
    assert project.checkpoints() == {}
    assert project.images() == []


@on_each_engine
def test_a_secret_in_the_name_of_a_folder_fails_the_stage_without_being_shown(new_project, canary):
    project = new_project(install_cmd='mkdir "made-$TOKEN"', build_cmd="true")
    run = project.stagebuild("--stagebuild-secret=TOKEN", env={"TOKEN": canary.replace("/", "_")})
    assert "the secret TOKEN is in /src/made-***" in run.row("install")
    assert canary.replace("/", "_") not in run.output
    assert project.images() == []


@on_each_engine
def test_a_file_that_is_gone_again_is_no_leak(new_project, canary):
    project = new_project(
        install_cmd='umask 077; printf %s "$TOKEN" > ~/.netrc; wc -c < ~/.netrc; rm ~/.netrc', build_cmd="true"
    )
    run = project.stagebuild("--stagebuild-secret=TOKEN", "pyproject.toml::build", env={"TOKEN": canary})
    assert run.code == 0


@on_each_engine
def test_passwords_in_the_settings_of_this_machine_are_redacted(new_project, tmp_path):
    project = new_project(
        install_cmd='printf "from %s\\n" "$PIP_INDEX_URL"; echo "$HTTPS_PROXY"',
        build_cmd="true",
        test_cmd='echo "$PIP_INDEX_URL"; exit 1',
    )
    env = {
        "PIP_INDEX_URL": "https://reader:pa%40ss-word@index.example/simple",
        "HTTPS_PROXY": "http://who:passphrase@proxy.example:3128",
    }
    run = project.stagebuild("-v", env=env)
    assert run.outcomes() == {"install": "ran", "build": "ran", "test": "FAILED"}
    log = (project.root / ".stagebuild" / "logs" / "install.log").read_text()
    assert log == "from https://***@index.example/simple\nhttp://***@proxy.example:3128\n"
    for password in ("pa%40ss-word", "pa@ss-word", "passphrase"):
        assert password not in run.output
        assert holders(files_below(project.root), password) == []
    [build] = [one["image"] for one in project.checkpoints().values() if one["stage"] == "build"]
    image = project.ground.kept(build, tmp_path)
    assert [path for path, data in image.items() if b"pa%40ss-word" in data or b"passphrase" in data] == []


def test_a_declared_variable_is_no_secret(new_project):
    project = new_project(install_cmd='echo "mode $MODE"', build_cmd="true", test_cmd="true")
    run = project.stagebuild("-v", "--stagebuild-env=MODE=visible", "pyproject.toml::install")
    assert "mode visible" in run.lines
    assert "visible" in (project.root / ".stagebuild" / "stagebuild.lock").read_text()
