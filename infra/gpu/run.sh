#!/usr/bin/env bash
# What: a part of `make gpu`: tests (pytest -m gpu), bench (the benchmarks on CUDA) or train (FER2013, and evaluation).
#   It needs torch, pyarrow, OpenCV, pytest and the wheels of `make gpu-wheels`; no Ray, MLflow or DVC, no network.
# Command: bash infra/gpu/run.sh tests|bench|train [MODEL ...]
#   Variables: OUT, a folder for the results; LIMIT, seconds after which the part ends (560); DEVICE (cuda; cpu shows in
#   small that it runs); PROJECT (.gpu/project) and DATASET (fer2013) of train; RESULTS (.gpu/results).
# Expect: each part ends within LIMIT and says what is left; the same command does the rest. Status 0: all is done and
#   well; 1: something failed; 75: out of time. OUT gets at most 8 files of 15 MiB: results.tgz, the weights of small
#   networks, and of one that is not finished its newest checkpoint, in parts. To go on elsewhere: unpack results.tgz
#   into RESULTS, and the parts of a checkpoint, joined by `cat`, into the PROJECT's .work. Not run on a GPU yet.
set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 1
checkout=$PWD part=${1:-} device=${DEVICE:-cuda} limit=${LIMIT:-560} failed=0
project=${PROJECT:-.gpu/project} dataset=${DATASET:-fer2013} results=${RESULTS:-.gpu/results}
if compgen -G '.gpu/wheels/*.whl' >/dev/null && [ ! -d .gpu/site ]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --target .gpu/site .gpu/wheels/*.whl || exit 1
fi
export PYTHONPATH=$checkout:$checkout/.gpu/site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$results" "$project"
project=$(realpath "$project") results=$(realpath "$results") OUT=${OUT:+$(realpath -m "$OUT")}

once() { # NAME COMMAND...: unless an earlier run has finished it, in what is left of the time
    grep -qxF "$part $1" "$results/done" 2>/dev/null && return
    local left=$((limit - SECONDS))
    [ "$left" -ge 20 ] || { echo "out of time before: $1; the same command does it"; finish 75; }
    echo "== $1"
    timeout -k 15 "$left" "${@:2}" 2>&1 | tee -a "$results/$part.log"
    case ${PIPESTATUS[0]} in
        0) echo "$part $1" >>"$results/done" ;;
        124 | 137) echo "out of time in: $1; the same command resumes it"; finish 75 ;;
        *)
            echo "failed: $1" | tee -a "$results/$part.log"
            failed=1
            return 1
            ;;
    esac
}

in_parts() { # FILE NAME: into OUT, if it fits into four parts; 15 MiB are less than 16 MB
    [ "$(stat -c %s "$1")" -gt $((4 * 15728640 + 4194304)) ] || split -d -b 15728640 "$1" "$OUT/$2."
}

finish() {
    if [ -n "$OUT" ]; then
        mkdir -p "$OUT"
        for model in "${models[@]}"; do
            mkdir -p "$results/$model"
            cp "$project/trained/$dataset/$model"/*.{csv,json} "$project/evaluated/$dataset/$model"/*.{csv,json} \
                "$results/$model/" 2>/dev/null
        done
        tar -czf "$OUT/results.tgz" -C "$results" .
        checkpoint=$(find "$project/.work" -name 'state-*.pt' -printf '%T@ %p\n' 2>/dev/null | sort -n | tail -1)
        if [ -n "$checkpoint" ]; then
            in_parts "${checkpoint#* }" "$(basename "$(dirname "$checkpoint")").$(basename "$checkpoint")"
        else
            for model in "${models[@]}"; do
                weights=$project/trained/$dataset/$model/model.safetensors
                [ ! -f "$weights" ] || [ "$(stat -c %s "$weights")" -gt 20000000 ] || in_parts "$weights" "$model"
            done
        fi
        ls -l "$OUT"
    fi
    exit "$1"
}

models=()
case $part in
    tests)
        [ "$device" != cpu ] || export FER_TEST_DEVICE=cpu
        for file in $(grep -rl 'mark\.gpu' tests --include='test_*.py' | sort); do
            once "$file" python3 -m pytest -m gpu --junitxml="$results/$(basename "$file" .py).xml" "$file"
        done
        ;;
    bench)
        networks=(ddamfn poster_v2 dynamic_vit_tiny dynamic_vit_small dynamic_vit_base vit_b16 resnet34v2 lhc_net)
        passes=(models --device "$device" --batch 128 --seconds 4)
        loop=(loop --device "$device" --batch 128 --seconds 5 --workers 14 --precision bf16)
        if [ "$device" = cpu ]; then
            networks=(ddamfn) passes=(models --batch 4 --seconds 0 --no-memory)
            loop=(loop --batch 2 --steps 1 --seconds 0 --workers 1)
        fi
        for name in "${networks[@]}"; do
            for what in passes loop compiled; do
                command=("${loop[@]}")
                [ $what != passes ] || command=("${passes[@]}")
                [ $what != compiled ] || command+=(--compile)
                [ "$what $device" = "compiled cpu" ] ||
                    once "$what $name" python3 -m benchmarks "${command[@]}" --models "$name" \
                        --json "$results/$what-$name.json"
            done
        done
        ;;
    train)
        models=("${@:2}")
        [ ${#models[@]} -gt 0 ] || models=(ddamfn_small ddamfn lhc_net)
        [ -f "$project/params.yaml" ] || cp infra/gpu/params.yaml "$project/"
        cd "$project" || exit 1
        for model in "${models[@]}"; do
            once "train $model" python3 -m pipelines.train --dataset "$dataset" --model "$model" &&
                once "evaluate $model" python3 -m pipelines.evaluate --dataset "$dataset" --model "$model"
        done
        ;;
    *)
        echo "bash infra/gpu/run.sh tests|bench|train [MODEL ...]" >&2
        exit 2
        ;;
esac
finish "$failed"
