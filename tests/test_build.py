"""setup.py: what is built where; a missing or broken tool costs kernels, never the installation."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch

GOOD = """case "$1" in
--version) echo "Cuda compilation tools, release 13.0, V13.0.88";;
--dryrun) echo "#\\$ TOP=HOME/bin/.." >&2;;
--list-gpu-code) printf 'sm_75\\nsm_90\\nsm_103\\nsm_120\\ncompute_120\\n';;
*) echo "nvcc fatal: no licence today" >&2; exit 1;;
esac"""


@pytest.fixture(scope="module")
def build(repository_root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("drivestack_setup", repository_root / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def nvcc(tmp_path: Path):
    """Makes a toolkit `home` and, elsewhere, a wrapper `nvcc` that runs the given script; returns an environment."""

    def make(script: str) -> dict[str, str]:
        folder, home = tmp_path / "wrapper", tmp_path / "home"
        (home / "bin").mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        tool = folder / "nvcc"
        tool.write_text("#!/bin/sh\n" + script.replace("HOME", str(home)) + "\n", encoding="utf-8")
        tool.chmod(0o755)
        return {"PATH": f"{folder}:/usr/bin:/bin"}

    return make


@pytest.fixture
def cuda_torch(monkeypatch: pytest.MonkeyPatch):
    """A torch with CUDA 13 that sees the given GPUs."""

    def make(*capabilities: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
        monkeypatch.setattr(shutil, "which", lambda tool, real=shutil.which, **kw: real(tool, **kw) or tool)

    return make


def test_the_toolkit_is_asked_for_its_home(build: ModuleType, nvcc, tmp_path: Path) -> None:
    found = build.find_toolkit(nvcc(GOOD))
    assert (found.home, found.version) == (str(tmp_path / "home"), (13, 0))
    assert found.architectures == ("7.5", "9.0", "10.3", "12.0")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "nvcc --version` fails with exit code 1"),
        ("echo lorem ipsum", "nvcc --version` names no release"),
        ("printf '\\377\\376\\000'", "nvcc --version` names no release"),
        ("kill -SEGV $$", "fails with exit code -11"),
    ],
)
def test_a_broken_nvcc_is_a_reason(build: ModuleType, nvcc, cuda_torch, script: str, reason: str) -> None:
    cuda_torch((9, 0))
    with pytest.raises(build.CannotBuildError, match=reason) as caught:
        build.plan_cuda(nvcc(script))
    assert "CUDA_HOME" in caught.value.fix and "\n" not in str(caught.value)


def test_an_nvcc_that_is_no_program(build: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nvcc").write_bytes(b"\x00")
    with pytest.raises(build.CannotBuildError, match="does not run"):
        build.find_toolkit({"CUDA_HOME": str(tmp_path)})
    with pytest.raises(build.CannotBuildError, match="has no bin/nvcc"):
        build.find_toolkit({"CUDA_HOME": str(tmp_path / "bin")})


def test_auto_wants_a_gpu_and_one_does_not(build: ModuleType, nvcc, cuda_torch) -> None:
    cuda_torch()
    with pytest.raises(build.CannotBuildError, match="no GPU is visible"):
        build.plan_cuda(nvcc("exit 1"))  # nvcc is not even asked
    toolkit, architectures = build.plan_cuda(nvcc(GOOD) | {"DRIVESTACK_CUDA": "1"})
    assert architectures == "7.5;9.0;12.0+PTX" and toolkit.version == (13, 0)
    cuda_torch((9, 0), (7, 5), (9, 0))
    assert build.plan_cuda(nvcc(GOOD))[1] == "7.5;9.0+PTX"
    assert build.plan_cuda(nvcc(GOOD) | {"TORCH_CUDA_ARCH_LIST": "8.6"})[1] == "8.6"
    with pytest.raises(build.CannotBuildError, match="DRIVESTACK_CUDA=0"):
        build.plan_cuda(nvcc(GOOD) | {"DRIVESTACK_CUDA": "0"})
    with pytest.raises(SystemExit, match="must be auto, 0 or 1; got 'yes'"):
        build.plan_cuda(nvcc(GOOD) | {"DRIVESTACK_CUDA": "yes"})


def test_torch_and_toolkit_must_fit(build: ModuleType, nvcc, cuda_torch, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_torch((9, 0))
    with pytest.raises(build.CannotBuildError, match=r"nvcc 12\.4 and torch's CUDA 13\.0 differ"):
        build.plan_cuda(nvcc(GOOD.replace("13.0", "12.4")))
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(build.CannotBuildError, match="has no CUDA"):
        build.plan_cuda({"DRIVESTACK_CUDA": "1"})


def test_gpus_beside_what_nvcc_knows(build: ModuleType) -> None:
    toolkit = build.Toolkit("/home", (13, 0), ("7.5", "8.0", "9.0"))
    assert build.choose_architectures(None, [(12, 1)], toolkit) == "9.0+PTX"
    assert build.choose_architectures(None, [(8, 9), (8, 0)], toolkit) == "8.0+PTX"
    with pytest.raises(build.CannotBuildError, match="cannot compile for the GPU here \\(sm_70\\)"):
        build.choose_architectures(None, [(7, 0)], toolkit)


def test_without_a_compiler(build: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(build.CannotBuildError, match=r"no C\+\+ compiler `c\+\+` found"):
        build.check_compiler({"PATH": str(tmp_path)})
    extensions, outcomes = build.plan({"PATH": str(tmp_path)})
    assert not extensions and all("no C++ compiler" in outcome.reason for outcome in outcomes.values())
    assert build.report(outcomes).startswith("CPU and CUDA kernels not built: no C++ compiler `c++` found (install g++")


def test_without_the_headers_of_python(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda tool, path=None: tool)
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(build.CannotBuildError, match=r"headers of Python 3\.\d+\.\d+ are not in") as caught:
        build.check_compiler({})
    assert "python3-dev" in caught.value.fix


def test_every_source_is_compiled_once(build: ModuleType, repository_root: Path) -> None:
    cpu, cuda = build.sources("cpu"), build.sources("cuda")
    there = {str(p.relative_to(repository_root)) for p in (repository_root / "ops/csrc").rglob("*.c[pu]*")}
    assert {*cpu, *cuda} == {name for name in there if not name.endswith(".cuh")} and not {*cpu} & {*cuda}
    assert not [name for name in cpu if "cuda" in name]


# ---- whole builds, of a copy with one tiny source --------------------------------------------------------------------


@pytest.fixture
def small_copy(repository_root: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    (copy / "ops/csrc/cpu").mkdir(parents=True)
    (copy / "ops/csrc/cuda").mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "__init__.py", "ops/__init__.py"):
        shutil.copyfile(repository_root / name, copy / name)
    (copy / "ops/csrc/cpu/tiny_baseline.cpp").write_text('extern "C" int drivestack_tiny() { return 1; }\n')
    (copy / "ops/csrc/cuda/tiny.cu").write_text("__global__ void tiny() {}\n")
    return copy


def run_build(copy: Path, *arguments: str, **environment: str) -> tuple[int, str, dict]:
    """Exit code, the line that reports, and the record of `setup.py build_ext`."""
    command = [sys.executable, "setup.py", "-q", "build_ext", *arguments]
    environment = {k: v for k, v in os.environ.items() if k not in ("CXX", "CC", "CUDA_HOME")} | environment
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=200)
    lines = [line for line in done.stderr.splitlines() if line.startswith("drivestack:")]
    assert len(lines) == 1, done.stdout + done.stderr
    record = next(copy.rglob("_build.json"))
    return done.returncode, lines[0], json.loads(record.read_text(encoding="utf-8"))


@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
def test_an_nvcc_that_compiles_nothing_leaves_the_cpu_kernels(small_copy: Path, nvcc) -> None:
    if torch.version.cuda is None or not torch.version.cuda.startswith("13."):
        pytest.skip("needs a torch with CUDA 13")
    path = nvcc(GOOD)["PATH"].split(":")[0] + os.pathsep + os.environ["PATH"]
    code, said, record = run_build(small_copy, "--inplace", PATH=path, DRIVESTACK_CUDA="1")
    assert code == 1  # CUDA kernels were demanded of a build
    assert "CPU kernels built in" in said and "CUDA kernels not built: the build failed" in said
    assert record["cpu"]["built"] and record["cpu"]["variants"] == ["baseline"]
    assert not record["cuda"]["built"] and record["cuda"]["reason"]
    assert [p.name for p in (small_copy / "ops").glob("*.so")] == [record["cpu"]["file"]]


def test_a_broken_compiler_leaves_the_reference(small_copy: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    code, said, record = run_build(small_copy, "--build-lib", "lib", CXX=str(broken), DRIVESTACK_CUDA="0")
    assert code == 0  # as in an installation
    assert "CPU kernels not built: the build failed" in said and "use their slow PyTorch implementation" in said
    assert not record["cpu"]["built"] and record["cuda"]["reason"] == "DRIVESTACK_CUDA=0"


def editable_wheel(folder: Path, package: Path) -> Path:
    """A wheel as setuptools makes it for an editable installation of the package."""
    editable = pytest.importorskip("setuptools.command.editable_wheel")
    finder = editable._finder_template("drivestack finder", {"drivestack": str(package)}, {})
    wheel = folder / "drivestack-0.1.0-0.editable-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("__editable___drivestack_0_1_0_finder.py", finder)
        archive.writestr("drivestack-0.1.0.dist-info/METADATA", "Name: drivestack\n")
        archive.writestr(
            "drivestack-0.1.0.dist-info/RECORD",
            "__editable___drivestack_0_1_0_finder.py,sha256=x,1\ndrivestack-0.1.0.dist-info/METADATA,sha256=y,17\n",
        )
    return wheel


@pytest.mark.parametrize(
    ("beside", "expected"), [("folder", "installed"), ("package", "in the way"), ("nothing", "installed")]
)
def test_a_folder_called_drivestack_does_not_hide_an_editable_installation(
    build: ModuleType, tmp_path: Path, beside: str, expected: str
) -> None:
    package, site, here = tmp_path / "checkout", tmp_path / "site", tmp_path / "here"
    for folder in (package, site, here):
        folder.mkdir()
    (package / "__init__.py").write_text("print('installed')\n", encoding="utf-8")
    if beside != "nothing":
        (here / "drivestack").mkdir()
    if beside == "package":
        (here / "drivestack" / "__init__.py").write_text("print('in the way')\n", encoding="utf-8")
    wheel = editable_wheel(tmp_path, package)
    build.extend_finder(wheel)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = f"import sys; sys.path.append({str(site)!r}); import __editable___drivestack_0_1_0_finder as finder; "
    command = [sys.executable, "-S", "-c", code + "finder.install(); import drivestack"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == expected, done.stderr


def test_the_record_of_an_extended_wheel_is_right(build: ModuleType, tmp_path: Path) -> None:
    wheel = editable_wheel(tmp_path, tmp_path)
    build.extend_finder(wheel)
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read("__editable___drivestack_0_1_0_finder.py")
        lines = archive.read("drivestack-0.1.0.dist-info/RECORD").decode().splitlines()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    assert lines[0] == f"__editable___drivestack_0_1_0_finder.py,sha256={digest},{len(content)}"
    assert lines[1].startswith("drivestack-0.1.0.dist-info/METADATA,sha256=y")


def test_old_setuptools_is_named_in_one_line(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    build.check_setuptools()
    monkeypatch.setattr(build.setuptools, "__version__", "65.5.0")
    with pytest.raises(SystemExit) as left:
        build.main()
    assert left.value.code == "drivestack: needs setuptools>=77, here is 65.5.0: pip install -U setuptools"
