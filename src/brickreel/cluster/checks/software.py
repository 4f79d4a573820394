"""The same code, packages and drivers on every node: facts gathered on each, compared on rank 0."""

import hashlib
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from brickreel.cluster.checks import Check

PACKAGES = ("torch", "diffusers", "transformers", "colossalai", "flash-attn", "safetensors", "pyarrow", "numpy")


def facts() -> dict[str, str]:
    """What must be alike on every node of a run."""
    import torch

    import brickreel

    found = {"python": platform.python_version(), "code": code_hash(Path(brickreel.__file__).parent)}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def code_hash(package: Path) -> str:
    """Hash of the package's Python files, names and content."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def compare(nodes: Sequence[str], found: Sequence[Mapping[str, str]]) -> list[Check]:
    """One check per fact that differs, at each node in the minority; one pass when all are alike."""
    checks = []
    for name in sorted({name for facts_here in found for name in facts_here}):
        values = [facts_here.get(name, "absent") for facts_here in found]
        usual = Counter(values).most_common(1)[0][0]
        for node, value in zip(nodes, values, strict=True):
            if value != usual:
                reason = f"{node} has {name} {value} and most nodes have {usual}: all nodes must have the same"
                checks.append(Check("versions", node, "fail", value, "", f"{usual} as on the other nodes", reason))
    return checks or [Check("versions", "all", "pass", len(nodes), "nodes", "alike")]
