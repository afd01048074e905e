"""Flags of `vllm serve` that this version does not support, each refused by its name."""

from __future__ import annotations

UNSUPPORTED = frozenset(
    """
    --additional-config --attention-backend --block-allocator --calculate-kv-scales --code-revision --collect-detailed-traces
    --compilation-config --config --config-format --convert --cpu-offload-gb --cuda-graph-sizes --data-parallel-address
    --data-parallel-backend --data-parallel-rank --data-parallel-rpc-port --data-parallel-size-local --data-parallel-start-rank
    --decode-context-parallel-size --default-mm-loras --disable-cascade-attn --disable-custom-all-reduce --disable-fastapi-docs
    --disable-frontend-multiprocessing --disable-hybrid-kv-cache-manager --disable-sliding-window --download-dir
    --enable-dbo --enable-eplb --enable-expert-parallel --enable-force-include-usage
    --enable-log-outputs --enable-log-requests --enable-lora --enable-mfu-metrics --enable-multimodal-encoder-data-parallel
    --enable-prompt-embeds --enable-prompt-tokens-details --enable-reasoning --enable-request-id-headers
    --enable-server-load-tracking --enable-sleep-mode --enable-ssl-refresh --enable-tokenizer-info-endpoint --eplb-config
    --fully-sharded-loras --guided-decoding-backend --h11-max-header-count
    --h11-max-incomplete-event-size --headless --hf-config-path --hf-overrides --hf-token --ignore-patterns
    --interleave-mm-strings --io-processor-plugin --kv-cache-dtype --kv-events-config --kv-offloading-backend
    --kv-offloading-size --kv-sharing-fast-prefill --kv-transfer-config --limit-mm-per-prompt --log-config-file
    --logits-processor-pattern --logits-processors --logprobs-mode --long-prefill-token-threshold --lora-dtype --lora-modules
    --mamba-cache-dtype --mamba-ssm-cache-dtype --master-addr --master-port --max-cpu-loras --max-log-len
    --max-long-partial-prefills --max-lora-rank --max-loras --max-num-partial-prefills --max-parallel-loading-workers
    --max-seq-len-to-capture --media-io-kwargs --middleware --mm-encoder-tp-mode --mm-processor-cache-gb
    --mm-processor-cache-type --mm-processor-kwargs --model-impl --model-loader-extra-config --nnodes --node-rank
    --num-gpu-blocks-override --num-lookahead-slots --override-attention-dtype --override-neuron-config
    --override-pooler-config --pooler-config --preemption-mode --prefix-caching-hash-algo --pt-load-map-location
    --ray-workers-use-nsight --reasoning-parser-plugin --response-role --rope-scaling --rope-theta --runner
    --safetensors-load-strategy --scheduler-cls --scheduler-delay-factor --scheduler-reserve-full-isl
    --show-hidden-metrics-for-version --skip-mm-profiling --skip-tokenizer-init --speculative-config --ssl-refresh
    --structured-outputs-config --swap-space --task --tokenizer-mode --tokenizer-pool-extra-config --tokenizer-pool-size
    --tokenizer-pool-type --tokenizer-revision --tool-parser-plugin --tool-server --uds --use-tqdm-on-load
    --use-v2-block-manager --video-pruning-rate --worker-cls --worker-extension-cls
    """.split()  # noqa: SIM905  (a list of a hundred literals says no more)
)
