from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_stagebuild.host_env import HostSettings, host_settings


@pytest.mark.parametrize(
    "name",
    [
        "http_proxy",
        "HTTPS_PROXY",
        "no_proxy",
        "ALL_PROXY",
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
        "PIP_TRUSTED_HOST",
        "PIP_DEFAULT_TIMEOUT",
        "PIP_RETRIES",
        "UV_HTTP_TIMEOUT",
        "POETRY_REQUESTS_TIMEOUT",
        "npm_config_fetch_retries",
        "CARGO_NET_RETRY",
        "UV_INDEX",
        "UV_DEFAULT_INDEX",
        "UV_INDEX_URL",
        "UV_INDEX_CORP_USERNAME",
        "npm_config_registry",
    ],
)
def test_a_setting_for_the_network_is_passed_on_by_value(name: str) -> None:
    assert host_settings({name: "https://mirror.example/simple"}).env == {name: "https://mirror.example/simple"}


@pytest.mark.parametrize("name", ["PATH", "HOME", "PROXY", "UV_CACHE_DIR", "PIP_FIND_LINKS", "AWS_SECRET_ACCESS_KEY"])
def test_nothing_else_is_passed_on(name: str) -> None:
    assert host_settings({name: "/somewhere"}) == HostSettings()


def test_an_empty_setting_is_not_passed_on() -> None:
    assert host_settings({"http_proxy": "", "SSL_CERT_FILE": ""}) == HostSettings()


def test_a_bundle_goes_by_content_and_its_variable_follows(tmp_path: Path) -> None:
    bundle = tmp_path / "corp.pem"
    bundle.write_bytes(b"certificates")
    found = host_settings({"SSL_CERT_FILE": str(bundle)})
    path = found.env["SSL_CERT_FILE"]
    assert path.startswith("/.stagebuild/run/ca-")
    assert path.endswith(".pem")
    assert found.bundles == {path: b"certificates"}


@pytest.mark.parametrize(
    "name",
    [
        "PIP_CERT",
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "NODE_EXTRA_CA_CERTS",
        "CARGO_HTTP_CAINFO",
    ],
)
def test_every_tool_s_own_variable_names_a_bundle(name: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"x")
    assert len(host_settings({name: str(tmp_path / "ca.pem")}).bundles) == 1


def test_the_same_content_goes_once_and_other_content_apart(tmp_path: Path) -> None:
    for name, content in (("one", b"same"), ("two", b"same"), ("three", b"other")):
        (tmp_path / name).write_bytes(content)
    found = host_settings(
        {
            "PIP_CERT": str(tmp_path / "one"),
            "SSL_CERT_FILE": str(tmp_path / "two"),
            "CURL_CA_BUNDLE": str(tmp_path / "three"),
        }
    )
    assert found.env["PIP_CERT"] == found.env["SSL_CERT_FILE"] != found.env["CURL_CA_BUNDLE"]
    assert sorted(found.bundles.values()) == [b"other", b"same"]


def test_a_bundle_that_is_not_there_is_left_out_with_a_note(tmp_path: Path) -> None:
    missing = tmp_path / "gone.pem"
    found = host_settings({"PIP_CERT": str(missing)})
    assert found == HostSettings(notes=(f"PIP_CERT is not passed on: {missing}: No such file or directory",))


def test_a_fifo_is_no_bundle_and_does_not_hold_the_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    found = host_settings({"PIP_CERT": str(tmp_path / "fifo")})
    assert found.notes == (f"PIP_CERT is not passed on: {tmp_path / 'fifo'}: not a file",)


@pytest.mark.parametrize(
    ("name", "value", "redacted"),
    [
        ("https_proxy", "http://ann:pa55word@proxy.example:3128", {"ann:pa55word", "pa55word"}),
        ("https_proxy", "ann:pa55word@proxy.example:3128", {"ann:pa55word", "pa55word"}),
        ("PIP_INDEX_URL", "https://ann:p%40ss@pypi.example/simple", {"ann:p%40ss", "ann:p@ss", "p%40ss", "p@ss"}),
        ("PIP_INDEX_URL", "https://0123456789abcdef@pypi.example/simple", {"0123456789abcdef"}),
        ("UV_INDEX", "corp=https://a:11112222@one.example/ https://b:33334444@two.example/", {"11112222", "33334444"}),
        ("UV_INDEX_CORP_PASSWORD", "tr0ub4dor", {"tr0ub4dor"}),
    ],
)
def test_credentials_are_redacted(name: str, value: str, redacted: set[str]) -> None:
    assert redacted <= set(host_settings({name: value}).redactions)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("https_proxy", "http://proxy.example:3128"),
        ("no_proxy", "localhost,.example,10.0.0.0/8"),
        ("PIP_INDEX_URL", "https://pypi.example/@scope/simple"),
        ("PIP_INDEX_URL", "ssh://git@pypi.example/simple"),
    ],
)
def test_where_there_are_no_credentials_nothing_is_redacted(name: str, value: str) -> None:
    assert host_settings({name: value}).redactions == ()


def test_a_short_password_alone_is_not_redacted_for_it_stands_in_ordinary_output() -> None:
    assert host_settings({"https_proxy": "http://ann:on@proxy.example"}).redactions == ("ann:on",)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"])
def test_a_proxy_on_loopback_is_passed_on_with_a_note(host: str) -> None:
    found = host_settings({"https_proxy": f"http://user:secret@{host}:3128"})
    assert found.env == {"https_proxy": f"http://user:secret@{host}:3128"}
    assert found.notes == (
        (
            f"https_proxy names {host}, which in a container is the container itself: "
            "use an address that containers reach, or set `pass_host_env = false`"
        ),
    )


def test_hosts_that_need_no_proxy_may_be_on_loopback() -> None:
    assert host_settings({"no_proxy": "localhost", "NO_PROXY": "127.0.0.1"}).notes == ()


@settings(deadline=None)
@given(st.text(min_size=8).filter(lambda text: text.isalnum()))
def test_a_password_never_escapes_redaction(password: str) -> None:
    assert password in host_settings({"HTTP_PROXY": f"http://someone:{password}@proxy.example:1"}).redactions


@settings(deadline=None)
@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_no_value_makes_it_raise(value: str) -> None:
    names = ["http_proxy", "PIP_EXTRA_INDEX_URL", "UV_INDEX_X_PASSWORD", "SSL_CERT_FILE"]
    assert set(host_settings(dict.fromkeys(names, value)).env) >= {"http_proxy", "PIP_EXTRA_INDEX_URL"}
