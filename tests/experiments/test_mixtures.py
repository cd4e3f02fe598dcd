"""Random sub-networks are exact and as large as predicted; what is recorded is not done again."""

import json
from pathlib import Path

import pytest

from experiments.benchmarks.mixtures import Config, run
from experiments.common.errors import ExperimentError


def test_random_sub_networks_are_exact_and_as_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Config(("demo_net",), num=1, output=tmp_path))
    results = tmp_path / "results.json"
    first = json.loads(results.read_text())
    (mixture,) = first["demo_net"]
    assert mixture["difference"] < 1e-10
    assert mixture["params"] == mixture["said_params"] and mixture["macs"] == mixture["said_macs"]
    assert (tmp_path / "table.md").read_text().splitlines()[-1].startswith("| demo_net |            1 |")

    # What is recorded is neither done again nor forgiven.
    mixture["said_macs"] -= 1
    results.write_text(json.dumps(first))
    with pytest.raises(ExperimentError, match="demo_net"):
        run(Config(("demo_net",), num=2, output=tmp_path))
    before, after = json.loads(results.read_text())["demo_net"]
    assert before == mixture
    assert after["macs"] != mixture["macs"]
    assert "demo_net" in capsys.readouterr().out
