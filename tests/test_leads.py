"""bench/leads.py: that each lead is a config of its own, and the table of what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import leads


def test_each_lead_is_another_config_on_the_same_budget() -> None:
    configs = {lead: leads.config_of(lead, seed=3, smoke=False) for lead in leads.LEADS}
    assert len(set(configs.values())) == len(configs)
    assert len({leads.folder_of(Path(), lead, 3, False).name for lead in configs}) == len(configs)
    for lead, config in configs.items():
        cost = config.train.epochs * sum(share * t for share, t in config.train.stages(config.model.steps))
        assert cost == leads.EPOCHS * leads.STEPS, lead
        assert config.train.seed == 3


def test_table(tmp_path: Path) -> None:
    for seed, error in enumerate((0.03, 0.04)):
        write(tmp_path, seed, error)
    heading, _, line = leads.table(leads.measured(tmp_path, smoke=False)).splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:3] == ["base", "2", "0.0350 ± 0.0071"]
    assert len(cells) == heading.count("|") - 1


def write(out: Path, seed: int, error: float, smoke: bool = False) -> Path:
    """What a measured base leaves."""
    config = leads.config_of(leads.BASE, seed, smoke).to_dict()
    row = dict.fromkeys(leads.COLUMNS, 1.0) | {"lead": leads.BASE, "seed": seed, "mse": error, "config": config}
    path = leads.folder_of(out, leads.BASE, seed, smoke) / leads.MEASURED
    path.parent.mkdir()
    path.write_text(json.dumps(row))
    return path


def test_what_was_measured_of_another_config_is_not_in_the_table(tmp_path: Path) -> None:
    path = write(tmp_path, 0, 0.03)
    write(tmp_path, 0, 0.5, smoke=True)
    assert leads.is_measured(tmp_path, leads.BASE, 0, smoke=False)
    assert [row["mse"] for row in leads.measured(tmp_path, smoke=False)[leads.BASE]] == [0.03]
    row = json.loads(path.read_text())
    del row["config"]["train"]["flip"]  # measured before there was the option
    path.write_text(json.dumps(row))
    assert leads.is_measured(tmp_path, leads.BASE, 0, smoke=False)
    row["config"]["model"]["latent"] += 1  # an older preset's
    path.write_text(json.dumps(row))
    assert not leads.is_measured(tmp_path, leads.BASE, 0, smoke=False)
    assert leads.measured(tmp_path, smoke=False) == {}
    row["config"]["model"]["colour"] = True  # an option that is no more
    path.write_text(json.dumps(row))
    assert leads.measured(tmp_path, smoke=False) == {}


def test_what_is_trained_and_measured_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own seed, which is not that of the noise in the evaluation."""
    monkeypatch.setattr(leads, "DATA", "digits")  # which has no published feature network
    monkeypatch.setattr(leads, "generated", lambda *args, **kwargs: None)
    monkeypatch.setattr(leads, "find_reference", lambda name: (None, ""))
    monkeypatch.setattr(leads, "fad", lambda *args: {"fad_paper": 1.0, "fad_eval": 1.0})
    leads.run_one(tmp_path, leads.BASE, 5, smoke=True)
    (row,) = leads.measured(tmp_path, smoke=True)[leads.BASE]
    assert row["seed"] == 5
    assert 0 < row["mse"] < 4
    assert leads.is_measured(tmp_path, leads.BASE, 5, smoke=True)


def test_without_the_feature_network_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESVAE_FAD_DIR", raising=False)
    monkeypatch.setattr(sys, "argv", ["leads.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="no FAD: set ESVAE_FAD_DIR"):
        leads.main()
