import pytest

from serving.engines import cpu


@pytest.fixture(autouse=True)
def groups(tmp_path, monkeypatch):
    """No control groups, and as many cores as nobody has."""
    monkeypatch.setattr(cpu, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cpu, "OWN_GROUPS", tmp_path / "self")
    return tmp_path / "cgroup"


def test_two_threads_of_a_core_count_once(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "CORES", tmp_path)
    for processor, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / f"cpu{processor}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{processor}" / "topology" / "thread_siblings_list").write_text(siblings)
    assert cpu.cores([0, 1, 2, 3]) == 2
    assert cpu.cores([0, 2]) == 1
    assert cpu.cores([7, 8, 9]) == 3


@pytest.mark.parametrize(
    ("own", "files", "most"),
    [
        ("", {}, 64),
        ("", {"cpu.max": "max 100000"}, 64),
        ("", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/a.slice/b.scope", {"a.slice/b.scope/cpu.max": "max 100000", "a.slice/cpu.max": "300000 100000"}, 3),
        ("0::/a.slice", {"b.slice/cpu.max": "100000 100000"}, 64),
        ("", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("3:memory:/m", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ("2:cpuacct,cpu:/d", {"cpu/d/cpu.cfs_quota_us": "400000", "cpu/d/cpu.cfs_period_us": "100000"}, 4),
        ("2:cpuset:/d", {"cpu/d/cpu.cfs_quota_us": "400000", "cpu/d/cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_a_container_s_share_is_not_exceeded(groups, tmp_path, monkeypatch, own, files, most):
    monkeypatch.setattr(cpu, "cores", lambda _: 64)
    (tmp_path / "self").write_text(f"{own}\n" if own else "")
    for name, content in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(f"{content}\n")
    assert cpu.threads() == most


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("fpu sse4_2 avx avx2 fma", "avx2"),
        ("sse4_2 avx avx2 avx512f avx512_bf16", "avx512_bf16"),
        ("avx2 avx512f avx512_bf16 avx512_fp16 amx_bf16 amx_int8", "amx_bf16 and avx512_fp16"),
        ("fpu", "no instructions known"),
    ],
)
def test_kernels_are_chosen_by_the_newest_instructions(tmp_path, monkeypatch, flags, said):
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    assert cpu.instruction_sets() == "no instructions known"
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    assert cpu.instruction_sets() == said
