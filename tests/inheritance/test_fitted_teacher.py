"""A teacher whose batch norms are fitted to a crawl."""

import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import kd3
from kd3.inheritance.fitted_teacher import fit_teacher, information
from kd3.models.batch_norms import blended, counted, mean_distance, remembered, set_statistics
from kd3.models.libraries.zoo import build_by_name
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.scoring.batches import PoolBatches

CPU = Compute(torch.device("cpu"), "32")


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    network = build_by_name("resnet8", num_classes=4)
    network.train()
    for _ in range(40):  # statistics of noise around 0
        network(torch.randn(32, 3, 16, 16))
    return kd3.Teacher(network.eval(), mean=(0.5,) * 3, std=(0.25,) * 3, input_size=16)


def pool_of(tmp_path=None, count=300, seed=0):
    """Images far darker than the noise that the teacher knows."""
    pixels = np.random.default_rng(seed).integers(0, 60, (count, 3, 16, 16), dtype=np.uint8)
    pool = kd3.ImagePool.from_array(pixels)
    return pool


def fit(teacher, pool, **options):
    batches = PoolBatches(pool, CPU)
    return fit_teacher(teacher, batches, np.arange(len(pool)), CPU, **options)


def test_the_lost_datas_statistics_leave_the_teacher_as_it_is(teacher):
    fitted = fit(teacher, pool_of(), how="lost")
    assert fitted.teacher is teacher
    assert fitted.blend == 0


def test_the_crawls_statistics_are_those_of_its_images_with_each_layer_normalised_by_its_own_batch(teacher):
    pool = pool_of(count=250)
    fitted = fit(teacher, pool, how="crawl")
    images = teacher.normalise(torch.from_numpy(pool.read(np.arange(250))))
    network = build_by_name("resnet8", num_classes=4)
    network.load_state_dict(teacher.module.state_dict())
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        network.train()(images)
    for name, (mean, variance) in remembered(network).items():
        own = remembered(fitted.teacher.module)[name]
        assert torch.allclose(own.mean, mean, atol=1e-4), name
        assert torch.allclose(own.variance, variance, rtol=1e-3, atol=1e-5), name
    assert fitted.distance > 0.1
    assert fitted.distance_left == pytest.approx(0, abs=1e-6)


def test_a_blend_lies_between_and_the_users_teacher_stays(teacher):
    pool, before = pool_of(), remembered(teacher.module)
    crawl = remembered(fit(teacher, pool, how="crawl").teacher.module)
    fitted = fit(teacher, pool, how="blend", blend=0.25)
    for name, (mean, variance) in remembered(fitted.teacher.module).items():
        assert torch.allclose(mean, 0.75 * before[name].mean + 0.25 * crawl[name].mean, atol=1e-6)
        assert torch.allclose(variance, 0.75 * before[name].variance + 0.25 * crawl[name].variance, atol=1e-6)
        assert torch.equal(remembered(teacher.module)[name].mean, before[name].mean)
    assert fitted.teacher.fingerprint() != teacher.fingerprint()
    assert fit(teacher, pool, how="blend", blend=0.0).teacher.fingerprint() == teacher.fingerprint()


def test_auto_takes_the_most_informative_share(teacher):
    fitted = fit(teacher, pool_of(), how="auto")
    assert fitted.blend == max(fitted.information, key=fitted.information.get)
    assert len(fitted.information) == 6
    assert "most information" in fitted.reason


def test_information_is_that_of_sure_and_varied_answers():
    sure = 50 * torch.eye(4)
    assert information(sure) == pytest.approx(np.log(4), abs=1e-6)
    assert information(50 * torch.eye(4)[:1].repeat(9, 1)) == pytest.approx(0, abs=1e-6)  # one class for all
    assert information(torch.zeros(9, 4)) == pytest.approx(0, abs=1e-6)  # no idea of any


def test_a_teacher_without_batch_norms_is_left_alone():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4))
    plain = kd3.Teacher(network, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=16)
    fitted = fit(plain, pool_of(), how="auto")
    assert fitted.teacher is plain
    assert "no batch norms" in fitted.in_words()
    with pytest.raises(KD3Error, match=r"no batch norms.*use --teacher-statistics lost or auto"):
        fit(plain, pool_of(), how="crawl")


def test_statistics_are_kept_beside_the_pool_and_counted_once(teacher, pool_folder, monkeypatch, tmp_path):
    import shutil

    from kd3.inheritance import fitted_teacher

    kept_by_others = shutil.ignore_patterns("teacher_statistics")
    shutil.copytree(pool_folder, tmp_path / "pool", ignore=kept_by_others)
    pool = kd3.ImagePool.open(tmp_path / "pool")
    first = fit(teacher, pool, how="auto")
    monkeypatch.setattr(fitted_teacher, "counted", None)  # would be an error now
    again = fit(teacher, pool, how="auto")
    assert again.information == first.information
    assert again.teacher.fingerprint() == first.teacher.fingerprint()
    (kept,) = (tmp_path / "pool" / "teacher_statistics").glob("*.safetensors")
    kept.write_bytes(b"damaged")
    monkeypatch.undo()
    assert fit(teacher, pool, how="auto").teacher.fingerprint() == first.teacher.fingerprint()


def test_a_runs_own_copy_decides(teacher, tmp_path):
    kept = tmp_path / "run" / "teacher_statistics.safetensors"
    first = fit(teacher, pool_of(), how="auto", kept=kept)
    elsewhere = fit(teacher, pool_of(seed=5), how="auto", kept=kept)
    assert elsewhere.teacher.fingerprint() == first.teacher.fingerprint()


def test_counting_leaves_the_network_as_it_was(teacher):
    before = {name: value.clone() for name, value in teacher.module.state_dict().items()}
    momenta = [m.momentum for m in teacher.module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    statistics = counted(teacher.module, [torch.randn(8, 3, 16, 16), torch.randn(8, 3, 16, 16)])
    for name, value in teacher.module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert momenta == [m.momentum for m in teacher.module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not any(module.training for module in teacher.module.modules())
    own = remembered(teacher.module)
    assert mean_distance(own, own) == 0
    set_statistics(teacher.module, blended(own, statistics, 1.0))
    assert mean_distance(remembered(teacher.module), statistics) == pytest.approx(0, abs=1e-9)


def test_the_blend_is_checked_before_anything_is_written(teacher_file, pool_folder, tmp_path):
    for wrong, sentence in [
        ({"teacher_statistics": "blend"}, "'blend' needs it"),
        ({"teacher_blend": 0.5}, "teacher_blend goes with"),
        ({"teacher_statistics": "blend", "teacher_blend": 1.5}, "teacher_blend"),
        ({"init": "copy"}, "init"),
    ]:
        with pytest.raises(KD3Error, match=sentence):
            kd3.distill(teacher_file, "kd3:resnet8", pool_folder, tmp_path / "run", **wrong)
    assert not (tmp_path / "run").exists()


def changed(change):
    """Return a change of a stored file: of its tensors and its metadata."""

    def write(path):
        with safe_open(path, framework="pt") as file:
            tensors, shares = {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata())  # noqa: SIM118
        change(tensors, shares)
        save_file(tensors, path, metadata=shares)

    return write


DAMAGE = {
    "no tensors file": lambda path: path.write_bytes(b"junk"),
    "a layer is missing": changed(lambda tensors, _: tensors.pop(sorted(tensors)[0])),
    "another number of channels": changed(lambda tensors, _: tensors.update({sorted(tensors)[2]: torch.zeros(5)})),
    "a mean that is no number": changed(lambda tensors, _: tensors[sorted(tensors)[0]].fill_(float("nan"))),
    "a negative variance": changed(lambda tensors, _: tensors[sorted(tensors)[1]].fill_(-1.0)),
    "a share beyond all": changed(lambda _, shares: shares.update({"7.0": "99.0"})),
    "information that is no number": changed(lambda _, shares: shares.update({"1.0": "nan"})),
}


@pytest.mark.parametrize("how", ["crawl", "auto"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_stored_statistics_that_cannot_be_are_counted_again(damage, how, teacher, pool_folder, tmp_path, capsys):
    without = shutil.ignore_patterns("teacher_*")  # other tests may have left statistics there
    pool = kd3.ImagePool.open(shutil.copytree(pool_folder, tmp_path / "pool", ignore=without))
    first = fit(teacher, pool, how="auto")
    (path,) = (tmp_path / "pool" / "teacher_statistics").iterdir()
    DAMAGE[damage](path)
    again = fit(teacher, pool, how=how)
    assert "the crawl's statistics are counted again" in capsys.readouterr().err
    assert again.distance == first.distance
    assert again.blend == (1.0 if how == "crawl" else first.blend)
