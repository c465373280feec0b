"""The choice of a backend: what the call and the environment ask for, and when the choice is told."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator

import pytest

from ssmvision.kernels import registry
from ssmvision.kernels.registry import Backend, Request

OP = "an_op_under_test"


def never(*_: object) -> None:
    raise AssertionError("backends are chosen here, not run")


@pytest.fixture
def op() -> Iterator[str]:
    """Like the scan on a machine whose compiler is missing, without a "triton" of its own."""
    for name, priority, slow_on in (("cuda", 30, ()), ("chunked", 10, ("cuda",)), ("reference", 0, ())):
        reason = "no compiler" if name == "cuda" else None
        slow = name == "reference"
        registry.register(OP, Backend(name, priority, lambda _, r=reason: r, never, never, slow, slow_on))  # type: ignore[misc]
    yield OP
    registry._OPS.pop(OP)
    registry._choose.cache_clear()


def test_the_variable_may_name_every_backend_of_every_op() -> None:
    for name in ("branch", "instance_norm", "s4nd", "selective_scan", "projected_scan", "ssd"):
        importlib.import_module(f"ssmvision.kernels.{name}.op")
    assert {backend.name for op in registry._OPS.values() for backend in op.backends} <= set(registry.NAMES)


def test_the_variable_leaves_ops_alone_that_lack_the_name(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSMVISION_BACKEND", "triton")
    assert registry.choose(op, Request()).name == "chunked"
    monkeypatch.setenv("SSMVISION_BACKEND", "-triton,-chunked")
    assert registry.choose(op, Request()).name == "reference"
    monkeypatch.setenv("SSMVISION_BACKEND", "triton,reference")
    assert registry.choose(op, Request()).name == "reference"


def test_a_name_that_nobody_has_is_an_error(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSMVISION_BACKEND", "-trition")
    with pytest.raises(ValueError, match="SSMVISION_BACKEND=-trition: an_op_under_test has no backend '-trition'"):
        registry.choose(op, Request())
    with pytest.raises(
        ValueError, match="backend=triton: an_op_under_test has no backend 'triton'; choose from cuda, "
    ):
        registry.choose(op, Request(), "triton")


def test_the_call_wins_over_the_variable(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSMVISION_BACKEND", "reference")
    assert registry.choose(op, Request(), "chunked").name == "chunked"
    with pytest.raises(registry.NoBackendError, match="cuda: no compiler; chunked: backend=cuda asks for another"):
        registry.choose(op, Request(), "cuda")


def test_what_is_slow_on_a_device_is_told_there_once(op: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ssmvision"):
        registry.choose(op, Request("cpu"))
        registry.choose(op, Request("cuda:0"), "chunked")
        assert not caplog.records
        for _ in range(2):
            assert registry.choose(op, Request("cuda:0")).name == "chunked"
    (record,) = caplog.records
    assert record.getMessage() == f"{op} on cuda:0 runs on the slow backend 'chunked' (cuda: no compiler)"
