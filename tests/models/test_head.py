"""Finding the head of any classifier by running it, and refusing what only looks like one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd3.models.head import (
    Head,
    HeadNotFound,
    _close,
    as_logits,
    find_head,
    global_avg_pool,
    is_pointwise,
    output_layers,
    run_with_features,
)
from kd3.models.student import shared_head
from kd3.models.teacher import Teacher


class Convnet(nn.Module):
    """A plain network whose last ReLU is a function, not a module."""

    def __init__(self, classes=3):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, padding=1, stride=2)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Attention(nn.Module):
    """A small vision transformer: a class token, no feature map to pool."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        return self.head(self.norm(self.layer(tokens))[:, 0])


def sequential(*tail):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), *tail)


def check(network, head):
    network.eval()
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        output = run_with_features(network, head, images)
        torch.testing.assert_close(output.logits, as_logits(network(images)))
        classifier = network.get_submodule(head.classifier)
        torch.testing.assert_close(classifier(global_avg_pool(output.features)), output.logits, rtol=1e-4, atol=1e-5)
    return output


def test_finds_the_map_before_a_pooling_module():
    network = sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    head = find_head(network, 8)
    assert (head.classifier, head.channels, head.num_classes) == ("6", 8, 3)
    assert check(network, head).features.shape == (2, 8, 4, 4)


def test_finds_a_map_behind_a_functional_relu():
    torch.manual_seed(0)
    network = Convnet()
    head = find_head(network, 8)
    assert (head.features, head.relu) == ("second", True)
    assert (check(network, head).features >= 0).all()


def test_takes_the_classifiers_input_where_nothing_is_pooled():
    torch.manual_seed(0)
    network = Attention()
    head = find_head(network, 8)
    assert head.features is None
    assert check(network, head).features.shape == (2, 8, 1, 1)
    assert "input vector of 'head'" in str(head)


def test_takes_the_vector_where_a_layer_lies_between_pool_and_classifier():
    network = sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    head = find_head(network, 8)
    assert (head.classifier, head.features, head.channels) == ("8", None, 5)
    check(network, head)


def test_flattening_a_map_is_not_pooling_it():
    network = sequential(nn.Flatten(), nn.Linear(8 * 16, 3))
    head = find_head(network, 8)
    assert head.features is None
    check(network, head)


def test_max_pooling_is_not_average_pooling():
    network = sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    head = find_head(network, 8)
    assert check(network, head).features.shape[2:] == (1, 1)


def flat(*tail):
    return sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *tail)


class Scaled(Convnet):
    def forward(self, x):
        return super().forward(x) * 10


class TwoHeads(Attention):
    """As distilled DeiT: the mean of what two tokens are classified as."""

    def __init__(self):
        super().__init__()
        self.head_dist = nn.Linear(8, 3)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return (self.head(tokens[:, 0]) + self.head_dist(tokens[:, 1])) / 2


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Scaled, "no layer puts out the 3 logits themselves: 'fc' puts out 3 values, and something follows"),
        (TwoHeads, "its 3 logits are the mean of 2 heads, 'head' and 'head_dist', each with an input of its own"),
        (lambda: flat(nn.Linear(8, 5), nn.Linear(5, 3), nn.Sigmoid()), r"'7' puts out 3 values, and something follows"),
        (lambda: sequential(nn.Conv2d(8, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "there is no linear layer"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.GLU()), r"\(the linear layers put out 6 values\)"),
    ],
)
def test_says_why_a_head_cannot_be_shared(make, why):
    torch.manual_seed(0)
    network = make()
    with pytest.raises(HeadNotFound, match=why):
        find_head(network, 8)


@pytest.mark.parametrize(
    ("tail", "map_is_seen"),
    [
        ([nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 3, 1), nn.Flatten()], True),  # after the pooling
        ([nn.Conv2d(8, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()], True),  # before it: they commute
        ([nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1), nn.Flatten()], True),
        ([nn.AdaptiveMaxPool2d(1), nn.Conv2d(8, 3, 1, bias=False), nn.Flatten()], False),
    ],
)
def test_a_convolution_of_one_by_one_is_a_classifier(tail, map_is_seen):
    network = sequential(*tail)
    head = find_head(network, 8)
    assert (head.channels, head.num_classes) == (8, 3)
    network.eval()
    images = torch.randn(2, 3, 8, 8)
    teacher = Teacher(network, mean=[0] * 3, std=[1] * 3, input_size=8)
    assert teacher.sharing_problem() is None
    seen = teacher.outputs(images)
    assert (seen.features.shape[2] > 1) is map_is_seen
    torch.testing.assert_close(teacher.classifier()(global_avg_pool(seen.features)), network(images).detach())
    # And such a network is a student, whose own classifier goes.
    student = shared_head(
        network, teacher.signature(), name="x", classifier=nn.Linear(6, 3), projector_width=None, final_relu=True
    )
    assert student.eval()(images).shape == (2, 3)
    assert isinstance(student.backbone.get_submodule(head.classifier), nn.Identity)


def test_a_convolution_with_an_activation_behind_it_is_no_classifier():
    network = sequential(nn.Conv2d(8, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(HeadNotFound, match="'4' puts out 3 values, and something follows"):
        find_head(network, 8)


@pytest.mark.parametrize("tail", [[nn.Dropout(0.5)], [nn.BatchNorm1d(8)], [nn.LayerNorm(8)]])
def test_dropout_and_norms_before_the_classifier_leave_it_shareable(tail):
    network = flat(*tail, nn.Linear(8, 1000)).train()
    head = find_head(network, 8)
    assert (head.classifier, head.num_classes) == (str(len(network) - 1), 1000)
    check(network, head)


def test_an_untrained_network_whose_values_fade_is_matched_by_what_it_does():
    network = sequential(nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        network[0].weight *= 1e-28
        network[-1].bias.zero_()
        network[0].bias.zero_()
        network[4].bias.zero_()
    head = find_head(network, 8)
    assert (head.features, head.side) == ("5", "input")
    with torch.no_grad():
        network[0].weight.zero_()
    assert find_head(network, 8).features is None  # all zeros: nothing tells one map from another


def test_reads_the_logits_out_of_what_models_return():
    logits = torch.zeros(2, 3)

    class Output:
        def __init__(self):
            self.logits = logits

    for output in (logits, Output(), {"logits": logits}, (logits, None)):
        assert as_logits(output) is logits
    with pytest.raises(HeadNotFound, match="shape \\(2, 3, 4\\)"):
        as_logits(torch.zeros(2, 3, 4))


class TwoLayers(nn.Module):
    """Two linear layers of as many values; the second is given."""

    def __init__(self, second, between=lambda x: x):
        super().__init__()
        self.stem, self.one, self.two, self.between = nn.Conv2d(3, 5, 3), nn.Linear(5, 3), second, between

    def forward(self, x):
        return self.two(self.between(self.one(self.stem(x).mean((2, 3)))))


def test_of_layers_with_as_many_values_the_one_that_makes_the_logits_is_taken():
    torch.manual_seed(0)
    network = TwoLayers(nn.Linear(3, 3), F.relu)
    assert output_layers(network, 8) == ["two"]
    assert find_head(network, 8).classifier == "two"


def test_a_last_layer_that_changes_nothing_yet_is_the_one_that_makes_the_logits():
    torch.manual_seed(0)
    network = TwoLayers(nn.Linear(3, 3))
    nn.init.eye_(network.two.weight)
    nn.init.zeros_(network.two.bias)
    assert output_layers(network, 8) == ["two"]
    assert find_head(network, 8).classifier == "two"


def test_layers_of_which_no_one_makes_the_logits_are_those_with_as_many_values():
    torch.manual_seed(0)
    assert output_layers(TwoLayers(nn.Linear(3, 3), F.relu).eval(), 8) == ["two"]
    scaled = nn.Sequential(TwoLayers(nn.Linear(3, 3), F.relu), nn.Softplus())
    assert output_layers(scaled, 8) == ["0.one", "0.two"]


def test_leaves_the_network_as_it_was():
    network = Convnet().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    find_head(network, 8)
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet20", "resnet8x4", "wrn_16_1", "vgg8", "mobilenet_v2", "shufflenet_v2"]
)
def test_finds_a_map_in_each_family_of_the_zoo(name):
    from kd3.models.libraries.zoo import build_by_name

    network = build_by_name(name, num_classes=4)
    head = find_head(network, 32)
    network.eval()
    with torch.no_grad():
        features = run_with_features(network, head, torch.randn(2, 3, 32, 32)).features
    assert features.shape[2] > 1
    assert (features >= 0).all()


class Twice(nn.Module):
    """One activation at two places; the second one's output is pooled."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.act = nn.GELU()

    def forward(self, images):
        return self.fc(self.act(self.second(self.act(self.first(images)))).mean((2, 3)))


def test_of_a_module_that_runs_twice_the_last_run_counts():
    network = Twice().eval()
    head = find_head(network, 8)
    assert (head.features, head.side, head.relu) == ("act", "output", False)
    found = run_with_features(network, head, torch.randn(2, 3, 8, 8))
    assert torch.allclose(network.fc(found.features.mean((2, 3))), found.logits, atol=1e-6)


class OfFour(nn.Module):
    """Passes four images on, and any other number of them doubled."""

    def forward(self, maps):
        return maps if len(maps) == 4 else 2 * maps


class Misleading(Twice):
    """Its last map is that of the features in the run that finds them, and in no other."""

    def __init__(self):
        super().__init__()
        self.decoy = OfFour()

    def forward(self, images):
        maps = self.first(images)
        self.decoy(maps)
        return self.fc(maps.mean((2, 3)))


def test_a_match_that_other_images_do_not_confirm_is_given_up():
    assert find_head(Misleading().eval(), 8) == Head("fc", None, "input", False, 8, 5)


@pytest.mark.parametrize(
    ("layer", "is_one"),
    [
        (nn.Conv2d(4, 4, 1), True),
        (nn.Conv2d(4, 4, 1, padding="valid"), True),
        (nn.Conv2d(4, 4, 1, groups=2), False),
        (nn.Conv2d(4, 4, 1, stride=2), False),
        (nn.Conv2d(4, 4, 1, padding=1), False),
        (nn.Conv2d(4, 4, 3), False),
        (nn.Linear(4, 4), False),
    ],
)
def test_a_convolution_is_pointwise_where_it_is_a_linear_layer_at_each_place(layer, is_one):
    assert is_pointwise(layer) == is_one


def test_values_of_any_size_are_compared_by_their_share():
    small, large = torch.tensor([1e-20, 2e-20]), torch.tensor([1e9, 2e9])
    assert not _close(small, 1.01 * small)
    assert _close(large, large * (1 + 1e-6))
    assert not _close(large[:1], large)
