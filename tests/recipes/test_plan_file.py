from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssmvision.cli import main
from ssmvision.errors import UserError
from ssmvision.recipes.planning import measure
from ssmvision.recipes.planning.command import make_plan, run
from ssmvision.recipes.planning.config import PlanConfig
from ssmvision.recipes.planning.fingerprint import Fingerprint, Intensities
from ssmvision.recipes.planning.plan import Plan
from ssmvision.recipes.planning.plan_file import plan_text, read_plan
from ssmvision.recipes.segmentation.datalist import Case, Dataset
from tests.recipes.synthetic import nnunet_folder

CT = Intensities(60.0, 60.0, 100.0, -900.0, 2000.0, -300.0, 300.0)
DATASET = Dataset(
    Path("Dataset007_Liver/dataset.json"),
    ("CT",),
    {"background": 0, "liver": 1},
    tuple(Case(str(i), ()) for i in range(20)),
)
# Coarse along x: the order of the axes changes; large enough for a low-resolution stage.
FINGERPRINT = Fingerprint(((0.8, 0.8, 2.5),) * 20, ((512, 512, 240),) * 20, (CT,), 1.0)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(PlanConfig(Path()), DATASET, FINGERPRINT)


def test_plan_reads_back_as_it_was(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(plan_text(plan))
    assert read_plan(path) == plan
    assert plan.axes == ("x", "z", "y")
    assert (plan.transpose_forward, plan.transpose_backward) == ((2, 0, 1), (1, 2, 0))
    assert set(plan.configurations) == {"2d", "3d_lowres", "3d_fullres"}
    assert plan.cascade["3d_cascade_fullres"].previous_stage == "3d_lowres"


def test_plan_is_readable(plan: Plan) -> None:
    text = plan_text(plan)
    assert json.loads(text)["configurations"]["3d_fullres"]["patch_size"] == list(
        plan.configurations["3d_fullres"].patch_size
    )
    assert max(map(len, text.splitlines())) <= 130
    assert '"strides": [[1, 1, 1], [1, 2, 2],' in text


def fullres(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = values["configurations"]["3d_fullres"]
    return found


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v.pop("format"), r"format is None, not 'ssmvision plan'; make a plan with"),
        (lambda v: v.update(version=2), r"version is 2, this program reads 1; make the plan again"),
        (lambda v: v.update(axis=[]), r"unknown key 'axis'; did you mean 'axes'\?"),
        (lambda v: v.pop("labels"), r"the key 'labels' is missing; add it"),
        (lambda v: v.update(network="UNet"), r"network is 'UNet'; use one of UMambaBot, UMambaEnc"),
        (lambda v: v.update(transpose_forward=[0, 0, 1]), r"transpose_forward is \[0, 0, 1\]; give the numbers 0, 1"),
        (lambda v: v.update(axes=["z", "y", "x"]), r"axes is \['z', 'y', 'x'\]; give \['x', 'z', 'y'\]"),
        (lambda v: v.update(labels={"background": 0, "liver": 2}), r"labels is .*ids from 0"),
        (lambda v: v.update(foreground_intensities=[]), r"normalization is \['ct'\]; give zscore"),
        (lambda v: v["configurations"].pop("3d_lowres"), r"cascade\.3d_cascade_fullres is 3d_lowres; give one of"),
        (lambda v: fullres(v).update(batch_size=0), r"3d_fullres\.batch_size is 0; give 1 or more"),
        (lambda v: fullres(v).update(batch_size=2.5), r"3d_fullres\.batch_size is 2\.5; give a whole number"),
        (lambda v: fullres(v).update(batch_dice=1), r"3d_fullres\.batch_dice is 1; give true or false"),
        (lambda v: fullres(v).update(spacing_mm=[1, 1]), r"3d_fullres\.spacing_mm is \[1\.0, 1\.0\]; give 3 numbers"),
        (lambda v: fullres(v)["spacing_mm"].__setitem__(1, float("nan")), r"spacing_mm\[1\] is nan; give a finite"),
        (lambda v: fullres(v)["patch_size"].__setitem__(1, 100), r"patch_size is .*multiples of .*such as"),
        (lambda v: fullres(v)["features_per_stage"].pop(), r"features_per_stage is .*6 entries"),
        (lambda v: fullres(v)["strides"].__setitem__(1, [2, 2]), r"strides is .*3 numbers above 0 per stage"),
        (lambda v: fullres(v)["kernel_sizes"].__setitem__(1, [2, 3, 3]), r"kernel_sizes is .*3 odd numbers"),
        (lambda v: fullres(v).update(normalization=["hu"]), r"normalization\[0\] is 'hu'; use one of ct, zscore"),
    ],
)
def test_wrong_edits_are_refused_with_place_value_and_fix(
    plan: Plan, tmp_path: Path, edit: Callable[[dict[str, Any]], Any], message: str
) -> None:
    values = json.loads(plan_text(plan))
    edit(values)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"^{path}: .*{message}"):
        read_plan(path)


def test_a_right_edit_is_taken(plan: Plan, tmp_path: Path) -> None:
    values = json.loads(plan_text(plan))
    fullres(values).update(batch_size=4, patch_size=[64, 64, 64])
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(values))
    assert read_plan(path).configurations["3d_fullres"].patch_size == (64, 64, 64)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "DRAWS", 1000)
    data = nnunet_folder(tmp_path / "Dataset001_Ball", [(16, 20, 12), (18, 20, 12)])
    out, measured = tmp_path / "plan.json", tmp_path / "fingerprint.json"
    words = ["plan", str(data), "--workers", "1", "--out", str(out)]
    assert main([*words, "--save_fingerprint", str(measured)]) == 0
    shown = capsys.readouterr()
    assert "3d_fullres" in shown.out
    assert f"wrote {out}" in shown.err
    plan = read_plan(out)
    assert (plan.dataset, plan.training_cases, plan.budget, plan.vram_gb) == ("Dataset001_Ball", 2, "default", 8.0)
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    again = ["--overwrite", "--fingerprint", str(measured)]
    assert main([*words, *again]) == 0
    assert read_plan(out) == plan
    assert "no image was opened" in capsys.readouterr().err
    assert main([*words, *again, "--budget", "resenc_l", "--network", "UMambaEnc", "--vram", "12"]) == 0
    other = read_plan(out)
    assert (other.budget, other.network, other.vram_gb) == ("resenc_l", "UMambaEnc", 12.0)
    assert other.configurations["3d_fullres"].n_conv_per_stage[:3] == (1, 3, 4)


def test_given_spacing_is_x_y_z(tmp_path: Path) -> None:
    plan = make_plan(PlanConfig(Path(), spacing_mm=(3.0, 1.0, 2.0)), DATASET, FINGERPRINT)
    spacing = dict(zip(plan.axes, plan.configurations["3d_fullres"].spacing_mm, strict=True))
    assert spacing == {"x": 3.0, "y": 1.0, "z": 2.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vram": 0.0}, r"vram: 0\.0 is not possible; give GB above 0"),
        ({"spacing_mm": (1.0, 1.0)}, r"spacing_mm: \[1\.0, 1\.0\] does not fit; give 3 sizes"),
        ({"orientation": "RAR"}, r"orientation: 'RAR' is no axis code"),
        ({"workers": -2}, r"workers: -2 is not possible"),
        ({"mixer": "mambo"}, r"mixer: 'mambo' is unknown; use one of mamba, .*, none"),
        ({"mixer": "vssd", "network": "MedNeXt"}, r"MedNeXt has no state-space layers for mixer vssd"),
    ],
)
def test_impossible_settings(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    data = nnunet_folder(tmp_path, [(6, 6, 6)])
    with pytest.raises(UserError, match=message):
        run(PlanConfig(data, tmp_path / "plan.json", **settings))


def test_ct_without_labels_cannot_be_planned() -> None:
    empty = Fingerprint(FINGERPRINT.spacings, FINGERPRINT.shapes_after_crop, (), 1.0)
    with pytest.raises(UserError, match=r"dataset\.json: 0 labelled voxels .* label a case"):
        make_plan(PlanConfig(Path()), DATASET, empty)


def test_fingerprint_of_another_dataset_is_refused(tmp_path: Path) -> None:
    data = nnunet_folder(tmp_path / "data", [(6, 6, 6)])
    path = tmp_path / "fingerprint.json"
    path.write_text(json.dumps(FINGERPRINT.to_json()))
    with pytest.raises(UserError, match=r"20 spacings and 20 shapes, but the dataset has 1 training cases"):
        run(PlanConfig(data, tmp_path / "plan.json", fingerprint=path))
    path.write_text("{}")
    with pytest.raises(UserError, match=r"fingerprint\.json: the key 'spacings' is missing"):
        run(PlanConfig(data, tmp_path / "plan.json", fingerprint=path))
