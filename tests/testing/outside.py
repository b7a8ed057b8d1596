"""A project that is not ours, in a folder of its own, where pytest runs as its users run it."""

from collections.abc import Mapping

import pytest

PLUGIN = "fedpresence.testing.pytest_plugin"


def write_files(pytester: pytest.Pytester, files: Mapping[str, str]) -> None:
    """Put the files into the project."""
    for name, text in files.items():
        (pytester.path / name).write_text(text, encoding="utf-8")


def run_pytest(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run pytest as a process, with the plugin and no other.

    It is named: this checkout may have been installed before it had an entry point. That the package brings
    one is seen in `test_pytest_plugin.py`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        pytester.plugins = [PLUGIN]
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments, timeout=60)
