import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor

from training import CheckpointError
from training.__main__ import main
from training.checkpoint import load_checkpoint
from training.imports.pig import blocks, import_pig
from training.models.pig import PRESETS, Pig

SMALL = PRESETS["paper"].replaced({"size": 32, "widths": [8, 16], "attention": [1], "head_dim": 16, "norm_groups": 4})


def authors_network(w: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
    """Ho et al.'s UNet written on their names, two levels with attention on the deeper one."""
    conv = lambda n, h, **o: F.conv2d(h, w[f"{n}.weight"], w[f"{n}.bias"], **o)  # noqa: E731
    dense = lambda n, h: F.linear(h, w[f"{n}.weight"], w[f"{n}.bias"])  # noqa: E731
    norm = lambda n, h: F.group_norm(h, 4, w[f"{n}.weight"], w[f"{n}.bias"], 1e-6)  # noqa: E731
    angles = t[:, None] * 10_000 ** (-torch.arange(4) / 3)
    temb = dense("temb.dense.1", F.silu(dense("temb.dense.0", torch.cat([angles.sin(), angles.cos()], 1))))

    def block(n, h):
        r = conv(f"{n}.conv1", F.silu(norm(f"{n}.norm1", h)), padding=1)
        r = r + dense(f"{n}.temb_proj", F.silu(temb))[:, :, None, None]
        r = conv(f"{n}.conv2", F.silu(norm(f"{n}.norm2", r)), padding=1)
        return r + (conv(f"{n}.nin_shortcut", h) if f"{n}.nin_shortcut.weight" in w else h)

    def attention(n, h):
        q, k, v = (conv(f"{n}.{part}", norm(f"{n}.norm", h)).flatten(2) for part in "qkv")
        weights = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(2)
        return h + conv(f"{n}.proj_out", (v @ weights.transpose(1, 2)).view_as(h))

    skips = [h := conv("conv_in", x, padding=1)]
    for level in range(2):
        for j in range(2):
            h = block(f"down.{level}.block.{j}", h)
            skips.append(h := attention(f"down.{level}.attn.{j}", h) if level else h)
        if not level:
            skips.append(h := conv("down.0.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2))
    h = block("mid.block_2", attention("mid.attn_1", block("mid.block_1", h)))
    for level in (1, 0):
        for j in range(3):
            h = block(f"up.{level}.block.{j}", torch.cat([h, skips.pop()], 1))
            h = attention(f"up.{level}.attn.{j}", h) if level else h
        h = conv("up.1.upsample.conv", F.interpolate(h, scale_factor=2), padding=1) if level else h
    return conv("conv_out", F.silu(norm("norm_out", h)), padding=1)


@torch.no_grad()
def theirs(seed: int) -> dict[str, Tensor]:
    generator, found = torch.Generator().manual_seed(seed), {}
    wanted = Pig(SMALL).guider.state_dict()
    for ours, name in blocks(2, 2):
        for kind in ("weight", "bias"):
            if (tensor := wanted.get(f"{ours}.{kind}")) is not None:
                shaken = tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
                is_conv = kind == "weight" and ".attn" in name and tensor.ndim == 2
                found[f"{name}.{kind}"] = shaken[:, :, None, None] if is_conv else shaken
    assert len(found) == len(wanted)
    return found


@torch.no_grad()
def test_both_networks_give_what_the_authors_give(tmp_path):
    files = {name: tmp_path / f"{name}.pth" for name in ("guider", "generator")}
    weights = {name: theirs(seed) for seed, name in enumerate(files)}
    for name, file in files.items():
        torch.save([weights[name], {"state": {}}, 5], file)
    pig, origin = import_pig(**files, preset=SMALL)
    x, t = torch.randn(3, 2, 32, 32), torch.tensor([3.0, 501.0, 1023.0])
    for name in files:
        expected = authors_network(weights[name], x, t)
        torch.testing.assert_close(getattr(pig, name)(x, t).sample, expected, rtol=0, atol=1e-5)
    assert origin["sha256"].keys() == files.keys()


def test_another_networks_file_and_one_that_holds_objects_are_refused(tmp_path):
    torch.save({"conv_in.weight": torch.zeros(8, 2, 3, 3)}, tmp_path / "a")
    torch.save([theirs(0), SMALL], tmp_path / "b")
    for name, message in {"a": "differ in .* weights", "b": "save it again"}.items():
        with pytest.raises(CheckpointError, match=message):
            import_pig(tmp_path / name, tmp_path / name, SMALL)


def test_the_command_writes_a_checkpoint_that_says_where_it_is_from(tmp_path):
    torch.save([theirs(0)], tmp_path / "x.pth")
    torch.save([theirs(1)], tmp_path / "y.pth")
    changed = {"size": 32, "widths": [8, 16], "attention": [1], "head_dim": 16, "norm_groups": 4}
    fields = [part for name, value in changed.items() for part in ("--set", f"{name}={value}")]
    (file, other), out = (str(tmp_path / name) for name in ("x.pth", "y.pth")), tmp_path / "run"
    command = ["import", file, "--as", "pig", "--out", str(out), *fields, "--generator"]
    assert "hold the same: guider and generator are two networks" in CliRunner().invoke(main, [*command, file]).output
    command.append(other)
    small = [*command, "--preset", "small", "--set", "layers=2"]
    small[small.index("--out") + 1] = str(tmp_path / "small")
    assert CliRunner().invoke(main, small).exit_code == 0
    assert load_checkpoint(tmp_path / "small")[0].preset.time_embedding == "ddpm"
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    pig, config = load_checkpoint(out)
    assert (pig.preset, config["imported"]["options"]["set"]) == (SMALL, changed)
    assert "is there already" in CliRunner().invoke(main, command).output
