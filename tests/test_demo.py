"""`firth demo`, with less of everything."""

import re

import pytest

from firth import demo
from firth.recipes import Recipe, recipe


def small(_minutes: float) -> Recipe:
    settings = {"training.steps": 20, "training.batch_tokens": 1024}
    return recipe("modern-bert", size="tiny", vocab_size=1000).with_settings(settings)


@pytest.mark.parametrize(("longest", "interval"), [(0.0, "of one seed"), (1e9, "(3 seeds)")])
def test_further_seeds_are_run_where_there_is_time(
    longest: float, interval: str, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(demo, "_recipe", small)
    monkeypatch.setattr(demo, "_LABELS", 100)
    monkeypatch.setattr(demo, "_DEV", 20)
    monkeypatch.setattr(demo, "_STEPS", 20)
    monkeypatch.setattr(demo, "_LONGEST", longest)
    monkeypatch.setattr(demo, "_BLANKS", ("We [MASK] it.",))
    demo.run_demo(tmp_path / "run", minutes=0.1)
    out = capsys.readouterr().out
    rows = re.findall(r"^(pre-trained|the same network from scratch) +(0\.\d{3}) .*$", out, re.M)
    assert [name for name, _ in rows] == ["pre-trained", "the same network from scratch"]
    # Only that both were measured: with so little of everything neither is told from guessing.
    assert all(0 < float(score) < 0.6 for _, score in rows)
    assert out.count(interval) == 2
    assert "We ____ it." in out
    assert "firth fill" in out
    assert (tmp_path / "run" / "model.safetensors").is_file()
