import json

import pytest

from rewardproof.stages.demo import Demo, run


@pytest.mark.slow
def test_demo_tells_its_whole_story_on_a_tiny_model(base_dir, tmp_path):
    settings = Demo(model=str(base_dir), layers="top:1", pairs=96, epochs=1, members=2, merge_steps=5, prompts=3, evaluated=6)
    said: list[str] = []
    report = run(settings, tmp_path / "demo", say=said.append)
    results = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert set(results["best_of_n"]) == {"dense", "warm", "umm"}
    assert results["best_of_n"]["umm"]["ns"] == [1, 2, 4, 8, 16, 32]
    assert set(results["gold_gain_over_dense"]) == {"warm", "umm"}
    winner = max(results["best_of_n"], key=lambda name: results["best_of_n"][name]["gold"][-1]["estimate"])
    assert report.headline.startswith(f"First place for {winner}:")
    assert [line.split(":")[0] for line in said[:3]] == ["dense", "warm", "umm"]
    page = (tmp_path / "demo" / "report.html").read_text()
    assert winner in page
    assert page.count("<img") >= 4
    for recipe in ("dense", "warm", "umm"):
        assert (tmp_path / "demo" / recipe / "model" / "model.safetensors").is_file()
