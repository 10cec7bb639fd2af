"""The public names are a list that one can read, and importing them costs nothing."""

import subprocess
import sys

import kd3


def test_the_list_is_what_is_there():
    assert sorted(kd3.__all__) == sorted([*kd3._PUBLIC, "__version__"])
    for name in kd3.__all__:
        assert getattr(kd3, name) is not None


def test_importing_kd3_imports_nothing_heavy():
    code = "import sys, kd3; assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(kd3, "distil")
