"""Each case runs in an interpreter of its own, since what it tests is the order of first imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FORWARD = "\n".join(
    [
        "import torch",
        "model = timm.create_model('vim_tiny', img_size=32, depth=1)",
        "assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)",
    ]
)
GONE = "import sys; assert not [f for f in sys.meta_path if type(f).__module__.startswith('ssmvision')], sys.meta_path"
REAL_LOADER = "assert type(timm.__spec__.loader).__name__ == type(timm.__loader__).__name__ == 'SourceFileLoader'"

CASES = {
    "timm first": ["import timm", "import ssmvision", FORWARD, GONE],
    "ssmvision first": [
        "import sys, ssmvision",
        "from importlib.util import find_spec",
        "spec = find_spec('timm')",  # asking for timm is not importing it, and must not use the hook up
        "assert spec.origin == spec.loader.get_filename('timm')",
        "assert 'timm' not in sys.modules",
        "import timm",
        "assert {'vim_tiny', 'vim_small', 'vim_base'} <= set(timm.list_models('vim_*'))",
        FORWARD,
        GONE,
        REAL_LOADER,
    ],
    "our models first": ["from ssmvision.models import VisionMamba", "import timm", FORWARD, GONE, REAL_LOADER],
    "a submodule of timm": [
        "import ssmvision",
        "import timm.models.vision_transformer as vit",
        "import timm",
        "assert vit is timm.models.vision_transformer",
        "assert timm.is_model('vim_small')",
        GONE,
    ],
    "from within timm's own import": [
        # What a module that timm imports early would cause.
        "import sys",
        "class Early:",
        "    def find_spec(self, name, path=None, target=None):",
        "        if name == 'timm.layers':",
        "            sys.meta_path.remove(self)",
        "            import ssmvision",
        "sys.meta_path.insert(0, Early())",
        "import timm",
        "assert timm.is_model('vim_small')",
        FORWARD,
        GONE,
    ],
    "threads": [
        "import ssmvision, importlib, threading",
        "names = ['timm', 'ssmvision.models', 'ssmvision.ops'] * 3",
        "failed = []",
        "def load(name):",
        "    try:",
        "        importlib.import_module(name)",
        "    except BaseException as error:",
        "        failed.append(error)",
        "threads = [threading.Thread(target=load, args=(name,)) for name in names]",
        "[thread.start() for thread in threads]",
        "[thread.join() for thread in threads]",
        "assert not failed, failed",
        "import timm",
        "assert timm.is_model('vim_small')",
        GONE,
    ],
    "installed once": [
        "import sys, ssmvision, importlib",
        "importlib.reload(ssmvision)",
        "assert len([f for f in sys.meta_path if type(f).__module__ == 'ssmvision._timm_hook']) == 1",
    ],
    "without timm": [
        "import sys, ssmvision",
        "sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__.startswith('ssmvision')]",
        "try:",
        "    import timm",
        "except ModuleNotFoundError as error:",
        "    assert error.name == 'timm'",
        "else:",
        "    raise AssertionError",
    ],
}


# Copies of one process that has imported torch and torchvision, most of what timm takes to import, and nothing else.
RUNNER = """
import json, os, sys, traceback
import torch, torchvision
for name, code in json.load(sys.stdin).items():
    sys.stderr.flush()
    if pid := os.fork():
        print(json.dumps([name, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]), flush=True)
        continue
    try:
        exec(code, {"__name__": "__main__"})
    except BaseException:
        print(f"case {name!r}:", traceback.format_exc(), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def outcomes() -> tuple[dict[str, int], str]:
    """Exit status of every case, and all that they wrote to standard error."""
    cases = json.dumps({name: "\n".join(lines) for name, lines in CASES.items()})
    done = subprocess.run([sys.executable, "-c", RUNNER], input=cases, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines()), done.stderr


@pytest.mark.parametrize("case", CASES)
def test_registration(case: str, outcomes: tuple[dict[str, int], str]) -> None:
    status, errors = outcomes
    assert status[case] == 0, errors


def test_looking_for_timm_does_not_import_torch() -> None:
    code = "import sys, importlib.util, ssmvision; importlib.util.find_spec('timm'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
