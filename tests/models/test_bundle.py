import ast

import pytest

from brickreel.models.bundle import PIPELINE, TRANSFORMER, bundle


@pytest.mark.parametrize("modules", [TRANSFORMER, PIPELINE], ids=["transformer", "pipeline"])
def test_the_bundle_needs_nothing_of_brickreel(modules):
    tree = ast.parse(bundle(modules, "What it is."))
    assert ast.get_docstring(tree) == "What it is."
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in ([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names)
    }
    assert "brickreel" not in imported
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(defined) == len(set(defined))


def test_a_module_that_needs_more_than_the_bundle_is_refused():
    with pytest.raises(ValueError, match=r"models.stdit2.attention imports from brickreel.models.stdit2"):
        bundle(("models.stdit2.attention",), "")
    with pytest.raises(ValueError, match="does not stand before it"):
        bundle(tuple(reversed(TRANSFORMER)), "")


def test_two_things_of_one_name_are_refused_and_the_same_thing_twice_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("brickreel.models.bundle.resources.files", lambda _: tmp_path)
    (tmp_path / "one.py").write_text('"""One."""\n\nSIZE = 1\n')
    (tmp_path / "two.py").write_text('"""Two."""\n\nSIZE = 1\n')
    assert bundle(("one", "two"), "").count("SIZE = 1") == 1
    (tmp_path / "two.py").write_text('"""Two."""\n\nSIZE = 2\n')
    with pytest.raises(ValueError, match="two and one both define SIZE"):
        bundle(("one", "two"), "")
