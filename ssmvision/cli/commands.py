"""The table of sub-commands; adding one is adding a row."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COMMANDS", "Command", "find_command"]

_SEGMENTATION = "ssmvision.recipes.segmentation"
_EVALUATION = "ssmvision.recipes.evaluation"
_CHECKING = "ssmvision.recipes.checking"
_DICOM = "ssmvision.recipes.dicom"
_PLANNING = "ssmvision.recipes.planning"
_PREPROCESSING = "ssmvision.recipes.preprocessing"
_FUSION = "ssmvision.recipes.fusion"
_RESOLUTION = "ssmvision.recipes.resolution"
_CLASSIFICATION = "ssmvision.recipes.classification"
_EXPORT = "ssmvision.recipes.export"
_STUDY = "ssmvision.recipes.study"
_IMAGE_STUDY = "ssmvision.recipes.image_study"
_CLI = "ssmvision.cli"


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        name: one or two words, as typed.
        help: one line.
        config: "module:Class" of a frozen dataclass, light to import; its fields are the command's arguments.
        run: "module:function" taking that dataclass; may be heavy to import.
        positional: required fields are positional arguments instead of options.
        extra: optional dependency group that the command needs, or "".
    """

    name: str
    help: str
    config: str
    run: str
    positional: bool = False
    extra: str = ""


COMMANDS = (
    Command(
        "demo",
        "train and test a small 3D U-Mamba on a real brain template, with a report (CPU, minutes)",
        f"{_SEGMENTATION}.demo_config:DemoConfig",
        f"{_SEGMENTATION}.demo:run",
        extra="demo",
    ),
    Command(
        "check",
        "look at every file of a dataset and list what is wrong, with the fix",
        f"{_CHECKING}.config:CheckConfig",
        f"{_CHECKING}.command:run",
        positional=True,
        extra="recipes",
    ),
    Command(
        "import",
        "make a folder to train on out of DICOM series with contours or segmentations",
        f"{_DICOM}.import_config:ImportConfig",
        f"{_DICOM}.importing:run",
        positional=True,
        extra="dicom",
    ),
    Command(
        "plan",
        "choose voxel size, patch, batch and network from a dataset by nnU-Net's rules",
        f"{_PLANNING}.config:PlanConfig",
        f"{_PLANNING}.command:run",
        positional=True,
        extra="recipes",
    ),
    Command(
        "preprocess",
        "prepare the cases of a dataset once as a plan has them, for trainings to read patches from disk",
        f"{_PREPROCESSING}.config:PreprocessConfig",
        f"{_PREPROCESSING}.command:run",
        positional=True,
        extra="recipes",
    ),
    Command(
        "train",
        "train a segmentation network on your own volumes",
        f"{_SEGMENTATION}.config:TrainConfig",
        f"{_SEGMENTATION}.fold_runs:run",
        extra="recipes",
    ),
    Command(
        "predict",
        "label volumes with a trained network, on each volume's own grid",
        f"{_SEGMENTATION}.config:PredictConfig",
        f"{_SEGMENTATION}.predict:run",
        positional=True,
        extra="recipes",
    ),
    Command(
        "evaluate",
        "score label volumes against reference labels",
        f"{_SEGMENTATION}.config:EvaluateConfig",
        f"{_SEGMENTATION}.evaluate:run",
        positional=True,
        extra="recipes",
    ),
    Command(
        "study",
        "compare networks on every fold of a dataset with several seeds at equal budget, with tables and figures",
        f"{_STUDY}.config:StudyConfig",
        f"{_STUDY}.command:run",
        extra="recipes",
    ),
    Command(
        "align",
        "bring a label map or image onto another volume's grid, and renumber its labels",
        f"{_SEGMENTATION}.align_config:AlignConfig",
        f"{_SEGMENTATION}.align:run",
        positional=True,
        extra="recipes",
    ),
    Command(
        "export",
        "write a trained network as ONNX, torch.export program or MONAI bundle, compared with PyTorch",
        f"{_EXPORT}.config:ExportConfig",
        f"{_EXPORT}.command:run",
        positional=True,
        extra="recipes",
    ),
    Command(
        "validate",
        "predict and score the cases that trainings held out, such as the folds of a cross-validation",
        f"{_EVALUATION}.config:ValidateConfig",
        f"{_EVALUATION}.validate:run",
        positional=True,
        extra="recipes",
    ),
    Command(
        "postprocess",
        "decide on held-out predictions whether to keep only the largest components",
        f"{_EVALUATION}.config:PostprocessConfig",
        f"{_EVALUATION}.postprocess:run",
        positional=True,
        extra="recipes",
    ),
    Command(
        "report",
        "write one HTML file on trainings: scores, spreads, worst cases, curves, settings",
        f"{_EVALUATION}.config:ReportConfig",
        f"{_EVALUATION}.report:run",
        positional=True,
        extra="recipes",
    ),
    Command(
        "fuse",
        "fuse two registered images, volumes, or folders of them, in colour where there is colour",
        f"{_FUSION}.fuse_config:FuseConfig",
        f"{_FUSION}.fuse:run",
        positional=True,
        extra="recipes",
    ),
    Command(
        "fusion train",
        "train a fusion network on your own pairs of images or volumes",
        f"{_FUSION}.config:FusionTrainConfig",
        f"{_FUSION}.train:run",
        extra="recipes",
    ),
    Command(
        "fusion demo",
        "train a small FusionMamba on real pairs and compare it with classical fusion, with a report (CPU, minutes)",
        f"{_FUSION}.demo_config:FusionDemoConfig",
        f"{_FUSION}.demo:run",
        extra="demo",
    ),
    Command(
        "classify train",
        "train an image classifier, any model of timm, on your own pictures",
        f"{_CLASSIFICATION}.config:ClassifyTrainConfig",
        f"{_CLASSIFICATION}.train:run",
        extra="recipes",
    ),
    Command(
        "classify evaluate",
        "score a trained classifier, with calibration, ROC curves and saliency in a report",
        f"{_CLASSIFICATION}.config:ClassifyEvaluateConfig",
        f"{_CLASSIFICATION}.evaluate:run",
        positional=True,
        extra="recipes",
    ),
    Command(
        "classify study",
        "compare image classifiers with several seeds at equal budget and size, with tables and figures",
        f"{_IMAGE_STUDY}.config:ImageStudyConfig",
        f"{_IMAGE_STUDY}.command:run",
        extra="recipes",
    ),
    Command(
        "resolution digits",
        "train S4ND and a Conv2D twin on small pictures and test them on larger ones (CPU, minutes)",
        f"{_RESOLUTION}.config:DigitsConfig",
        f"{_RESOLUTION}.digits:run",
        extra="recipes",
    ),
    Command(
        "resolution spacing",
        "compare S4ND's response to a real head at thicker and thicker slices",
        f"{_RESOLUTION}.config:SpacingConfig",
        f"{_RESOLUTION}.spacing:run",
        extra="demo",
    ),
    Command(
        "convert",
        "make a folder without pickles, in timm's layout, out of a published checkpoint",
        f"{_CLI}.convert:ConvertConfig",
        f"{_CLI}.convert:run",
        positional=True,
    ),
    Command(
        "models",
        "list the models: parameters, multiply-accumulates, input, licence and source of the weights",
        f"{_CLI}.models:ModelsConfig",
        f"{_CLI}.models:run",
    ),
    Command(
        "configs list",
        "list the configurations that ship with the package",
        f"{_CLI}.configs:ListConfig",
        f"{_CLI}.configs:run_list",
    ),
    Command(
        "configs show",
        "print one of them",
        f"{_CLI}.configs:ShowConfig",
        f"{_CLI}.configs:run_show",
        positional=True,
    ),
    Command(
        "configs copy",
        "write an editable copy of one of them",
        f"{_CLI}.configs:CopyConfig",
        f"{_CLI}.configs:run_copy",
        positional=True,
    ),
    Command(
        "kernels build",
        "compile the CUDA kernels ahead of their first use",
        f"{_CLI}.kernels:BuildConfig",
        f"{_CLI}.kernels:run_build",
    ),
    Command(
        "doctor",
        "show versions, devices, and which backend each op picks and why",
        "ssmvision.doctor:DoctorConfig",
        "ssmvision.doctor:run",
    ),
    Command(
        "bench scan",
        "time the selective scan's backends beside their peers",
        "ssmvision.bench.config:BenchScanConfig",
        "ssmvision.bench.scan:run",
    ),
    Command(
        "bench cpu",
        "time a model beside a vision transformer on this CPU, and its scan beside the loop that defines it",
        "ssmvision.bench.config:BenchCpuConfig",
        "ssmvision.bench.cpu:run",
    ),
    Command(
        "bench compile",
        "time what torch.compile gains on a GPU, beside CUDA graphs",
        "ssmvision.bench.compile_config:BenchCompileConfig",
        "ssmvision.bench.compile:run",
    ),
    Command(
        "bench export",
        "compile and export models at full size on this CPU, and compare the results",
        "ssmvision.bench.export_config:BenchExportConfig",
        "ssmvision.bench.export:run",
        extra="onnx",
    ),
    Command(
        "bench s4nd",
        "time S4ND's global convolution beside the FFT and a depthwise convolution",
        "ssmvision.bench.s4nd_config:BenchS4NDConfig",
        "ssmvision.bench.s4nd:run",
    ),
    Command(
        "bench vim",
        "time a model beside a vision transformer on a GPU: throughput, memory, latency",
        "ssmvision.bench.config:BenchVimConfig",
        "ssmvision.bench.vim:run",
    ),
    Command(
        "bench umamba",
        "time training steps of U-Mamba beside the same network without its state-space layers",
        "ssmvision.bench.umamba_config:BenchUMambaConfig",
        "ssmvision.bench.umamba:run",
    ),
    Command(
        "bench fusion",
        "time FusionMamba's inference and training, eagerly and as a CUDA graph",
        "ssmvision.bench.fusion_config:BenchFusionConfig",
        "ssmvision.bench.fusion:run",
    ),
)


def find_command(words: list[str]) -> Command | None:
    """The command whose name starts `words`, or None."""
    for command in COMMANDS:
        name = command.name.split()
        if words[: len(name)] == name:
            return command
    return None
