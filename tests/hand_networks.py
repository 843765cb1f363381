"""Networks of a few layers, each with one way in which channels hang together: images [N, 3, 8, 8] → logits [N, 5]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPE, CLASSES = (3, 8, 8), 5


def conv(into: int, out: int, size: int = 3, **how: int) -> nn.Conv2d:
    return nn.Conv2d(into, out, size, padding=size // 2, **how)  # type: ignore[arg-type]


def unlike_a_batch(network: nn.Module) -> None:
    """Batch norms with biases, and running statistics that no batch has."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0, 0.3)
            module.running_mean = 0.3 * torch.randn(module.num_features)
            module.running_var = 0.5 + torch.rand(module.num_features)


def shuffle(images: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = images.shape
    return images.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(images.shape)


class Hand(nn.Module):
    """A first convolution `a` of 8 channels and a classifier `fc`; what is between them is the subclass's."""

    def __init__(self, into: int = 8, first: int = 8) -> None:
        super().__init__()
        self.a, self.fc = conv(3, first), nn.Linear(into, CLASSES)

    def body(self, x: Tensor) -> Tensor:
        return x

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(F.relu(self.body(F.relu(self.a(images)))).mean((2, 3)))


class Residual(Hand):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.b = nn.BatchNorm2d(8), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return x + self.b(F.relu(self.norm(x)))


class Concat(Hand):
    def __init__(self) -> None:
        super().__init__(6)
        self.b, self.c = conv(8, 4), conv(12, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([x, F.relu(self.b(x))], 1))


class Shuffle(Hand):
    """ShuffleNet's: half of the channels go by, and then both halves are mixed."""

    def __init__(self) -> None:
        super().__init__(6)
        self.b, self.c = conv(4, 4), conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, 1)
        return self.c(F.relu(shuffle(torch.cat([one, self.b(other)], 1), 2)))


class Grouped(Hand):
    def __init__(self) -> None:
        super().__init__(12)
        self.b = conv(8, 12, groups=2)

    def body(self, x: Tensor) -> Tensor:
        return self.b(x)


class Depthwise(Hand):
    """With two filters a channel."""

    def __init__(self) -> None:
        super().__init__(6)
        self.b, self.c = conv(8, 16, groups=8), conv(16, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(x)))


class Squeeze(Hand):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = conv(8, 4, 1), conv(4, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class LayerScale(Hand):
    """A parameter that is no layer's; so small that nothing behind it shows in the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.c = conv(8, 6), conv(6, 8)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 1e-6))

    def body(self, x: Tensor) -> Tensor:
        return x + self.scale * self.c(F.relu(self.b(x)))


class Tokens(Hand):
    """A residual stream [N, 64, 8] under layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def body(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.down(F.gelu(self.up(self.norm(tokens))))
        return self.last(tokens).transpose(1, 2).unflatten(2, (8, 8))


class Response(Hand):
    """ConvNeXt V2's global response normalisation: each channel by the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(1, 8, 1, 1))

    def body(self, x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        return x + self.gain * (x * (size / (size.mean(1, keepdim=True) + 1e-6)))


class Flattened(Hand):
    def __init__(self) -> None:
        super().__init__(32)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.a(images), 2), 1))


class Padded(Hand):
    """A shortcut without parameters: every second pixel, and channels of zeros before and after."""

    def __init__(self) -> None:
        super().__init__(12)
        self.b = conv(8, 12, stride=2)

    def body(self, x: Tensor) -> Tensor:
        return self.b(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))


class Gated(Hand):
    def __init__(self) -> None:
        super().__init__(4)

    def body(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, 1)
        return one * torch.sigmoid(other)


class GatedAsOne(Hand):
    """`Gated`, as torch's own operation."""

    def __init__(self) -> None:
        super().__init__(4)

    def body(self, x: Tensor) -> Tensor:
        return F.glu(x, 1)


class Halves(nn.Module):
    """A part that takes its maps apart at a number of its own, and reads the second half once more."""

    def __init__(self, half: int = 4) -> None:
        super().__init__()
        self.half, self.b = half, conv(half, half)

    def forward(self, maps: Tensor) -> Tensor:
        one, other = maps.split((self.half, self.half), 1)
        return torch.cat([one, other, F.relu(self.b(other))], 1)


class Parted(Hand):
    def __init__(self) -> None:
        super().__init__(6)
        self.halves, self.c = Halves(), conv(12, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.c(self.halves(x))


class Standardised(Hand):
    """A convolution whose weights are brought to mean 0 and deviation 1, each filter's."""

    def __init__(self) -> None:
        super().__init__(6)
        self.b, self.c = conv(8, 8), conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        weight = self.b.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)
        return self.c(F.relu(F.conv2d(x, weight, self.b.bias, padding=1)))


class Twice(Hand):
    """One layer that is gone through twice."""

    def __init__(self) -> None:
        super().__init__()
        self.b = conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.b(x)))


class Attention(Hand):
    """Two heads of four; then two layers that anything can be cut of."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def body(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        count = tokens.shape[1]
        query, key, value = self.qkv(tokens).reshape(-1, count, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(mixed.transpose(1, 2).reshape(-1, count, 8))
        return (tokens + self.down(F.gelu(self.up(tokens)))).transpose(1, 2).unflatten(2, (8, 8))


class ClassToken(Hand):
    """A token of its own before those of the pixels, and a place added to each."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Parameter(torch.rand(1, 1, 8)), nn.Parameter(torch.rand(1, 65, 8))
        self.b = nn.Linear(8, 8)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.a(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1) + self.place
        return self.fc(F.relu(self.b(F.relu(tokens)))[:, 0])


class Stacked(Hand):
    """Two ways that are stacked and summed."""

    def __init__(self) -> None:
        super().__init__(6)
        self.b, self.c = conv(8, 6), conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return torch.stack([self.b(x), self.c(x)], 1).sum(1)


class Sorted(Hand):
    """An operation that nothing is known about."""

    def __init__(self) -> None:
        super().__init__()
        self.b = conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.b(x.sort(1).values)


class Rows(nn.Module):
    """A part whose forward pass reads a number that must shrink with its channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.inner = width, conv(8, width)

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.inner(maps)).reshape(len(maps), self.width, 8, 8)


class Sized(Hand):
    def __init__(self) -> None:
        super().__init__(6)
        self.rows = Rows(6)

    def body(self, x: Tensor) -> Tensor:
        return self.rows(x)


class Upwards(Hand):
    """A transposed convolution, whose weight is [in, out]."""

    def __init__(self) -> None:
        super().__init__(6)
        self.b, self.c = nn.ConvTranspose2d(8, 8, 2, stride=2), conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(x)))


NETWORKS = {
    kind.__name__.lower(): kind
    for kind in (
        Residual, Concat, Shuffle, Grouped, Depthwise, Squeeze, LayerScale, Tokens, Response, Flattened, Padded, Gated,
        GatedAsOne, Parted, Standardised, Twice, Attention, ClassToken, Stacked, Sorted, Sized, Upwards,
    )
}  # fmt: skip


def hand_network(name: str) -> nn.Module:
    """The network of that name, always with the same weights, in eval mode."""
    torch.manual_seed(0)
    return NETWORKS[name]().eval()
