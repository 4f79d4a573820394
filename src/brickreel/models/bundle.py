"""Joins modules of this package into one self-contained file, for folders that load where brickreel is not installed.

diffusers takes a pipeline's code from one file beside the weights. Rather than keep a second copy of the code, the
file is made from the modules themselves: their imports from each other are left out, and their bodies follow in order.
"""

import ast
from collections.abc import Sequence
from importlib import resources

TRANSFORMER = (
    "models.stdit2.embeddings",
    "models.stdit2.fused",
    "models.stdit2.products",
    "models.stdit2.attention",
    "models.stdit2.blocks",
    "models.stdit2.model",
)
PIPELINE = (
    "diffusion.iddpm",
    "diffusion.rectified_flow",
    "diffusion.references",
    "diffusion.sampling",
    "models.prompt",
    "models.text_encoder",
    "models.text_to_video",
)


def bundle(modules: Sequence[str], purpose: str) -> str:
    """The source of several modules of brickreel as one.

    Args:
        modules: names below `brickreel`, each after those it imports.
        purpose: the docstring of the result.

    Raises:
        ValueError: when a module needs another part of brickreel that is not among them, or two define one name.
    """
    heads: list[str] = []
    bodies: list[str] = []
    defined: dict[str, str] = {}
    for module in modules:
        source = (resources.files("brickreel") / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
        tree = ast.parse(source)
        lines = source.splitlines()
        for node in tree.body:
            text = "\n".join(lines[_first_line(node) - 1 : node.end_lineno])
            if isinstance(node, ast.Import | ast.ImportFrom):
                if _is_ours(node):
                    _check_bundled(node, module, modules)
                elif text not in heads:
                    heads.append(text)
                continue
            for name in _names(node):
                if name in defined and text not in bodies:
                    raise ValueError(f"{module} and {defined[name]} both define {name}, and cannot stand in one file")
                defined[name] = module
            if node is not tree.body[0] and text not in bodies:
                bodies.append(text)
    return f'"""{purpose}"""\n\n' + "\n".join(heads) + "\n\n\n" + "\n\n\n".join(bodies) + "\n"


def _first_line(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _is_ours(node: ast.Import | ast.ImportFrom) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.level > 0 or (node.module or "").split(".")[0] == "brickreel"
    return any(alias.name.split(".")[0] == "brickreel" for alias in node.names)


def _check_bundled(node: ast.Import | ast.ImportFrom, module: str, modules: Sequence[str]) -> None:
    wanted = (node.module or "").removeprefix("brickreel.") if isinstance(node, ast.ImportFrom) else "?"
    renamed = any(alias.asname for alias in node.names)
    if wanted not in modules or modules.index(wanted) >= modules.index(module) or renamed:
        raise ValueError(f"{module} imports from brickreel.{wanted}, which does not stand before it in the bundle")


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []
