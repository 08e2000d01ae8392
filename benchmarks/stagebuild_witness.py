"""A pytest plugin that writes down when a run came to where, for the benchmarks: put in with ``-p stagebuild_witness``.

Into the file that WITNESS names go, as JSON, ``done``: seconds since the epoch by the name of what was just done;
``seconds``, ``sent`` and ``committed``: what each stage took, the bytes of the source that went into its sandbox, and
those of the checkpoint that it left.
"""

from __future__ import annotations

import json
import os
import time

import pytest

done = {"python and pytest imported": time.time()}
seconds = {}
committed = {}
sent = {}


def pytest_configure():
    done["pytest configured"] = time.time()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionstart():
    yield
    done["engine connected, source read"] = time.time()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection():
    yield
    done["collected, base image found"] = time.time()


def pytest_stagebuild_stage_start(stage):
    done[f"{stage.name}: begun"] = time.time()


def pytest_stagebuild_step(stage, step):
    done[f"{stage}: {step}"] = time.time()


def pytest_stagebuild_checkpoint(checkpoint):
    committed[checkpoint.stage] = checkpoint.size


def pytest_stagebuild_stage_finish(result):
    seconds[result.stage] = result.duration
    if result.sent:
        sent[result.stage] = result.sent.size
    if result.stage != "test":
        done[f"{result.stage}: {result.outcome}"] = time.time()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop():
    yield
    done["test: sandbox removed"] = time.time()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure():
    done["summed up"] = time.time()
    with open(os.environ["WITNESS"], "w", encoding="utf-8") as file:
        json.dump({"done": done, "seconds": seconds, "sent": sent, "committed": committed}, file)
