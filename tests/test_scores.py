"""Scores: equations against their other forms and against torchmetrics; what counts for a judge's accuracy."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from rcdeploy.evaluate.frechet import Statistics, frechet_distance, inception_score
from rcdeploy.evaluate.inception import CLASSES, FEATURES, Inception, resized_as_tensorflow_1
from rcdeploy.evaluate.judge import Judge, judge_scores
from rcdeploy.evaluate.networks import open_network
from rcdeploy.evaluate.reference import open_reference
from rcdeploy_runtime.errors import RcdeployError

ATTRIBUTES = {
    "item": {"labels": ["shirt", "shoe", "bag"], "pattern": "(shirt|shoe|bag)"},
    "colour": {"labels": ["red", "blue"], "pattern": "(red|blue)"},
}


def features(n: int, d: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=rng)
    return torch.randn(n, d, generator=rng) @ mixing + torch.randn(d, generator=rng)


class Identity(nn.Module):
    """In place of torchmetrics' network: its images are features already."""

    num_features = 6

    def forward(self, images: Tensor) -> Tensor:
        return images


def test_frechet_distance_is_torchmetrics(recwarn: pytest.WarningsRecorder) -> None:
    a, b = features(40, 6, 0), features(50, 6, 1)
    peer = FrechetInceptionDistance(feature=Identity())
    peer.update(a, real=True)
    peer.update(b, real=False)
    own = frechet_distance(Statistics.of(a), Statistics.of(b))
    assert own == pytest.approx(peer.compute().item(), rel=1e-4)
    assert own == pytest.approx(frechet_distance(Statistics.of(b), Statistics.of(a)), rel=1e-9)
    assert frechet_distance(Statistics.of(a), Statistics.of(a)) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_in_one_dimension_and_with_a_singular_covariance() -> None:
    """(m - m')^2 + (s - s')^2 for two normal distributions on a line, also where the other dimensions are empty."""

    def line(mean: float, deviation: float, d: int) -> Statistics:
        covariance = torch.zeros(d, d, dtype=torch.float64)
        covariance[0, 0] = deviation**2
        return Statistics(torch.tensor([mean] + [0.0] * (d - 1), dtype=torch.float64), covariance, 100)

    for d in (1, 5):
        assert frechet_distance(line(1, 2, d), line(4, 0.5, d)) == pytest.approx(9 + 2.25)
    with pytest.raises(RcdeployError, match="cannot be compared"):
        frechet_distance(line(0, 1, 2), line(0, 1, 3))


def test_statistics_are_numpys() -> None:
    rows = features(30, 4, 2)
    result = Statistics.of(rows)
    np.testing.assert_allclose(result.mean, rows.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(result.covariance, np.cov(rows.double().numpy(), rowvar=False), rtol=1e-9)
    assert result.count == 30


@pytest.mark.parametrize("splits", [4, 10])
def test_inception_score_is_torchmetrics(splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = features(40, 6, 3)
    peer = InceptionScore(feature=Identity(), splits=splits)
    peer.update(logits)
    monkeypatch.setattr(torch, "randperm", torch.arange)  # it shuffles first
    mean, deviation = (value.item() for value in peer.compute())
    own = inception_score(logits.softmax(1), splits)
    # torch-fidelity, whose numbers the papers give, has n under the deviation's root; torchmetrics n - 1
    assert own == (pytest.approx(mean, rel=1e-4), pytest.approx(deviation * (1 - 1 / splits) ** 0.5, rel=1e-4))


def test_inception_score_at_its_ends() -> None:
    assert inception_score(torch.eye(7), 1)[0] == pytest.approx(7), "every class once, each of them certain"
    assert inception_score(torch.full((7, 5), 0.2), 1)[0] == pytest.approx(1), "no information"


def predictions(judge: Judge, images: Tensor) -> list[tuple[str, str]]:
    """The item and the colour that the judge predicts for each image."""
    logits = judge(images)
    items, colours = ATTRIBUTES["item"]["labels"], ATTRIBUTES["colour"]["labels"]
    return [
        (items[i], colours[c])
        for i, c in zip(logits["item"].argmax(1).tolist(), logits["colour"].argmax(1).tolist(), strict=True)
    ]


def test_judge_scores_count_the_attributes_that_prompts_name() -> None:
    torch.manual_seed(0)
    judge, images = Judge(ATTRIBUTES, width=4).eval(), torch.rand(8, 3, 32, 32)
    seen, other = predictions(judge, images), {"red": "blue", "blue": "red"}
    prompts = [f"a {colour} {item}" for item, colour in seen]
    scores = judge_scores(judge, images, prompts, None)
    assert (scores["item"], scores["colour"], scores["all"]) == (1, 1, 1)
    assert "frechet_distance" not in scores and 1 <= scores["inception_score"] <= 3

    # two colours wrong, three prompts without a colour, one without anything
    prompts[:2] = [f"a {other[colour]} {item}" for item, colour in seen[:2]]
    prompts[2:5] = [f"a {item}" for item, _ in seen[2:5]]
    prompts[5] = "a cat"
    scores = judge_scores(judge, images, prompts, None)
    assert scores["item"] == 1
    assert scores["colour"] == pytest.approx(2 / 4)
    assert scores["all"] == pytest.approx(5 / 7)

    nothing = judge_scores(judge, images, ["a cat"] * 8, Statistics.of(judge.features(images).detach()))
    assert set(nothing) == {"inception_score", "frechet_distance"}
    assert nothing["frechet_distance"] == pytest.approx(0, abs=1e-6)


def test_statistics_come_back_from_disk(tmp_path: Path) -> None:
    result = Statistics.of(features(30, 4, 4))
    result.save(tmp_path / "s.safetensors")
    assert torch.equal(Statistics.load(tmp_path / "s.safetensors").covariance, result.covariance)
    save_file({"mean": torch.zeros(3)}, tmp_path / "half.safetensors")
    with pytest.raises(RcdeployError, match="lacks 'covariance'"):
        Statistics.load(tmp_path / "half.safetensors")


# Inception-v3

GOLDEN = (
    [
        [2.530824, 0.0, 0.0, 0.686686, 0.265571, 0.749256],
        [2.552026, 0.0, 0.0, 0.667497, 0.217541, 0.752292],
    ],
    [[4.076742, -0.827339, 2.696096], [4.203282, -0.733503, 2.810360]],
)


def seeded_inception() -> Inception:
    """Weights that numpy draws by name: the same with every version of torch, and in another's implementation."""
    network = Inception()
    weights = {}
    for name, tensor in sorted(network.state_dict().items()):
        rng = np.random.Generator(np.random.Philox(key=sum(name.encode())))
        draw = torch.from_numpy(rng.standard_normal(tuple(tensor.shape), np.float32))
        if name.endswith(("bn.weight", "running_var")):
            draw = 1 + 0.1 * draw.abs()
        elif name.endswith(("bn.bias", "running_mean")):
            draw = 0.1 * draw
        elif tensor.ndim > 1:
            draw = draw * (2 / tensor[0].numel()) ** 0.5
        weights[name] = tensor if name.endswith("num_batches_tracked") else draw
    network.load_state_dict(weights)
    return network.eval()


def seeded_images(n: int, resolution: int) -> Tensor:
    pixels = np.random.Generator(np.random.Philox(key=7)).integers(0, 256, (n, 3, resolution, resolution), np.uint8)
    return torch.from_numpy(pixels)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file(seeded_inception().state_dict(), file)
    return file


def test_inception_is_that_of_the_fid(inception_file: Path) -> None:
    """GOLDEN was written by torch-fidelity 0.4.0's FeatureExtractorInceptionV3 with these weights and images."""
    network = Inception.load(inception_file)
    assert len(Inception().state_dict()) == 566
    with torch.inference_mode():
        result, logits = network(seeded_images(2, 40))
    assert result.shape == (2, FEATURES) and logits.shape == (2, CLASSES)
    for values, golden in zip((result, logits), GOLDEN, strict=True):
        np.testing.assert_allclose(values[:, ::400], golden, rtol=1e-3, atol=1e-4)


def test_images_are_resized_as_tensorflow_1_did() -> None:
    """From the upper left corner: pixel i of the larger image is pixel i / 2 of the smaller one."""
    row = torch.tensor([0.0, 10.0, 30.0]).view(1, 1, 1, 3).expand(1, 1, 3, 3)
    result = resized_as_tensorflow_1(row, 6)
    assert result[0, 0, 0].tolist() == [0, 5, 10, 20, 30, 30]
    assert torch.equal(result[0, 0, 0], result[0, 0, 5])
    assert torch.equal(resized_as_tensorflow_1(row, 3), row)


def test_files_that_are_not_inceptions_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RcdeployError, match="there are no weights") as caught:
        Inception.load(tmp_path / "inception.safetensors")
    assert "save_file(torch.load('pt_inception-2015-12-05-6726825d.pth', weights_only=True)" in str(caught.value.fix)
    (tmp_path / "weights.pth").write_bytes(b"\x80\x02")
    with pytest.raises(RcdeployError, match="pickled weights are never loaded"):
        Inception.load(tmp_path / "weights.pth")
    save_file({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "other.safetensors")
    with pytest.raises(RcdeployError, match="does not hold the Inception-v3 of the FID: .* is missing, and 471 more"):
        Inception.load(tmp_path / "other.safetensors")


# references


@pytest.fixture
def judge_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    Judge(ATTRIBUTES, width=4).eval().save(tmp_path / "judge")
    return tmp_path / "judge"


def write_images(folder: Path, n: int) -> None:
    from PIL import Image

    for i, pixels in enumerate(seeded_images(n, 24).permute(0, 2, 3, 1).numpy()):
        target = folder / ("below" if i % 2 else "")
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target / f"{i}.png")


def test_a_folder_of_images_is_read_once(tmp_path: Path, judge_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    network = open_network("judge", judge_folder)
    write_images(tmp_path / "real", 5)
    calls: list[int] = []
    statistics, digest = open_reference(
        tmp_path / "real", network, (24, 24), lambda _stage, completed, *_: calls.append(completed)
    )
    expected = Statistics.of(network(seeded_images(5, 24), [""] * 5)["features"])
    assert statistics.count == 5 and calls == [0, 5]
    torch.testing.assert_close(statistics.mean, expected.mean, rtol=1e-5, atol=1e-7)  # files come in another order
    again, same = open_reference(tmp_path / "real", network, (24, 24), lambda *_: pytest.fail("read again"))
    assert torch.equal(again.covariance, statistics.covariance) and same == digest
    write_images(tmp_path / "real", 6)
    assert open_reference(tmp_path / "real", network, (24, 24))[0].count == 6
    assert open_reference(tmp_path / "real", network, (12, 12))[1] != digest


def test_statistics_of_other_tools_are_read_without_pickle(tmp_path: Path, judge_folder: Path) -> None:
    network, expected = open_network("judge", judge_folder), Statistics.of(features(30, 16, 5))
    np.savez(tmp_path / "s.npz", mu=expected.mean.numpy(), sigma=expected.covariance.numpy())
    result, _ = open_reference(tmp_path / "s.npz", network, (24, 24))
    assert torch.equal(result.covariance, expected.covariance)
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}], dtype=object), sigma=np.zeros((1, 1)))
    with pytest.raises(RcdeployError, match="cannot be read as statistics"):
        open_reference(tmp_path / "pickled.npz", network, (24, 24))
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    with pytest.raises(RcdeployError, match="cannot be read as statistics"):
        open_reference(tmp_path / "empty.npz", network, (24, 24))


def test_invalid_references(tmp_path: Path, judge_folder: Path) -> None:
    network = open_network("judge", judge_folder)
    (tmp_path / "real").mkdir()
    with pytest.raises(RcdeployError, match="holds 0 images"):
        open_reference(tmp_path / "real", network, (24, 24))
    write_images(tmp_path / "real", 3)
    (tmp_path / "real" / "2.png").write_bytes(b"no picture")
    with pytest.raises(RcdeployError, match=r"2\.png cannot be read as an image"):
        open_reference(tmp_path / "real", network, (24, 24))
    with pytest.raises(RcdeployError, match="no such file or folder"):
        open_reference(tmp_path / "gone.npz", network, (24, 24))


def test_statistics_that_are_too_large_or_not_finite_are_refused(
    tmp_path: Path, judge_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = open_network("judge", judge_folder)
    np.savez(tmp_path / "nan.npz", mu=np.full(3, np.nan), sigma=np.eye(3))
    with pytest.raises(RcdeployError, match="NaN or infinite"):
        open_reference(tmp_path / "nan.npz", network, (24, 24))
    monkeypatch.setattr("rcdeploy.evaluate.reference.MAX_STATISTICS_BYTES", 1000)
    np.savez_compressed(tmp_path / "bomb.npz", mu=np.zeros(16), sigma=np.zeros((16, 16)))
    with pytest.raises(RcdeployError, match=r"sigma has 2,176 bytes, more than 1,000"):
        open_reference(tmp_path / "bomb.npz", network, (24, 24))
    whole = (tmp_path / "nan.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RcdeployError, match="cannot be read as statistics"):
        open_reference(tmp_path / "cut.npz", network, (24, 24))


def test_reference_images_that_are_too_large_are_refused(
    tmp_path: Path, judge_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcdeploy.evaluate.reference.MAX_IMAGE_PIXELS", 500)
    write_images(tmp_path / "real", 2)
    with pytest.raises(RcdeployError, match="24x24 pixels, more than 500"):
        open_reference(tmp_path / "real", open_network("judge", judge_folder), (24, 24))
