"""Finding the head of any classifier by running it, and refusing what only looks like one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd3.models.head import HeadNotFound, as_logits, find_head, pool, run_with_features


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
        torch.testing.assert_close(classifier(pool(output.features)), output.logits, rtol=1e-4, atol=1e-5)
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


def test_says_why_scaled_logits_cannot_be_shared():
    class Scaled(Convnet):
        def forward(self, x):
            return super().forward(x) * 10

    with pytest.raises(HeadNotFound, match=r"no nn.Linear puts out the 3 logits themselves .*\[3\]"):
        find_head(Scaled(), 8)


def test_says_so_where_there_is_no_linear_layer():
    network = sequential(nn.Conv2d(8, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(HeadNotFound, match="there is no linear layer"):
        find_head(network, 8)


def test_reads_the_logits_out_of_what_models_return():
    logits = torch.zeros(2, 3)

    class Output:
        def __init__(self):
            self.logits = logits

    for output in (logits, Output(), {"logits": logits}, (logits, None)):
        assert as_logits(output) is logits
    with pytest.raises(HeadNotFound, match="shape \\(2, 3, 4\\)"):
        as_logits(torch.zeros(2, 3, 4))


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
    from kd3.models.zoo.build import build

    network = build(name, num_classes=4)
    head = find_head(network, 32)
    network.eval()
    with torch.no_grad():
        features = run_with_features(network, head, torch.randn(2, 3, 32, 32)).features
    assert features.shape[2] > 1
    assert (features >= 0).all()
