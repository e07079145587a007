#!/usr/bin/env bash
# Everything that is measured on one GPU, in parts of less than nine minutes each, with results in one folder:
#
#     bench/h200.sh FOLDER [NAME...]     runs all parts, or those whose names begin so
#     bench/h200.sh --list [NAME...]     says what it would run
#
# FOLDER counts from the checkout. A part is finished when FOLDER/NAME.json is there, and is then skipped: the same
# command goes on where it stopped, on the next machine, too. A part that fails or takes too long leaves
# FOLDER/NAME.log, and the others go on. PYTHON chooses the interpreter (default: python3); it needs the extras `cuda`,
# `train` and, for `peer`, `test` with CUDA's PyTorch. DRY_RUN=1 runs every part with the preset `tiny` and a single
# repeat, to see that all of them run, without a GPU, too; give it a folder of its own.
set -u
cd "$(dirname "$0")/.." || exit 1
LIMIT=540 # seconds

parts() { # a line each: NAME BENCH MODEL OPTIONS
    local model batch half train
    for model in llava-1.5-7b llava-next-7b; do
        for batch in 1 8 32; do
            for half in many=full,hired:0.4 few=hired:0.2,hired:0.1; do # tokens
                echo "sweep-$model-b$batch-${half%%=*}" \
                    "sweep $model --batch $batch --budget ${half#*=} --out FOLDER/NAME"
            done
        done
    done
    for batch in 1 2 4; do echo "hired-b$batch hired llava-next-7b --batch $batch"; done
    echo "peer-b1 peer llava-1.5-7b --dtype bfloat16 --no-compile"
    echo "peer-b1-compile peer llava-1.5-7b --dtype bfloat16"
    echo "peer-b8 peer llava-1.5-7b --dtype bfloat16 --batch 8 --no-compile"
    echo "peer-b1-float32 peer llava-1.5-7b --dtype float32 --no-compile"
    for bits in int8 int4 fp8 int8,kv=int8; do
        echo "decode-${bits/,kv=/-kv-} decode llava-1.5-7b --batch 1,8,32 --quantize $bits"
    done
    for fused in "" --fuse; do
        echo "prefill${fused#-} prefill llava-1.5-7b --batch 1,8 --dtype bfloat16 $fused"
        echo "decode${fused#-} decode llava-1.5-7b --batch 1,8,32 --dtype bfloat16 $fused"
    done
    for model in llava-next-7b vila1.5-3b nvila-8b; do echo "vision-$model vision $model --batch 1,8"; done
    echo "compile compile llava-1.5-7b --repeats 3"
    echo "load load vila1.5-3b"
    for train in 7b-lora 7b-full 3b-full; do echo "train-$train train $train --batch 1,2"; done
}

chosen() { # the parts whose names begin as asked for
    local name bench model options
    while read -r name bench model options; do
        # without a GPU fewer bits do not pay, and are refused unless they are forced
        [[ -n ${DRY_RUN:-} ]] && model=tiny options="$(sed -E 's/(--quantize [^ ]+)/\1,force/' <<<"$options") --repeats 1"
        wanted "$name" "$@" && echo "$name $bench $model $options"
    done < <(parts)
}

wanted() { # of a name and the beginnings of names: whether it has one of them
    local name=$1 beginning
    shift
    [[ $# -eq 0 ]] && return 0
    for beginning in "$@"; do [[ $name == "$beginning"* ]] && return 0; done
    return 1
}

if [[ ${1:-} == --list ]]; then
    shift
    while read -r name words; do echo "$name: vila-jax bench $words"; done < <(chosen "$@")
    exit 0
fi
folder=${1:?usage: bench/h200.sh FOLDER [NAME...]}
shift
mkdir -p "$folder" || exit 1
failed=()
while read -r name words <&3; do
    [[ -e $folder/$name.json ]] && { echo "$name: done before"; continue; }
    words=${words//FOLDER\/NAME/$folder/$name}
    echo "$name: vila-jax bench $words"
    # shellcheck disable=SC2086  # words are words
    timeout "$LIMIT" "${PYTHON:-python3}" -m vila_jax.cli.main bench $words \
        --json "$folder/$name.json" --markdown "$folder/$name.md" >"$folder/$name.log" 2>&1 || {
        echo "$name: failed, see $folder/$name.log"
        failed+=("$name")
    }
done 3< <(chosen "$@")
[[ ${#failed[@]} -eq 0 ]] && echo "all parts are done" || { echo "failed: ${failed[*]}"; exit 1; }
