"""Saliency against closed forms: SNIP by hand, SynFlow's conservation, GraSP with an explicit Hessian."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from wmlc.compress.config import CHOICES
from wmlc.compress.widths.proof import read_channels
from wmlc.compress.widths.rank import group_magnitude, group_taylor
from wmlc.compress.widths.saliency import importance, parameter_saliency
from wmlc.models.zoo import build_network


def random_images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_snip_of_a_linear_layer_worked_by_hand() -> None:
    # W x = (2·1 − 1·2, 1·1 + 0·2) = (0, 1) = z; with q = softmax(z), ∂CE/∂W = (q − y) xᵀ.
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    network[1].weight.data = torch.tensor([[2.0, -1.0], [1.0, 0.0]])
    scores = parameter_saliency(network, torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([0]), "snip")
    q1 = torch.e / (1 + torch.e)
    expected = torch.tensor([[q1 * 1 * 2, q1 * 2 * 1], [q1 * 1 * 1, 0.0]])
    torch.testing.assert_close(scores["1.weight"], expected)


def test_snip_is_gradient_times_parameter_on_batch_statistics() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    network = network.double()
    images, labels = random_images(5, 3, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    conv = F.conv2d(images, network[0].weight, network[0].bias)
    centred = conv - conv.mean((0, 2, 3), keepdim=True)
    normed = centred / (centred.square().mean((0, 2, 3), keepdim=True) + network[1].eps).sqrt()
    scaled = normed * network[1].weight.view(1, 4, 1, 1) + network[1].bias.view(1, 4, 1, 1)
    F.cross_entropy(network[4](scaled.relu().flatten(1)), labels).backward()
    expected = {name: (p.grad * p).abs().detach() for name, p in network.named_parameters()}
    torch.testing.assert_close(parameter_saliency(network.eval(), images, labels, "snip"), expected)


@pytest.fixture
def plain() -> nn.Sequential:
    """Layers without bias or batch norm, with weights of both signs."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1, groups=2, bias=False), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 5, bias=False),
    )  # fmt: skip


def test_synflow_is_conserved_from_layer_to_layer(plain: nn.Sequential) -> None:
    scores = parameter_saliency(plain, random_images(2, 3, 8, 8), torch.tensor([0, 1]), "synflow")
    positive = copy.deepcopy(plain).double()
    for parameter in positive.parameters():
        parameter.data.abs_()
    total = positive(torch.ones(1, 3, 8, 8, dtype=torch.float64)).sum()
    assert len(scores) == 3
    for score in scores.values():
        torch.testing.assert_close(score.sum(), total)
        assert score.min() >= 0


def test_synflow_enters_and_leaves_every_hidden_channel_alike(plain: nn.Sequential) -> None:
    scores = parameter_saliency(plain, random_images(2, 3, 8, 8), torch.tensor([0, 1]), "synflow")
    entering = scores["0.weight"].sum((1, 2, 3))
    leaving = scores["2.weight"].view(2, 2, 3, 3, 3).sum((1, 3, 4)).flatten()
    torch.testing.assert_close(entering, leaving)


def test_synflow_looks_at_no_data() -> None:
    torch.manual_seed(0)
    network = build_network("resnet20", 10, (3, 8, 8))
    once = parameter_saliency(network, random_images(2, 3, 8, 8), torch.tensor([0, 1]), "synflow")
    again = parameter_saliency(network, torch.zeros(5, 3, 8, 8), torch.zeros(5, dtype=torch.int64), "synflow")
    torch.testing.assert_close(once, again, rtol=0, atol=0)


def test_synflow_stays_finite_in_the_deepest_network() -> None:
    torch.manual_seed(0)
    network = build_network("resnet101", 10, (3, 8, 8))
    scores = parameter_saliency(network, torch.zeros(1, 3, 8, 8), torch.tensor([0]), "synflow")
    assert all(score.isfinite().all() and score.sum() > 0 for name, score in scores.items() if "conv" in name)


def test_grasp_is_minus_hessian_times_gradient_times_parameter() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
    images, labels = random_images(4, 1, 3, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    theta = torch.cat([parameter.flatten() for parameter in parameters.values()])

    def loss(theta: Tensor) -> Tensor:
        parts = theta.split([parameter.numel() for parameter in parameters.values()])
        at = {name: part.view_as(parameters[name]) for name, part in zip(parameters, parts, strict=True)}
        return F.cross_entropy(functional_call(network.train(), at, (images,)), labels)

    gradient = torch.autograd.functional.jacobian(loss, theta)
    hessian = torch.autograd.functional.hessian(loss, theta)
    expected = -(hessian @ gradient) * theta
    scores = parameter_saliency(network, images, labels, "grasp")
    got = torch.cat([scores[name].flatten() for name in parameters])
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_grasp_looks_through_attention() -> None:
    """Whose fused kernels have no second derivative."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    network = nn.Sequential(nn.Flatten(2), layer, nn.Flatten(), nn.Linear(24, 3))
    scores = parameter_saliency(network, torch.randn(4, 3, 2, 4), torch.tensor([0, 1, 2, 0]), "grasp")
    assert all(score.isfinite().all() for score in scores.values()) and scores["1.self_attn.in_proj_weight"].any()


def test_grasp_keeps_its_lowest_scores_and_the_others_their_highest() -> None:
    scores = {"weight": torch.tensor([3.0, -1.0])}
    torch.testing.assert_close(importance(scores, "grasp"), {"weight": torch.tensor([-3.0, 1.0])})
    for kind in ("snip", "synflow"):
        torch.testing.assert_close(importance(scores, kind), scores)


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v2"])
@pytest.mark.parametrize("kind", CHOICES["saliency"])
def test_scores_cover_every_parameter_and_leave_the_network_untouched(kind: str, arch: str) -> None:
    torch.manual_seed(0)
    network = build_network(arch, 10, (3, 8, 8)).train()
    network[1].eval()  # a mode of its own
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    tensors, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    scores = parameter_saliency(network, random_images(4, 3, 8, 8), torch.tensor([3, 1, 4, 1]), kind)

    assert {name: s.shape for name, s in scores.items()} == {name: p.shape for name, p in network.named_parameters()}
    assert all(score.isfinite().all() and not score.requires_grad for score in scores.values())
    torch.testing.assert_close(dict(network.state_dict()), dict(tensors), rtol=0, atol=0)
    assert [module.training for module in network.modules()] == modes
    assert all(p.requires_grad and p.dtype == torch.float32 for p in network.parameters())
    assert all(torch.equal(p.grad, torch.full_like(p, 0.5)) for p in network.parameters())


def test_synflow_reaches_every_layer_below_a_relu6() -> None:
    torch.manual_seed(0)
    network = build_network("mobilenet_v2", 10, (3, 32, 32))
    scores = parameter_saliency(network, random_images(1, 3, 32, 32), torch.tensor([0]), "synflow")
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert scores[f"{name}.weight"].sum() > 0, name


class OwnConv(nn.Module):
    """A convolution that is of no class of torch's."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(out, into, 3, 3)), nn.Parameter(torch.zeros(out))

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(F.conv2d(images, self.weight, self.bias, padding=1))


def test_layers_of_classes_that_are_not_known_count_by_their_weights() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(OwnConv(3, 8), OwnConv(8, 4), nn.Flatten(), nn.Linear(64, 3)).eval()
    with torch.no_grad():
        network[0].weight[:4] *= 1e-3
        network[1].weight[:, :4] *= 1e-3
    graph = read_channels(network, (3, 4, 4))
    batch = torch.randn(4, 3, 4, 4), torch.tensor([0, 1, 2, 0])
    for scores in (group_magnitude(network, graph), group_taylor(network, graph, [batch], True)):
        own = next(score for group, score in zip(graph.groups, scores, strict=True) if group.root == "0")
        assert own[:4].max() < own[4:].min()
