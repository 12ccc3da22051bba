import pytest

from mrc_edit.core import cpu

X86 = "processor\t: 0\nmodel name\t: Some: CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512f\nvmx flags\t: vnmi\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\nCPU implementer\t: 0x41\n\nprocessor\t: 1\nFeatures\t: other\n"


@pytest.mark.parametrize(
    ("text", "model", "features"),
    [(X86, "Some: CPU @ 2 GHz", "fpu avx2 avx512f"), (ARM, "", "fp asimd bf16"), ("", "", ""), (None, "", "")],
)
def test_what_linux_says_of_the_processor(text, model, features, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "INFO", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert (cpu.cpu_entry("model name"), cpu.cpu_features()) == (model, features)
