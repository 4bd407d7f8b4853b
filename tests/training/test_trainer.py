"""The training loop: it learns, resumes, ends in time; and the files that it writes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import torch
from safetensors import safe_open

from edm_hloc.base.errors import BusyError, EdmHlocError
from edm_hloc.base.files import FolderLock
from edm_hloc.models.edm import EDM
from edm_hloc.models.types import CONFIGS, MatchOptions
from edm_hloc.models.weights import load
from edm_hloc.training import trainer
from edm_hloc.training.curves import CurveFile, draw_curves, read_curve
from edm_hloc.training.ema import averaged_copy, update_average
from edm_hloc.training.export import export_weights
from edm_hloc.training.sources import SyntheticSource
from edm_hloc.training.step import PairBatch, TrainingStep, initialise
from edm_hloc.training.supervision import Supervision
from edm_hloc.training.trainer import run_training
from tests.training.tools import (
    TINY,
    OneBatch,
    shifted,
    tiny_config,
)

GOLDEN = Path(__file__).parents[1] / "golden"


def test_average_includes_statistics_and_counts() -> None:
    model = EDM(TINY)
    average = averaged_copy(model)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    before = {k: v.clone() for k, v in average.state_dict().items()}
    update_average(average, model, decay=0.9, step=10**6)
    for name, value in average.state_dict().items():
        step = 0.1 if value.is_floating_point() else 1
        torch.testing.assert_close(value, before[name] + step)
    assert not average.training
    update_average(average, model, decay=0.9, step=0)  # early: nearly a copy
    torch.testing.assert_close(
        average.state_dict()["backbone.bn1.running_mean"],
        before["backbone.bn1.running_mean"] + 0.1 + 0.9 * 0.9,
    )


def test_export_has_the_names_of_the_format(tmp_path: Path) -> None:
    model = EDM(CONFIGS["edm_s"])
    path = tmp_path / "w" / "edm_s.safetensors"
    export_weights(model, path, {"pairs": 12, "seed": 0})
    expected = json.loads((GOLDEN / "edm_s_state.json").read_text())
    with safe_open(path, "pt") as file:
        assert file.metadata()["pairs"] == "12"
        shapes = {k: list(file.get_tensor(k).shape) for k in file.keys()}  # noqa: SIM118
        dtypes = {file.get_tensor(k).dtype for k in file.keys()}  # noqa: SIM118
    assert shapes == expected
    assert dtypes == {torch.float16, torch.int64}
    assert path.stat().st_size < 6e6
    with torch.no_grad():
        model.backbone.conv1.weight[0] = 1e6
    with pytest.raises(EdmHlocError, match=r"backbone\.conv1\.weight"):
        export_weights(model, path, {})
    assert list(path.parent.iterdir()) == [path]


def test_curves_drop_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    curve = CurveFile(tmp_path / "c.csv", 0)
    for step in range(1, 6):
        curve.add({"step": step, "loss": step / 3})
    CurveFile(tmp_path / "c.csv", 3).add({"step": 4, "loss": 9.0})
    rows = read_curve(tmp_path / "c.csv")
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    assert rows[-1]["loss"] == 9.0


def test_curves_outlive_a_resumption_that_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.csv"
    path.write_text("step,loss\n1,0.5\n2,0.25\n3,0.125\n")
    before = path.read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("csv.DictWriter.writerow", stop)
        with pytest.raises(KeyboardInterrupt):
            CurveFile(path, 2)
    assert path.read_bytes() == before


def test_picture_of_the_curves(tmp_path: Path) -> None:
    columns = ("loss", "coarse_precision", "coarse_recall", "fine_error")
    other = ("learning_rate", "pairs_per_s")
    training, validation = (CurveFile(tmp_path / f"{n}.csv", 0) for n in ("training", "validation"))
    draw_curves(tmp_path)  # nothing to show yet
    for step in range(3):
        counts = {"step": step, "pairs": 8 * step}
        training.add({**counts, **dict.fromkeys(columns + other, 1.0 / (step + 1))})
        validation.add({**counts, "fine_error_64x64": float("nan"), "matches_64x64": 3.0})
    draw_curves(tmp_path)
    assert cv2.imread(str(tmp_path / "curves.png")).std() > 5


class FewBatches:
    """A source that gives one of a few batches, chosen by the seed."""

    def __init__(self, batches: list[PairBatch]) -> None:
        self._batches = batches

    def batch(self, pairs: int, height: int, width: int, seed: int) -> PairBatch:
        return self._batches[seed % len(self._batches)]


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edm_hloc.training.trainer.draw_curves", lambda directory: None)


@pytest.fixture(scope="module")
def few(scenes: SyntheticSource) -> FewBatches:
    return FewBatches([scenes.batch(2, 64, 64, seed) for seed in range(3)])


@pytest.mark.slow
def test_overfits_one_batch(scenes: SyntheticSource) -> None:
    batch = scenes.batch(2, 64, 64, 5)
    config = tiny_config(fine_matches=48, true_matches=48, position_scaling=0.0)
    torch.manual_seed(0)
    model = EDM(dataclasses.replace(TINY, widths=(8, 16, 32, 32, 32)))
    initialise(model)
    step = TrainingStep(model, config)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    first, last = None, {}
    for i in range(50):
        loss, last = step(batch, 1.0, i)
        first = last if first is None else first
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert first is not None
    assert float(last["coarse_recall"]) > 0.95
    assert float(last["loss_coarse"]) < 0.05 * float(first["loss_coarse"])
    assert float(last["fine_error"]) < 0.3 * float(first["fine_error"])


def test_confident_twins_of_what_is_not_seen_are_unlearnt(scenes: SyntheticSource) -> None:
    """An image and itself as a twin of other things, which lie outside it: no cell has a match."""
    image = scenes.batch(2, 96, 96, 3).image0
    truth = Supervision(
        *(torch.cat([t, t]) for t in shifted(500, size=(96, 96))[:6]), *2 * [(12, 12)]
    )
    assert not truth.visible0.any()
    batch = PairBatch(image, image, truth)
    torch.manual_seed(0)
    model = EDM(TINY)
    initialise(model)
    blind, _ = TrainingStep(model, tiny_config())(batch, 1.0, 0)
    assert blind == 0  # the focal loss sees nothing of it
    step = TrainingStep(model, tiny_config(wrong_weight=3.0))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for i in range(24):
        loss, figures = step(batch, 1.0, i)
        assert float(loss.detach()) == pytest.approx(3 * float(figures["loss_wrong"]))
        losses.append(float(figures["loss_wrong"]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > 0.01
    assert losses[-1] < 0.3 * losses[0]


def states_equal(a: EDM, b: EDM) -> bool:
    other = b.state_dict()
    return all(torch.equal(v, other[k]) for k, v in a.state_dict().items())


@pytest.mark.usefixtures("_no_pictures")
def test_resuming_equals_running_through(few: FewBatches, tmp_path: Path) -> None:
    config = tiny_config()
    through = run_training(config, tmp_path / "a", source=few, accelerator="cpu", devices=1)
    run_training(
        config, tmp_path / "b", source=few, accelerator="cpu", devices=1, stop_after_steps=4
    )
    (tmp_path / "b" / ".checkpoint.pt.tmp").write_bytes(b"killed while writing")
    resumed = run_training(config, tmp_path / "b", source=few, accelerator="cpu", devices=1)
    assert resumed.steps == through.steps == 6
    assert resumed.pairs == through.pairs
    assert states_equal(through.model, resumed.model)
    curves = [read_curve(tmp_path / d / "training.csv") for d in "ab"]
    assert [r["step"] for r in curves[0]] == [1, 2, 3, 4, 5, 6]
    assert [r["loss"] for r in curves[0]] == [r["loss"] for r in curves[1]]
    assert str(through.validation) == str(resumed.validation)  # there may be NaN
    assert set(through.validation) >= {"coarse_precision_96x64", "fine_error_96x64"}
    # A run with other settings is refused, a longer run continues.
    with pytest.raises(EdmHlocError, match="seed"):
        run_training(dataclasses.replace(config, seed=3), tmp_path / "b", source=few)
    longer = dataclasses.replace(config, steps=7)
    assert run_training(longer, tmp_path / "b", source=few, accelerator="cpu").steps == 7
    # Another run may start from its weights.
    other = dataclasses.replace(config, seed=3, steps=1, learning_rate=0.0, ema=0.0)
    other = dataclasses.replace(other, initial=str(tmp_path / "a" / "checkpoint.pt"))
    started = run_training(other, tmp_path / "c", source=few, accelerator="cpu")
    with safe_open(tmp_path / "c" / "weights.safetensors", "pt") as file:
        assert file.metadata()["pairs"] == str(through.pairs + started.pairs)
        assert json.loads(file.metadata()["training"])["initial"] == "checkpoint.pt"
        assert str(tmp_path) not in str(file.metadata())  # weights are given away
    kept = dict(through.model.named_parameters())
    assert all(torch.allclose(v, kept[k], atol=0.1) for k, v in started.model.named_parameters())


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_run_that_is_asked_to_end_saves_the_step_at_work(
    few: FewBatches,
    tmp_path: Path,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(checkpoints=0)
    asked = []

    def update(average: EDM, model: EDM, decay: float, step: int) -> None:
        update_average(average, model, decay, step)
        if step == 2 and not asked:
            asked.append(number)
            os.kill(os.getpid(), number)

    monkeypatch.setattr("edm_hloc.training.trainer.update_average", update)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        run_training(config, tmp_path / "a", source=few, accelerator="cpu", devices=1)
    assert signal.getsignal(number) == before
    assert "saves it" in capfd.readouterr().err
    assert [r["step"] for r in read_curve(tmp_path / "a" / "training.csv")] == [1, 2, 3]
    resumed = run_training(config, tmp_path / "a", source=few, accelerator="cpu", devices=1)
    through = run_training(config, tmp_path / "b", source=few, accelerator="cpu", devices=1)
    assert [r["step"] for r in read_curve(tmp_path / "a" / "training.csv")] == [1, 2, 3, 4, 5, 6]
    assert states_equal(through.model, resumed.model)


@pytest.mark.usefixtures("_no_pictures")
def test_the_fine_stage_alone_is_trained(few: FewBatches, tmp_path: Path) -> None:
    run_training(tiny_config(), tmp_path / "a", source=few, accelerator="cpu", devices=1)
    initial = str(tmp_path / "a" / "checkpoint.pt")
    config = tiny_config(trained="fine", initial=initial, steps=30, learning_rate=1e-2)
    result = run_training(config, tmp_path / "b", source=few, accelerator="cpu", devices=1)
    before = torch.load(initial, weights_only=True)["average"]
    after = result.model.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert {key.partition(".")[0] for key in changed} == {"fine_matching"}
    rows = read_curve(tmp_path / "b" / "training.csv")
    first, last = (float(rows[i]["loss_fine"]) for i in (0, -1))
    assert last < first - 0.2


@pytest.mark.usefixtures("_no_pictures")
def test_what_is_loaded_is_the_network_that_was_trained(few: FewBatches, tmp_path: Path) -> None:
    changes = {"attention_scale": 10.0, "temperature": 0.2, "bins": 8, "bidirectional": False}
    network = dataclasses.replace(TINY, layers=("self", "cross"), train_size=832, **changes)
    config = tiny_config(model=network, steps=1, threshold=0.3, validations=0)
    trained = run_training(config, tmp_path, source=few, accelerator="cpu").model
    loaded, info = load(tmp_path / "weights.safetensors")
    assert loaded.config == network
    assert info.threshold == 0.3
    batch = few.batch(2, 64, 64, 0)
    with torch.no_grad():
        matches = [
            m.match(m.encode(batch.image0), m.encode(batch.image1), MatchOptions(20, 0.0))
            for m in (trained.half().float(), loaded)  # they are stored in half precision
        ]
    for expected, found in zip(*matches, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_pictures")
def test_the_pixel_frame_is_stored_and_compared(
    few: FewBatches, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(steps=1, validations=0, origin="corner")
    run_training(config, tmp_path / "a", source=few, accelerator="cpu")
    weights = tmp_path / "a" / "weights.safetensors"
    with safe_open(weights, "pt") as file:
        assert file.metadata()["origin"] == "corner"
    assert load(weights)[1].origin == "corner"
    assert json.loads((tmp_path / "a" / "config.json").read_text())["origin"] == "corner"
    state = torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)
    assert json.loads(state["config"])["origin"] == "corner"
    # A run in the other frame does not continue it, but may start from its weights.
    centre = dataclasses.replace(config, origin="centre")
    with pytest.raises(EdmHlocError, match=r"other settings \(origin\)"):
        run_training(centre, tmp_path / "a", source=few, accelerator="cpu")
    for name in ("checkpoint.pt", "weights.safetensors"):
        initial = str(tmp_path / "a" / name)
        same = dataclasses.replace(config, initial=initial)
        run_training(same, tmp_path / f"same-{name}", source=few, accelerator="cpu")
        assert "pixel frame" not in caplog.text
        other = dataclasses.replace(centre, initial=initial)
        run_training(other, tmp_path / f"other-{name}", source=few, accelerator="cpu")
        assert "at the corner of the top-left pixel; this run moves it to the centre" in caplog.text
        assert "--set origin=corner" in caplog.text
        caplog.clear()
    # Files of before the setting are in the centre frame; others may not say which.
    for metadata, message in (({"edm_hloc": "0.1.0"}, ""), ({}, "does not say in which pixel")):
        path = tmp_path / "initial.safetensors"
        export_weights(EDM(TINY), path, metadata)
        initialised = dataclasses.replace(centre, initial=str(path))
        run_training(initialised, tmp_path / f"b{len(metadata)}", source=few, accelerator="cpu")
        assert message in caplog.text
        assert bool(message) == ("pixel frame" in caplog.text)


@pytest.mark.usefixtures("_no_pictures")
def test_weights_of_another_network_are_no_start(few: FewBatches, tmp_path: Path) -> None:
    network = dataclasses.replace(TINY, attention_scale=10.0)
    first = tiny_config(model=network, steps=1, validations=0)
    run_training(first, tmp_path / "a", source=few, accelerator="cpu")
    other = dataclasses.replace(network, train_size=832)  # a run at another size may go on
    for name in ("checkpoint.pt", "weights.safetensors"):
        initial = str(tmp_path / "a" / name)
        with pytest.raises(EdmHlocError, match=r"--set 'model=\{\"attention_scale\": 10\.0\}'"):
            run_training(tiny_config(initial=initial), tmp_path / "b", source=few)
        config = dataclasses.replace(first, model=other, initial=initial)
        run_training(config, tmp_path / name, source=few, accelerator="cpu")


@pytest.mark.usefixtures("_no_pictures")
def test_clock_budget_ends_the_run_and_anneals(few: FewBatches, tmp_path: Path) -> None:
    config = tiny_config(steps=None, minutes=0.03, validations=0)
    start = time.monotonic()
    run_training(config, tmp_path, source=few, accelerator="cpu", devices=1)
    assert time.monotonic() - start < 30
    rates = [r["learning_rate"] for r in read_curve(tmp_path / "training.csv")]
    assert rates[-1] < 0.5 * max(rates)


class Broken(OneBatch):
    def batch(self, pairs: int, height: int, width: int, seed: int) -> PairBatch:
        return self._batch._replace(image0=self._batch.image0 * float("nan"))


@pytest.mark.usefixtures("_no_pictures")
def test_divergence_is_an_error_and_does_not_spoil_the_weights(
    few: FewBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edm_hloc.training.trainer.MAX_SKIPPED", 3)
    source = Broken(few.batch(2, 64, 64, 0))
    with pytest.raises(EdmHlocError, match="diverged"):
        run_training(
            tiny_config(checkpoints=6), tmp_path, source=source, accelerator="cpu", devices=1
        )
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    parameters = dict(EDM(TINY).named_parameters())
    assert all(torch.isfinite(state["model"][name]).all() for name in parameters)


class OneInfinity(FewBatches):
    """Its second batch has an infinite pixel."""

    def __init__(self, batches: list[PairBatch]) -> None:
        super().__init__(batches)
        self.drawn = 0

    def batch(self, pairs: int, height: int, width: int, seed: int) -> PairBatch:
        batch = super().batch(pairs, height, width, seed)
        self.drawn += 1
        if self.drawn == 2:
            image = batch.image0.clone()
            image[0, 0, 0, 0] = float("inf")
            batch = batch._replace(image0=image)
        return batch


@pytest.mark.usefixtures("_no_pictures")
def test_a_skipped_step_leaves_the_statistics(few: FewBatches, tmp_path: Path) -> None:
    source = OneInfinity([few.batch(2, 64, 64, seed) for seed in range(3)])
    config = tiny_config(validations=0)
    result = run_training(config, tmp_path, source=source, accelerator="cpu", devices=1)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["progress"]["skipped"] == 1
    assert all(v.isfinite().all() for v in result.model.state_dict().values())


def test_what_is_not_known_is_no_zero_in_the_curves() -> None:
    means = trainer._RunningMeans()
    for error in (2.0, float("nan"), float("inf"), 4.0):
        means.add({"error": torch.tensor(error), "none": torch.tensor(float("nan"))})
    assert means.values()["error"] == 3.0
    assert str(means.values()["none"]) == "nan"


@pytest.mark.usefixtures("_no_pictures")
def test_no_checkpoint_is_written_that_is_not_finite(
    few: FewBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def update(average: EDM, model: EDM, decay: float, step: int) -> None:
        update_average(average, model, decay, step)
        if step == 3:
            model.backbone.bn1.running_var[0] = float("nan")

    monkeypatch.setattr("edm_hloc.training.trainer.update_average", update)
    config = tiny_config(checkpoints=6, validations=0)
    with pytest.raises(EdmHlocError, match=r"diverged at step 4.*backbone\.bn1\.running_var"):
        run_training(config, tmp_path, source=few, accelerator="cpu", devices=1)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["progress"]["step"] == 3


@pytest.mark.usefixtures("_no_pictures")
def test_a_run_needs_its_folder_for_itself(few: FewBatches, tmp_path: Path) -> None:
    config = tiny_config(steps=1, validations=0)
    with FolderLock(tmp_path), pytest.raises(BusyError, match="Another process"):
        run_training(config, tmp_path, source=few, accelerator="cpu", devices=1)
    for name in ("config.json", "training.csv", "weights.safetensors"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text('{"my": "notes"}')
        with pytest.raises(EdmHlocError, match=f"holds {name} but no checkpoint"):
            run_training(config, folder / ".", source=few, accelerator="cpu", devices=1)
        assert (folder / name).read_text() == '{"my": "notes"}'
    # A run that was killed before its first checkpoint begins again.
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "config.json").write_text(config.to_json())
    (killed / "training.csv").write_text("step,loss\n1,0.5\n")
    assert run_training(config, killed, source=few, accelerator="cpu", devices=1).steps == 1


@pytest.mark.usefixtures("_no_pictures")
def test_the_validation_pairs_are_not_of_the_time_of_training(
    few: FewBatches, tmp_path: Path
) -> None:
    class Slow(FewBatches):
        def batch(self, pairs: int, height: int, width: int, seed: int) -> PairBatch:
            if (height, width) == (64, 96):  # of validation
                time.sleep(2)
            return super().batch(pairs, height, width, seed)

    source = Slow([few.batch(2, 64, 64, 0)])
    config = tiny_config(steps=None, minutes=1.0)
    run_training(config, tmp_path, source=source, accelerator="cpu", devices=1, stop_after_steps=1)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert 0 < state["progress"]["seconds"] < 2


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize("residual", ["laplace", "l1"])
def test_every_parameter_that_is_trained_has_a_gradient(
    few: FewBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, residual: str
) -> None:
    """Another process would wait for the gradient of one that has none."""
    without: list[str] = []

    def update(average: EDM, model: EDM, decay: float, step: int) -> None:
        named = model.named_parameters()
        without.extend(name for name, p in named if p.requires_grad and p.grad is None)

    monkeypatch.setattr("edm_hloc.training.trainer.update_average", update)
    config = tiny_config(steps=1, validations=0, residual=residual, refined="image1")
    run_training(config, tmp_path, source=few, accelerator="cpu", devices=1)
    assert without == []


@pytest.mark.usefixtures("_no_pictures")
def test_a_start_from_weights_by_name_and_from_the_authors_format(
    few: FewBatches, tmp_path: Path
) -> None:
    shipped, _ = load("edm_s")
    path = tmp_path / "edm_outdoor.ckpt"
    torch.save({"state_dict": {f"matcher.{k}": v for k, v in shipped.state_dict().items()}}, path)
    config = tiny_config(model=CONFIGS["edm_s"], steps=1, learning_rate=0.0, validations=0)
    for i, initial in enumerate(("edm_s", str(path))):
        begun = dataclasses.replace(config, initial=initial)
        result = run_training(begun, tmp_path / str(i), source=few, accelerator="cpu", devices=1)
        expected = dict(shipped.named_parameters())
        for name, value in result.model.named_parameters():
            torch.testing.assert_close(value, expected[name])
    with pytest.raises(EdmHlocError, match="no weights named 'edm_x'"):
        run_training(
            dataclasses.replace(config, initial="edm_x"), tmp_path / "x", source=few, devices=1
        )


@pytest.mark.slow
def test_a_killed_run_continues(tmp_path: Path) -> None:
    """SIGKILL in the middle, then the same command again, without pycolmap and kornia."""
    program = (
        "import sys\n"
        "sys.modules['pycolmap'] = sys.modules['kornia'] = None\n"
        "from edm_hloc.training.command import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", program, "edm_s", "--out", str(tmp_path), "--steps", "40"]
    command += ["--accelerator", "cpu", "--devices", "1", "--threads", "1"]
    command += ["--set", "validations=0", "--set", "checkpoints=20"]
    command += ["--set", 'stages=[{"until": 1.0, "sides": [64, 64], "pixels": 8192}]']
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 300
    while not (tmp_path / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["progress"]["step"]
    assert 0 < step < 40
    subprocess.run(command, check=True, timeout=300)
    steps = [r["step"] for r in read_curve(tmp_path / "training.csv")]
    assert steps == list(range(1, 41))
