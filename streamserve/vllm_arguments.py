"""Arguments of vLLM that are no settings here: which of their values describe what happens anyway, and why no other will do.

The command line, the environment, configuration files and `LLM(...)` all look here for a name that is no setting, so that each
accepts what the others do. Names are those of vLLM's `EngineArgs` and of its server, to 0.33, with those that recipes still use
and vLLM has dropped. Pure data and functions of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Holds = tuple[Any, ...] | Callable[[Any], bool]


class Argument(NamedTuple):
    """One argument of vLLM.

    holds   the values that describe what happens anyway, or a test for them; None, vLLM's "not given", is always one
    reason  what happens, and so why other values are refused
    """

    holds: Holds
    reason: str

    @property
    def is_flag(self) -> bool:
        """Whether it is true or false, and takes no value on a command line."""
        return isinstance(self.holds, tuple) and any(isinstance(value, bool) for value in self.holds)

    def accepts(self, value: Any) -> bool:
        if value is None:
            return True
        if callable(self.holds):
            return self.holds(value)
        # True is equal to 1, and means something else.
        return any(value == held and isinstance(value, bool) == isinstance(held, bool) for held in self.holds)


def refusal(name: str, value: Any) -> str | None:
    """Why this value of a name in `ARGUMENTS` is refused; None when it describes what happens anyway."""
    argument = ARGUMENTS[name]
    return None if argument.accepts(value) else argument.reason


def _any(value: Any) -> bool:
    return True


def _our_backend(value: Any) -> bool:
    """Whether structured outputs are llguidance's, and laid out as they are here."""
    return (
        isinstance(value, Mapping)
        and value.items() <= {"backend": value.get("backend")}.items()
        and (value.get("backend", "auto") in _BACKENDS)
    )


_BACKENDS = ("auto", "guidance")
_OFF = (False,)
_EITHER = (True, False)
_EMPTY: Holds = ({},)
_UNSET: Holds = ()


def _because(reason: str, **holds: Holds) -> dict[str, Argument]:
    return {name: Argument(values, reason) for name, values in holds.items()}


_MODEL = {
    **_because(
        "models generate text, and make embeddings of prompts",
        task=("auto", "generate", "embed", "embedding"), runner=("auto", "generate", "pooling"),
        convert=("auto", "none", "embed"),
    ),
    **_because("the tokenizer is the fast one where there is one, else transformers'", tokenizer_mode=("auto", "hf")),
    **_because(
        "text is tokenized here, and decoded", skip_tokenizer_init=_OFF, tokens_only=_OFF, enable_prompt_embeds=_OFF,
        intial_incremental_detokenization_offset=_UNSET, tokenizer_pool_size=(0,), tokenizer_pool_type=_any,
        tokenizer_pool_extra_config=_any,
    ),
    **_because("--revision is that of a model's code, too", code_revision=_UNSET),
    **_because("config.json describes the model", config_format=("auto", "hf"), hf_config_path=_UNSET),
    **_because(
        "the checkpoint's config.json counts as it is: change it there",
        hf_overrides=_EMPTY, rope_scaling=_EMPTY, rope_theta=_UNSET, override_attention_dtype=_UNSET,
    ),
    **_because("the Hub's own HF_TOKEN in the environment is what it reads", hf_token=_UNSET),
    **_because("the files that a checkpoint's index names are read, as they are needed", ignore_patterns=_UNSET,
               model_loader_extra_config=_EMPTY, safetensors_load_strategy=("auto", "lazy")),
    **_because("pickles are not read", pt_load_map_location=_any),
    **_because("progress of a start is in its log", use_tqdm_on_load=_EITHER),
    **_because("the checkpoint says how its weights are quantized", quantization_param_path=_UNSET,
               allow_deprecated_quantization=_EITHER),
    **_because("no model returns which experts it used", enable_return_routed_experts=_OFF),
    **_because("weights are loaded once", weight_transfer_config=_UNSET, enable_sleep_mode=_OFF),
}  # fmt: skip

_TEXT_ONLY = {
    **_because(
        "prompts are text",
        omni=_OFF, language_model_only=_EITHER, allowed_local_media_path=("",), allowed_media_domains=_UNSET,
        media_io_kwargs=_EMPTY, mm_processor_kwargs=_EMPTY, interleave_mm_strings=_OFF, enable_mm_embeds=_OFF,
        mm_encoder_only=_OFF, video_pruning_rate=(0,), io_processor_plugin=_UNSET,
    ),
    **_because("prompts are text, so that no limit of images, sounds or videos is exceeded", limit_mm_per_prompt=_any),
    **_because(
        "prompts are text, so that there is no encoder to divide, profile or keep the results of",
        mm_encoder_tp_mode=_any, mm_encoder_attn_backend=_any, mm_processor_cache_gb=_any, mm_processor_cache_type=_any,
        mm_shm_cache_max_object_size_mb=_any, mm_tensor_ipc=_any, skip_mm_profiling=_EITHER, disable_chunked_mm_input=_EITHER,
        disable_mm_preprocessor_cache=_EITHER, enable_mm_processor_stats=_EITHER,
        enable_multimodal_encoder_data_parallel=_EITHER,
    ),
}  # fmt: skip

_ADAPTERS = _because(
    "one set of weights is served, without adapters",
    enable_lora=_OFF, enable_lora_bias=_OFF, lora_modules=_UNSET, max_loras=_UNSET, max_lora_rank=_UNSET, max_cpu_loras=_UNSET,
    lora_dtype=("auto",), lora_extra_vocab_size=_UNSET, long_lora_scaling_factors=_UNSET, fully_sharded_loras=_OFF,
    default_mm_loras=_UNSET, enable_tower_connector_lora=_OFF, specialize_active_lora=_OFF, qlora_adapter_name_or_path=_UNSET,
    enable_prompt_adapter=_OFF, max_prompt_adapters=_UNSET, max_prompt_adapter_token=_UNSET,
)  # fmt: skip

_DEVICES = {
    **_because(
        "a server runs its engines on its own machine, each in a process of its own",
        nnodes=(1,), node_rank=(0,), master_addr=_UNSET, master_port=_UNSET, headless=_OFF, worker_use_ray=_OFF,
        engine_use_ray=_OFF, ray_workers_use_nsight=_OFF, worker_cls=("auto",), worker_extension_cls=("",),
        disable_frontend_multiprocessing=_OFF, grpc=_OFF,
    ),
    **_because(
        "all engines of --data-parallel-size are on this machine and behind one endpoint, whose router they have; for more "
        "machines start a server on each",
        data_parallel_rank=_UNSET, data_parallel_start_rank=(0,), data_parallel_address=_UNSET,
        data_parallel_rpc_port=_UNSET, data_parallel_backend=("mp",), data_parallel_hybrid_lb=_OFF,
        data_parallel_external_lb=_OFF, data_parallel_multi_port_external_lb=_OFF, data_parallel_supervisor_port=_UNSET,
    ),
    **_because(
        "layers are divided by --tensor-parallel-size and by nothing else",
        prefill_context_parallel_size=(1,), decode_context_parallel_size=(1,), dcp_kv_cache_interleave_size=_UNSET,
        cp_kv_cache_interleave_size=_UNSET, dcp_comm_backend=_UNSET, all2all_backend=_UNSET,
        enable_eplb=_OFF, eplb_config=_EMPTY, num_redundant_experts=(0,), eplb_window_size=_UNSET, eplb_step_interval=_UNSET,
        eplb_log_balancedness=_OFF, expert_placement_strategy=_UNSET, enable_dbo=_OFF, ubatch_size=(0,),
        dbo_decode_token_threshold=_UNSET, dbo_prefill_token_threshold=_UNSET,
        disable_nccl_for_dp_synchronization=_EITHER, enable_elastic_ep=_OFF, enable_ep_weight_filter=_OFF,
    ),
    **_because("each rank reads its own share of the weights", max_parallel_loading_workers=_any),
}  # fmt: skip

_MEMORY = {
    **_because("nothing is swapped out: a preempted sequence is computed anew", swap_space=_any,
               preemption_mode=("recompute",)),
    **_because("weights stay on their device", cpu_offload_gb=(0,), offload_backend=_UNSET, offload_group_size=(0,)),
    **_because("--kv-cache-memory sizes the KV cache", num_gpu_blocks_override=_UNSET),
    **_because("scales of 8-bit keys and values are the checkpoint's, or 1", calculate_kv_scales=_OFF),
    **_because("all layers keep keys and values in the same dtype", kv_cache_dtype_skip_layers=_UNSET),
    **_because(
        "the KV cache stays on its device",
        kv_offloading_size=_UNSET, kv_offloading_backend=_UNSET, kv_transfer_config=_UNSET, kv_events_config=_UNSET,
        ec_transfer_config=_UNSET, kv_sharing_fast_prefill=_OFF,
    ),
    **_because("a hit in the prefix cache is compared with the tokens, whatever the hash", prefix_caching_hash_algo=_any),
    **_because("layers with a sliding window keep what is in it, and no more", disable_sliding_window=_OFF,
               disable_hybrid_kv_cache_manager=_OFF),
    **_because("no model that is supported has state-space layers", mamba_cache_dtype=("auto",), mamba_block_size=_UNSET,
               mamba_ssm_cache_dtype=("auto",), mamba_cache_mode=("none",), mamba_backend=_UNSET, mamba_ssu_algorithm=_UNSET,
               mamba_cache_philox_rounds=_UNSET, enable_mamba_cache_stochastic_rounding=_OFF),
    **_because("there is one kind of block manager", use_v2_block_manager=_EITHER, block_allocator=_UNSET),
}  # fmt: skip

_KERNELS = {
    **_because(
        "graphs of the sizes that fit are captured, unless --enforce-eager",
        compilation_config=_EMPTY, optimization_level=_UNSET, cudagraph_capture_sizes=_UNSET, cuda_graph_sizes=_UNSET,
        max_cudagraph_capture_size=_UNSET, performance_mode=("balanced",),
    ),
    **_because("graphs are of so many sequences, each of any length", max_seq_len_to_capture=_any,
               max_context_len_to_capture=_any),
    **_because(
        "kernels are chosen by the device",
        attention_backend=_UNSET, attention_config=_EMPTY, kernel_config=_EMPTY, moe_backend=("auto",),
        linear_backend=("auto",), enable_flashinfer_autotune=_OFF,
    ),
    **_because("there is no cascade attention", disable_cascade_attn=_EITHER),
    **_because("these are for other accelerators", additional_config=_EMPTY, override_neuron_config=_EMPTY),
}  # fmt: skip

_STEPS = {
    **_because(
        "prompts that wait share the tokens of a step in the order of --scheduling-policy",
        max_num_partial_prefills=_UNSET, max_long_partial_prefills=_UNSET, long_prefill_token_threshold=(0,),
        scheduler_delay_factor=(0,), scheduler_cls=_UNSET, scheduler_reserve_full_isl=_UNSET,
    ),
    **_because("each token is sent as soon as it is decoded", stream_interval=(1,), num_scheduler_steps=(1,),
               multi_step_stream_outputs=_EITHER, disable_async_output_proc=_OFF),
    **_because(
        "nothing proposes draft tokens",
        speculative_config=_UNSET, speculative_model=_UNSET, speculative_model_quantization=_UNSET,
        speculative_draft_tensor_parallel_size=_UNSET, speculative_disable_mqa_scorer=_OFF, speculative_max_model_len=_UNSET,
        speculative_disable_by_batch_size=_UNSET, num_speculative_tokens=_UNSET, num_lookahead_slots=(0,),
        ngram_prompt_lookup_max=_UNSET, ngram_prompt_lookup_min=_UNSET, spec_decoding_acceptance_method=_UNSET,
        typical_acceptance_sampler_posterior_threshold=_UNSET, typical_acceptance_sampler_posterior_alpha=_UNSET,
        disable_logprobs_during_spec_decoding=_EITHER,
    ),
    **_because("log probabilities are the model's own, before temperature and penalties", logprobs_mode=("raw_logprobs",)),
    **_because("code is not plugged in", logits_processors=([],), logits_processor_pattern=_UNSET),
}  # fmt: skip

_ANSWERS = {
    **_because("llguidance compiles structured outputs", guided_decoding_backend=_BACKENDS,
               structured_outputs_config=_our_backend, guided_decoding_disable_fallback=_EITHER),
    **_because("a schema says what may be in an answer, and white space in JSON is bounded",
               guided_decoding_disable_any_whitespace=_OFF, guided_decoding_disable_additional_properties=_OFF),
    **_because("reasoning is read wherever there is a parser for it", enable_reasoning=(True,), reasoning_config=_UNSET),
    **_because("parsers are not plugged in", tool_parser_plugin=("",), reasoning_parser_plugin=("",)),
    **_because("tools are run by the client", tool_server=_UNSET),
    **_because("answers are the assistant's", response_role=("assistant",)),
    **_because("templates that loop over parts of content get parts, others get text", chat_template_content_format=("auto",)),
    **_because("usage always says how many prompt tokens were in the cache", enable_prompt_tokens_details=_EITHER),
    **_because("a stream ends with usage where its request has stream_options.include_usage", enable_force_include_usage=_OFF),
    **_because("/metrics has the figures of all requests", enable_per_request_metrics=_OFF),
    **_because("system_fingerprint is null", fingerprint_mode=("none",), fingerprint_value=_UNSET),
}  # fmt: skip

_SERVER = {
    **_because("X-Request-Id is always sent", enable_request_id_headers=_EITHER),
    **_because("/load always tells", enable_server_load_tracking=_EITHER),
    **_because("the tokenizer is not published", enable_tokenizer_info_endpoint=_OFF),
    **_because("/openapi.json is always there; there are no other pages of documentation", disable_fastapi_docs=_OFF,
               enable_offline_docs=_OFF),
    **_because("the server listens on --host and --port", uds=_UNSET),
    **_because("heads of requests are bounded, at sizes of this server's own", h11_max_incomplete_event_size=_UNSET,
               h11_max_header_count=_UNSET),
    **_because("code is not plugged into the server: put a proxy in front of it", middleware=([],)),
    **_because("certificates are read at the start", enable_ssl_refresh=_OFF, ssl_refresh=_OFF),
    **_because("OpenSSL's own choice of ciphers counts", ssl_ciphers=_UNSET),
    **_because("the access log has all requests but probes and scrapes", disable_access_log_for_endpoints=_UNSET),
    **_because("the log has requests under --enable-log-requests only, and never their prompts", disable_log_requests=(True,),
               max_log_len=_any),
    **_because("answers are never logged", enable_log_outputs=_OFF, enable_log_deltas=_EITHER),
    **_because("--uvicorn-log-level is all that there is to set of the log", log_config_file=_UNSET, log_error_stack=_OFF),
    **_because("/metrics has the statistics, and the log has none", disable_log_stats=_EITHER,
               aggregate_engine_logging=_EITHER),
    **_because(
        "/metrics and traces have what docs/METRICS.md lists",
        collect_detailed_traces=_UNSET, show_hidden_metrics_for_version=_UNSET, kv_cache_metrics=_OFF,
        kv_cache_metrics_sample=_UNSET, cudagraph_metrics=_OFF, enable_mfu_metrics=_OFF, enable_layerwise_nvtx_tracing=_OFF,
        enable_logging_iteration_details=_OFF, profiler_config=_EMPTY,
    ),
}  # fmt: skip

ARGUMENTS: Mapping[str, Argument] = {
    **_MODEL, **_TEXT_ONLY, **_ADAPTERS, **_DEVICES, **_MEMORY, **_KERNELS, **_STEPS, **_ANSWERS, **_SERVER,
}  # fmt: skip

SHORT: Mapping[str, str] = {
    "-O": "optimization_level",
    "-ac": "attention_config",
    "-cc": "compilation_config",
    "-cp": "decode_context_parallel_size",
    "-dcp": "decode_context_parallel_size",
    "-dpa": "data_parallel_address",
    "-dpb": "data_parallel_backend",
    "-dpe": "data_parallel_external_lb",
    "-dph": "data_parallel_hybrid_lb",
    "-dpn": "data_parallel_rank",
    "-dpp": "data_parallel_rpc_port",
    "-dpr": "data_parallel_start_rank",
    "-n": "nnodes",
    "-pcp": "prefill_context_parallel_size",
    "-r": "node_rank",
    "-sc": "speculative_config",
}
"""vLLM's short spellings of them."""
