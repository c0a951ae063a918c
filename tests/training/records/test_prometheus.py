"""What a Prometheus server would read of a run."""

import socket
import urllib.request

import pytest
from processes import free_port
from runs import run_config

from dongwu_jax.errors import UserError
from dongwu_jax.training.records.reports import PrometheusReport, open_reports

pytest.importorskip("prometheus_client")


def scrape(port: int) -> dict[str, float]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    text = opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    pairs = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


def test_gauges_hold_the_latest_values_of_each_metric():
    port = free_port()
    report = PrometheusReport(port, "127.0.0.1", total_steps=50)
    report.write(10, {"loss": 3.0, "mfu": 0.5})
    report.write(10, {"validation_loss": 3.25})
    report.write(11, {"loss": 2.5, "mfu": 0.5})
    read = scrape(port)
    report.close()
    assert read["dongwu_jax_step"] == 11
    assert read["dongwu_jax_total_steps"] == 50
    assert read["dongwu_jax_loss"] == 2.5
    assert read["dongwu_jax_validation_loss"] == 3.25
    with pytest.raises(OSError, match="refused"):
        scrape(port)


def test_a_configuration_opens_it(tmp_path):
    port = free_port()
    reports = open_reports(run_config(tmp_path, logging={"prometheus_port": port}), 0, False)
    reports.write(2, {"loss": 1.0})
    assert scrape(port)["dongwu_jax_step"] == 2
    reports.close()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))


def test_a_taken_port_is_said():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"logging.prometheus_port={port}: cannot listen"):
            PrometheusReport(port, "127.0.0.1", total_steps=1)
